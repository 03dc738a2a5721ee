"""Sweeps from the command line: the table and sweep.json at the end, other processes, a number to optimise."""

import errno
import json

import pytest
import yaml

from simprune.cli import commands
from simprune.cli.main import main
from simprune.cli.recipe.sweep import check_objective, objective
from simprune.settings import Recipe
from tests.cli.users import LOOSE, OWN, STRICT, the

GATES = f"check.gates={LOOSE.partition('=')[2]},{STRICT.partition('=')[2]}"


def summary(folder):
    return json.loads(the(folder, "sweep.json").read_text())


def test_a_sweep_ends_with_its_jobs_figures(folder, bundle, capsys):
    assert main(["validate", OWN, f"bundle={bundle}", GATES, "seed=3", "-m"]) == 1
    jobs = summary(folder)["jobs"]
    assert [(job["job"], job["code"], job["figures"]) for job in jobs] == [
        (0, 0, {"outcome": "pass"}),
        (1, 1, {"outcome": "fail"}),
    ]
    assert all((folder / job["folder"] / "verdict.json").is_file() for job in jobs)
    table = capsys.readouterr().out.partition("Sweep")[2]
    assert "check.gates" in table and "-1.0" in table and "seed" not in table  # only what differs
    assert "sweep.json" in table and "PASS" not in table


def test_a_wrong_job_is_in_the_table_and_the_others_go_on(folder, capsys):
    assert main(["plan", OWN, "budget.macs=0.8,1e-9,0,0.6", "-m"]) == 2
    jobs = summary(folder)["jobs"]
    assert [job["code"] for job in jobs] == [0, 2, 2, 0]
    assert jobs[0]["error"] is None and "cannot be reached" in jobs[1]["error"] and "(0, 1]" in jobs[2]["error"]
    assert jobs[0]["figures"]["macs"] <= 0.8 and jobs[3]["figures"]["macs"] <= 0.6
    assert len(list(folder.rglob("plan.yaml"))) == 2
    out, err = capsys.readouterr()
    assert "error" in out.partition("Sweep")[2] and err.count("simprune: error: ") == 2


def test_codes_and_figures_come_home_from_other_processes(folder, bundle, capsys):
    args = ["validate", OWN, f"bundle={bundle}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m"]
    assert main([*args, STRICT]) == 1
    (job,) = summary(folder)["jobs"]
    assert (job["code"], job["figures"]) == (1, {"outcome": "fail"})
    assert "fail" in capsys.readouterr().out.partition("Sweep")[2]


OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]


@pytest.mark.filterwarnings("ignore")  # the sweeper needs an old Optuna, whose imports warn
def test_optuna_gets_the_objective_and_keeps_the_best(folder, capsys, monkeypatch):
    def plan(job):
        share = job.recipe.budget["macs"]
        if share < 0.2:
            raise ValueError("simprune: too small for this test")
        job.figures.update(macs=share, params=(share - 0.5) ** 2)
        return 0

    monkeypatch.setitem(commands.COMMANDS, "plan", plan)
    args = ["plan", OWN, *OPTUNA, "objective=params", "budget.macs=choice(0.1,0.3,0.45,0.9)", "-m"]
    main(args)
    jobs = summary(folder)["jobs"]
    assert len(jobs) == 6 and all(job["objective"] == job["figures"].get("params") for job in jobs)
    best = yaml.safe_load(the(folder, "optimization_results.yaml").read_text())
    assert best["best_value"] == min(job["objective"] for job in jobs if job["objective"] is not None)
    assert "optimization_results.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, name, expected",
    [
        ("plan", "accuracy", "objective: unknown 'accuracy'; known: bytes, macs, params"),
        ("compress", "agrement", "did you mean 'agreement'"),
        ("analyze", "macs", "objective: analyze has none"),
    ],
)
def test_a_number_that_a_command_does_not_measure_cannot_be_optimised(command, name, expected):
    with pytest.raises(ValueError, match=expected):
        check_objective(Recipe(objective=name), command)


def test_a_number_that_was_not_measured_cannot_be_optimised():
    recipe = Recipe(objective="agreement")
    with pytest.raises(ValueError, match="agreement was not measured; it needs test data"):
        objective(recipe, {"agreement": None})
    assert objective(recipe, {"agreement": 1}) == 1.0
    assert objective(recipe, {"outcome": "fail"}) is None and objective(Recipe(), {"agreement": None}) is None


def test_a_wrong_objective_is_one_line(folder, capsys):
    assert main(["plan", OWN, "objective=accuracy"]) == 2
    err = capsys.readouterr().err
    assert "objective: unknown 'accuracy'" in err and err.count("\n") == 1


def test_a_plugin_that_is_not_installed_is_named(folder, capsys):
    assert main(["plan", OWN, "hydra/launcher=nothing", "-m"]) == 2
    assert "pip install 'simprune[sweep]'" in capsys.readouterr().err


@pytest.mark.parametrize("end, code", [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "full", "disk"), 2)])
def test_an_interrupted_sweep_goes_on_with_the_missing_jobs(folder, capsys, monkeypatch, end, code):
    args, seeds = ["plan", OWN, "seed=3,4,5", "-m"], []

    def interrupted_at_the_second(job):
        seeds.append(job.recipe.seed)
        if len(seeds) == 2:
            raise end
        job.write("seed.json", {"seed": job.recipe.seed})
        return 1

    monkeypatch.setitem(commands.COMMANDS, "plan", interrupted_at_the_second)
    assert main([*args, "hydra.sweep.dir=half"]) == code
    err = capsys.readouterr().err
    assert "add resume=" in err and err.count("error: ") == (code == 2)  # one line, and later jobs are not tried
    assert not (folder / "half" / "sweep.json").exists()
    written = (folder / "half" / "0" / "job.json").read_bytes()
    assert main([*args, "resume=half"]) == 1
    assert seeds == [3, 4, 4, 5] and (folder / "half" / "0" / "job.json").read_bytes() == written
    assert [job["code"] for job in json.loads((folder / "half" / "sweep.json").read_text())["jobs"]] == [1, 1, 1]
    assert main([*args, "resume=half", "score=magnitude"]) == 2
    assert "was made with other settings" in capsys.readouterr().err
