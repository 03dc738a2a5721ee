"""Sweeps from the command line: the table and sweep.json at the end, other processes, a number to optimise."""

import json

import pytest
import yaml

from simprune.cli import commands
from simprune.cli.main import main
from tests.cli.test_cli import LOOSE, OWN, STRICT, folder, the  # noqa: F401 - a fixture

QUICK = ["reconstruct=none", "structures=[channels]"]


def summary(folder):  # noqa: F811
    return json.loads(the(folder, "sweep.json").read_text())


def test_a_sweep_ends_with_its_jobs_figures(folder, capsys):  # noqa: F811
    gates = f"check.gates={LOOSE.partition('=')[2]},{STRICT.partition('=')[2]}"
    assert main(["compress", OWN, *QUICK, gates, "budget.macs=0.7", "-m"]) == 1
    found = summary(folder)
    assert [(job["job"], job["code"], job["figures"]["outcome"]) for job in found["jobs"]] == [
        (0, 0, "pass"),
        (1, 1, "fail"),
    ]
    for job in found["jobs"]:
        report = json.loads((folder / job["folder"] / "bundle" / "report.json").read_text())
        original, last = report["stages"]
        assert job["figures"]["agreement"] == last["agreement"]
        assert job["figures"]["macs"] == last["macs"] / original["macs"]
    table = capsys.readouterr().out.partition("Sweep")[2]
    assert "check.gates" in table and "budget.macs" not in table  # only what differs
    assert "sweep.json" in table and "PASS" not in table


def test_a_wrong_job_is_in_the_table_and_the_others_go_on(folder, capsys):  # noqa: F811
    assert main(["plan", OWN, "budget.macs=0.8,1e-9,0.6", "-m"]) == 2
    jobs = summary(folder)["jobs"]
    assert [job["code"] for job in jobs] == [0, 2, 0]
    assert "cannot be reached" in jobs[1]["error"] and jobs[0]["error"] is None
    assert [job["figures"].get("macs", 1) <= share for job, share in zip(jobs, (0.8, 1, 0.6), strict=True)]
    out, err = capsys.readouterr()
    assert "error" in out.partition("Sweep")[2] and err.count("simprune: error: ") == 1


def test_one_run_leaves_no_record_of_a_job(folder):  # noqa: F811
    assert main(["plan", OWN]) == 0
    assert not list(folder.rglob("job.json")) and not list(folder.rglob("sweep.json"))


def test_codes_and_figures_come_home_from_other_processes(folder, capsys):  # noqa: F811
    args = ["compress", OWN, *QUICK, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m"]
    assert main([*args, f"check.gates={LOOSE.partition('=')[2]},{STRICT.partition('=')[2]}", "budget.macs=0.7"]) == 1
    assert [job["code"] for job in summary(folder)["jobs"]] == [0, 1]
    assert "fail" in capsys.readouterr().out.partition("Sweep")[2]


OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]


@pytest.mark.filterwarnings("ignore")  # the sweeper needs an old Optuna, whose imports warn
def test_optuna_gets_the_objective_and_keeps_the_best(folder, capsys, monkeypatch):  # noqa: F811
    def made_up(job):
        share = job.recipe.budget["macs"]
        if share < 0.2:
            raise ValueError("simprune: too small for this test")
        job.figures.update(macs=share, params=(share - 0.5) ** 2)
        return 0

    monkeypatch.setitem(commands.COMMANDS, "plan", made_up)
    args = ["plan", OWN, *OPTUNA, "objective=params", "budget.macs=choice(0.1,0.3,0.45,0.9)", "-m"]
    main(args)
    jobs = summary(folder)["jobs"]
    assert len(jobs) == 6 and all(job["objective"] == job["figures"].get("params") for job in jobs)
    best = yaml.safe_load(the(folder, "optimization_results.yaml").read_text())
    assert best["best_value"] == min(job["objective"] for job in jobs if job["objective"] is not None)
    assert "optimization_results.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, expected",
    [
        (["plan", OWN, "objective=accuracy"], "objective: unknown 'accuracy'; known: bytes, macs, params"),
        (["compress", OWN, "objective=agrement"], "did you mean 'agreement'"),
        (["analyze", OWN, "objective=macs"], "objective: analyze has none"),
        (["compress", OWN, *QUICK, "+data.test=false", "objective=agreement"], "agreement was not measured"),
    ],
)
def test_a_number_that_is_not_there_cannot_be_optimised(folder, capsys, args, expected):  # noqa: F811
    assert main(args) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_a_search_in_which_nothing_passes_has_no_objective(folder, capsys):  # noqa: F811
    assert main(["compress", OWN, *QUICK, STRICT, "budget=smallest", "objective=macs", "-m"]) == 1
    (job,) = summary(folder)["jobs"]
    assert (job["objective"], job["error"], job["figures"]) == (None, None, {"outcome": "fail"})


def test_a_plugin_that_is_not_installed_is_named(folder, capsys):  # noqa: F811
    assert main(["plan", OWN, "hydra/launcher=nothing", "-m"]) == 2
    assert "pip install 'simprune[sweep]'" in capsys.readouterr().err
