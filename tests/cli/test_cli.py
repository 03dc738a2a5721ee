"""The command line as a user meets it: what is written, what is printed, and the exit codes."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from safetensors.torch import load_file, save_file

from simprune import api as pipeline
from simprune import checks
from simprune.cli import commands
from simprune.cli.main import DETAILS, main

MODULE = """
import torch
from simprune.sources import Batches
from simprune.zoo import ResidualCNN

def build(widths=(6, 12)):
    torch.manual_seed(0)
    return ResidualCNN(in_channels=1, classes=4, widths=widths, depths=(2, 1))

def load(labels=True, test=True):
    generator = torch.Generator().manual_seed(0)
    def batches(count):
        images = torch.randn(count, 1, 8, 8, generator=generator)
        tensors = [images, torch.randint(4, (count,), generator=generator)] if labels else [images]
        return Batches(*tensors, batch_size=32)
    parts = {"calibration": batches(64), "train": batches(64)}
    return parts | {"test": batches(200)} if test else parts
"""
RECIPE = """# a user's own
defaults: [base, model: function, data: function, _self_]
model: {function: "users_parts:build"}
data: {function: "users_parts:load"}
budget: {macs: 0.6}
device: cpu
"""


OWN = "recipe=mine/own.yaml"
LOOSE = "check.gates=[{measure: disagreement, limit: 1.0}]"
STRICT = "check.gates=[{measure: disagreement, limit: -1.0}]"


def furnish(folder: Path) -> None:
    """A user's folder: a recipe and the module that it names, in a subfolder of the working folder."""
    (folder / "mine").mkdir()
    (folder / "mine" / "users_parts.py").write_text(MODULE)
    (folder / "mine" / "own.yaml").write_text(RECIPE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_parts", None)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """What `simprune compress` prints and leaves, once for all tests that only look."""
    folder = tmp_path_factory.mktemp("compressed")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as shown:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        code = main(["compress", OWN, LOOSE, "finetune=default", "finetune.epochs=1", "control=1"])
    sys.modules.pop("users_parts", None)
    return code, shown.getvalue(), folder


@pytest.fixture
def bundle(compressed):
    return the(compressed[2], "bundle")


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "mine" not in path.parts)


def the(folder: Path, name: str) -> Path:
    (path,) = folder.rglob(name)
    return path


# ---- the way through ----


def test_compress_leaves_a_bundle_and_nothing_else(compressed, bundle):
    code, _, folder = compressed
    assert code == 0
    assert bundle.parent.parts[-4:-1] == ("outputs", "compress", "own")
    assert {path.name for path in bundle.iterdir()} == {
        "plan.yaml", "model.safetensors", "recipe.yaml", "report.json", "report.html",
    }  # fmt: skip
    assert [name for name in written(folder) if Path(folder, name).is_file() and "bundle" not in name] == []


def test_compress_shows_the_stages_the_verdict_and_the_report(compressed, bundle):
    shown = compressed[1]
    for word in ("accuracy", "agreement", "macs", "params", "bytes", "latency", "PASS", str(bundle / "report.html")):
        assert word in shown
    report = json.loads((bundle / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]][-1] == "random control"
    assert all(stage["name"] in shown for stage in report["stages"])
    macs = report["stages"][-2]["macs"]
    assert f"{macs:,}" in shown and macs <= 0.6 * report["stages"][0]["macs"]


def test_a_bundles_recipe_repeats_the_run(folder, bundle):
    (folder / "mine" / "again.yaml").write_bytes((bundle / "recipe.yaml").read_bytes())
    assert main(["compress", "recipe=mine/again.yaml", "hydra.run.dir=second"]) == 0
    for name in ("plan.yaml", "model.safetensors"):
        assert (folder / "second" / "bundle" / name).read_bytes() == (bundle / name).read_bytes()


@pytest.mark.parametrize("limit, code", [(1.0, 0), (-1.0, 1)])
def test_validate_writes_the_verdict_and_returns_its_code(folder, bundle, limit, code):
    gates = f"check.gates=[{{measure: disagreement, limit: {limit}}}]"
    assert main(["validate", OWN, f"bundle={bundle}", gates]) == code
    verdict = json.loads(the(folder, "verdict.json").read_text())
    assert verdict["outcome"] == ("fail" if code else "pass")
    assert verdict["gates"][0]["limit"] == limit


def test_a_bundle_alone_is_enough_to_validate_what_is_simprunes_own(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "mine"))
    small = ["model.widths=[8,16]", "model.depths=[1,1]", "model.epochs=1", "control=0", "finetune=none"]
    assert main(["compress", "recipe=digits", *small, STRICT]) == 1
    bundle = the(folder, "bundle")
    assert main(["validate", f"bundle={bundle}"]) == 1
    assert the(folder, "verdict.json").parent.parts[-3:-1] == ("validate", "bundle")
    main(["validate", f"bundle={bundle}", "check=unlabelled", "hydra.run.dir=other"])
    gates = json.loads((folder / "other" / "verdict.json").read_text())["gates"]
    assert [gate["measure"] for gate in gates] == ["disagreement", "jensen_shannon_divergence"]


LOOSER = "gates: [{measure: accuracy_drop, limit: 0.2}, {measure: disagreement, limit: 0.25}]\n"
GATED = """defaults: [base, model: function, data: function, override check: loose, _self_]
model: {function: "users_parts:build"}
data: {function: "users_parts:tested"}
device: cpu
"""


@pytest.fixture
def gated(folder, monkeypatch):
    """The user's folder with test data on which the original is right, so that a verdict can be earned."""
    (folder / "mine" / "gated.yaml").write_text(GATED)
    (folder / "mine" / "check").mkdir()
    (folder / "mine" / "check" / "loose.yaml").write_text(LOOSER)
    (folder / "mine" / "users_parts.py").write_text(
        MODULE
        + """
def tested(count=200):
    from simprune.trace.context import evaluation
    generator = torch.Generator().manual_seed(1)
    images, model = torch.randn(count, 1, 8, 8, generator=generator), build()
    with evaluation(model):
        labels = model(images).argmax(1)
    return load() | {"test": Batches(images, labels.clone(), batch_size=32)}
"""
    )
    return ["recipe=mine/gated.yaml"]


def unchanged_bundle(folder, gated, out="made"):
    """A bundle of a plan without edits: the original once more."""
    assert main(["plan", OWN, "hydra.run.dir=planned"]) == 0
    path = folder / "planned" / "plan.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"edits": []}))
    main(["compress", *gated, f"plan={path}", "reconstruct=none", f"hydra.run.dir={out}"])
    return folder / out / "bundle"


def sabotaged(bundle, folder):
    """Weights of the bundle with the last layer turned round."""
    weights = load_file(bundle / "model.safetensors")
    weights["linear.weight"] = -weights["linear.weight"]
    save_file(weights, folder / "mine" / "sabotaged.safetensors")
    return ["pruned.function=users_parts:build", "pruned.weights=mine/sabotaged.safetensors"]


def test_a_release_pipeline_gets_pass_fail_or_too_little_data(folder, gated, capsys):
    bundle = unchanged_bundle(folder, gated)
    good, few = [f"bundle={bundle}", "junit=reports/good.xml"], "+data.count=10"
    assert main(["validate", *gated, *good, "hydra.run.dir=good"]) == 0
    assert main(["validate", *gated, *sabotaged(bundle, folder), "junit=bad.xml", "hydra.run.dir=bad"]) == 1
    assert main(["validate", *gated, f"bundle={bundle}", few, "junit=few.xml", "hydra.run.dir=few"]) == 3
    for name, path, counts in (
        ("good", "reports/good.xml", "200"),
        ("bad", "bad.xml", "220"),
        ("few", "few.xml", "202"),
    ):
        suite = ElementTree.parse(path).getroot()
        assert [suite.get(key) for key in ("tests", "failures", "errors")] == list(counts), name
        assert [case.get("name") for case in suite] == ["accuracy_drop", "disagreement"]
        page = (folder / name / "verdict.html").read_text()
        assert "<script" not in page and "data:image/png" in page and "http:" not in page.replace("http://www.w3", "")
        assert json.loads((folder / name / "verdict.json").read_text())["count"] == (10 if name == "few" else 200)
    assert "samples would decide" in capsys.readouterr().out


def test_a_bundles_recipe_cannot_say_where_to_write(folder, monkeypatch):
    (folder / "mine" / "recipe.yaml").write_text("junit: mine/own.yaml\nseed: 3\n")
    from hydra.core.config_store import ConfigStore

    from simprune.cli.recipe import register_bundle_recipe

    register_bundle_recipe("mine")
    assert ConfigStore.instance().load("bundle.yaml").node.junit is None


def test_a_bundle_and_a_pruned_function_exclude_each_other(folder, bundle, capsys):
    assert main(["validate", OWN, f"bundle={bundle}", "pruned.function=users_parts:build"]) == 2
    assert "both given" in capsys.readouterr().err
    assert main(["validate", OWN, "pruned.function=users_parts:build", "pruned.weights=nowhere.safetensors"]) == 2
    assert "no weights at nowhere.safetensors" in capsys.readouterr().err


def test_a_bundle_alone_does_not_call_a_users_function(folder, bundle, capsys):
    assert main(["validate", f"bundle={bundle}"]) == 2
    assert "would call users_parts:load" in capsys.readouterr().err
    assert written(folder) == []


def test_analyze_writes_the_redundancy_and_the_recipe(folder, capsys):
    assert main(["analyze", OWN, "structures=[channels]"]) == 0
    content = json.loads(the(folder, "redundancy.json").read_text())
    assert {entry["kind"] for entry in content["entries"]} == {"channels"}
    assert yaml.safe_load(the(folder, "recipe.yaml").read_text())["structures"] == ["channels"]
    shown = capsys.readouterr().out
    assert "layer1.0.conv1" in shown and "redundancy.json" in shown


def test_an_edited_plan_is_the_one_applied_and_no_change_is_inconclusive(folder, capsys):
    assert main(["plan", OWN]) == 0
    plan = yaml.safe_load(the(folder, "plan.yaml").read_text())
    shown = capsys.readouterr().out
    assert plan["edits"] and all(edit["name"] in shown for edit in plan["edits"])

    edited = folder / "mine" / "edited.yaml"
    edited.write_text(yaml.safe_dump(plan | {"edits": []}))
    few = "check.gates=[{measure: disagreement, limit: 0.01}]"  # no change among 200 bounds the rate at 0.015
    assert main(["compress", OWN, f"plan={edited}", few, "reconstruct=none"]) == 3
    assert yaml.safe_load((the(folder, "bundle") / "plan.yaml").read_text())["edits"] == []


def test_finalists_are_tried_shown_and_kept(folder, capsys):
    assert main(["plan", OWN, "planner.finalists=3"]) == 0
    tried = yaml.safe_load(the(folder, "plan.yaml").read_text())["planner"]["finalists"]
    assert len(tried) > 1 and all({"blocks", "expected", "measured"} <= set(each) for each in tried)
    assert sum(each.get("chosen", False) for each in tried) == 1
    shown = capsys.readouterr().out
    assert "Finalists" in shown and "chosen" in shown and "measured damage" in shown
    assert main(["plan", OWN, "planner.finalists=1"]) == 2
    assert "planner.finalists: expected 0, or a whole number of at least 2" in capsys.readouterr().err


def test_a_sweep_goes_on_after_a_wrong_job(folder, capsys):
    assert main(["plan", OWN, "budget.macs=0,0.6", "-m"]) == 2
    assert "(0, 1]" in capsys.readouterr().err
    assert len(list(folder.rglob("plan.yaml"))) == 1


QUICK = ["budget=smallest", "search.tolerance=0.3", "finetune=none"]


def test_smallest_is_interrupted_and_goes_on(folder, capsys, monkeypatch):
    gate = "check.gates=[{measure: disagreement, limit: 0.6}]"
    real, calls = checks.validate, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    assert main(["compress", OWN, *QUICK, gate, "hydra.run.dir=whole"]) == 0
    shown = capsys.readouterr().out
    assert "chosen" in shown and "original" in shown and "PASS" in shown and "validate on inputs" in shown
    monkeypatch.setattr("simprune.stages.validate", interrupted)
    assert main(["compress", OWN, *QUICK, gate, "hydra.run.dir=it's a run"]) == 2  # Hydra wants such a name quoted
    assert main(["compress", OWN, *QUICK, gate, "hydra.run.dir='a run, with = signs'"]) == 130
    assert "add 'resume=" in capsys.readouterr().err
    assert main(["compress", OWN, *QUICK, gate, "resume=a run, with = signs"]) == 0
    for name in ("bundle/plan.yaml", "bundle/model.safetensors", "bundle/recipe.yaml", "search/state.json"):
        assert (folder / "a run, with = signs" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert main(["compress", OWN, *QUICK, gate, "resume=whole", "+model.widths=[6,14]"]) == 2
    assert "other settings (recipe.model.widths: None there, 6, 14 now)" in capsys.readouterr().err
    assert main(["validate", OWN, "bundle=whole/bundle", gate]) == 0


def test_smallest_says_which_check_nothing_passes(folder, capsys):
    assert main(["compress", OWN, *QUICK, "check.gates=[{measure: disagreement, limit: 0.001}]"]) == 3
    shown = capsys.readouterr().out
    assert "not even the original passes" in shown and "no bundle was made" in shown
    assert "No smaller model passed" in the(folder, "report.html").read_text()
    assert not list(folder.rglob("bundle"))
    assert main(["compress", OWN, *QUICK, STRICT, "search.inconclusive=pass"]) == 1
    assert json.loads((sorted(folder.rglob("report.json"))[-1]).read_text())["verdict"]["outcome"] == "fail"


def test_a_frontier_is_a_page_a_table_a_figure_and_plans(folder, capsys, monkeypatch):
    monkeypatch.setattr("simprune.trace.timing.ROUNDS", 1)
    assert main(["plan", OWN, "budget=[0.8,0.02]", "control=1", "hydra.run.dir=out"]) == 0
    shown = capsys.readouterr().out
    assert "unreachable" in shown and "depth 2%: " in shown and "joint" in shown
    assert [p["budget"] for p in json.loads((folder / "out" / "frontier.json").read_text())["points"]] == [
        0.8,
        0.02,
    ] * 4
    names = {path.name for path in (folder / "out").rglob("*.*")}
    assert {"frontier.html", "frontier.csv", "frontier.svg", "frontier.png", "joint_0.8.yaml"} <= names
    plan = "plan=out/plans/joint_0.8.yaml"
    assert main(["compress", OWN, plan, LOOSE, "reconstruct=none"]) == 0


def test_the_flag_is_short_for_a_list_of_budgets(folder, monkeypatch):
    seen = []
    monkeypatch.setitem(commands.COMMANDS, "plan", lambda job: seen.append(job.recipe.budget) or 0)
    assert main(["plan", OWN, "--frontier"]) == 0
    assert main(["plan", OWN, "--frontier", "budget=[0.6]"]) == 0
    assert main(["plan", OWN, "--frontier", "budget={params:[0.6]}"]) == 0
    assert seen == [[0.9, 0.7, 0.5, 0.3], [0.6], {"params": [0.6]}]


def test_config_dir_adds_a_users_group(folder, capsys):
    (folder / "mine" / "conf" / "check").mkdir(parents=True)
    (folder / "mine" / "conf" / "check" / "loose.yaml").write_text("gates: [{measure: disagreement, limit: 0.75}]\n")
    assert main(["compress", OWN, "--config-dir", "mine/conf", "check=loose", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["check"]["gates"][0]["limit"] == 0.75


# ---- wrong input: one line, exit code 2, nothing written ----


@pytest.mark.parametrize(
    "args, expected",
    [
        (["compres"], "did you mean 'compress'"),
        (["compress"], "name a recipe: recipe=NAME"),
        (["compress", "digits"], "cannot read 'digits': expected key=value, such as recipe=digits"),
        (["compress", "recipe=digist"], "did you mean 'digits'"),
        (["compress", "recipe=mine/onw.yaml"], "did you mean mine/own.yaml"),
        (["compress", OWN, "bugdet.macs=0.5"], "did you mean 'budget'"),
        (["compress", OWN, "measure=ckaa"], "did you mean 'cka'"),
        (["compress", OWN, "budget.macs=2"], "macs must be a fraction in (0, 1] or an amount such as 60M; got 2"),
        (["compress", OWN, "budget.macs=1e-9"], "cannot be reached"),
        (["compress", OWN, "budget.macs=lots"], "got 'lots'"),
        (["compress", OWN, "model.function=users_part:build"], "did you mean 'users_parts'"),
        (["compress", OWN, "model.function=users_parts:biuld"], "did you mean 'build'"),
        (["compress", OWN, "+model.widhts=[4,4]"], "did you mean 'widths'"),
        (["compress", OWN, "model.weights=nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["compress", "recipe=digits", "data=arrays", "data.path=nowhere.npz"], "no file nowhere.npz"),
        (["compress", OWN, "budget=smallest", "search.kind=mac"], "search.kind: unknown 'mac'; did you mean 'macs'"),
        (["compress", OWN, "budget=smallest", "resume=nowhere"], "no search to go on with in nowhere"),
        (["compress", OWN, "budget=smallest", "resume=mine", "-m"], "resume goes on with one"),
        (["plan", OWN, "resume=mine"], "resume goes on with one"),
        (["analyze", OWN, "resume=nowhere"], "no analysis to go on with in nowhere"),
        (["compress", OWN, "plan=nowhere.yaml"], "no plan file nowhere.yaml"),
        (["compress", OWN, "plan=mine/own.yaml"], "expected a simprune plan"),
        (["compress", OWN, "--multirum"], "did you mean '--multirun'"),
        (["compress", OWN, "~nothing"], "nothing"),
        (["compress", OWN, "--frontier"], "--frontier is for `simprune plan`"),
        (["compress", OWN, "--cfg"], "--cfg expects job or hydra or all; got nothing"),
        (["compress", OWN, "--cfg", "jbo"], "--cfg expects job or hydra or all; got jbo"),
        (["validate", OWN], "bundle is missing"),
        (["validate", "bundle=nowhere"], "no bundle in nowhere"),
        (["validate", OWN, "bundle=mine"], "mine"),
        (["validate", OWN, "bundle=nowhere"], "no bundle folder nowhere"),
        (["list", "mesures"], "did you mean 'measures'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(folder, capsys, args, expected):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("simprune: error: ") and err.count("\n") == 1
    assert expected in err
    assert out.strip() == "" and written(folder) == []


def test_a_plan_for_another_model_is_refused(folder, capsys):
    assert main(["plan", OWN, "hydra.run.dir=mine/made"]) == 0
    args = ["compress", OWN, "plan=mine/made/plan.yaml", "+model.widths=[8,12]"]
    assert main(args) == 2
    err = capsys.readouterr().err
    assert "plan: layer" in err and err.count("\n") == 1
    assert written(folder) == []


def test_the_traceback_is_there_for_who_asks(folder, capsys, monkeypatch):
    monkeypatch.setenv("SIMPRUNE_TRACEBACK", "1")
    assert main(["compress", OWN, "budget.macs=2"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "simprune: error: budget" in err


def test_a_defect_keeps_its_traceback_and_has_its_own_code(folder, capsys, monkeypatch):
    monkeypatch.setattr(commands, "estimate", lambda *_, **__: {}["a key"])
    assert main(["analyze", OWN]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and "KeyError: 'a key'" in err and "simprune: error" not in err
    assert written(folder) == []


def test_an_error_in_a_library_is_not_blamed_on_the_input(folder, capsys, monkeypatch):
    monkeypatch.setattr(commands, "estimate", lambda *_, **__: json.loads("{"))
    monkeypatch.setattr(json, "JSONDecodeError", ValueError)
    assert main(["analyze", OWN]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_analysis_is_interrupted_and_goes_on(folder, capsys, monkeypatch):
    few = ["structures=[blocks]", "analysis.chance=2", "analysis.bootstrap=2", "analysis.figures=false"]
    assert main(["analyze", OWN, *few, "hydra.run.dir=whole"]) == 0
    assert not (folder / "whole" / "unfinished").exists()

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "describe_depth", interrupted)
        assert main(["analyze", OWN, *few, "hydra.run.dir=half"]) == 130
    assert "add resume=half to the same command" in capsys.readouterr().err.replace(str(folder) + "/", "")
    assert main(["analyze", OWN, *few, "resume=half", "measure=cka"]) == 2
    assert "other settings (recipe.measure" in capsys.readouterr().err
    assert main(["analyze", OWN, *few, "resume=half"]) == 0
    for name in ("analysis.json", "redundancy.json", "blocks.csv"):
        assert (folder / "half" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name


def test_interrupting_is_one_line(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "estimate", interrupted)
    assert main(["analyze", OWN]) == 130
    assert capsys.readouterr().err == "simprune: interrupted\n"
    assert written(folder) == []


# ---- what is shown ----


@pytest.mark.parametrize("args", [["--help"], ["-h"], *([command, "--help"] for command in DETAILS)])
def test_help_is_short_and_has_examples(folder, capsys, args):
    assert main(args) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: simprune") and len(out.splitlines()) <= 60
    assert written(folder) == []


def test_nothing_typed_is_the_help_and_an_error(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: simprune")


def test_cfg_job_shows_the_recipe_and_runs_nothing(folder, capsys):
    assert main(["compress", OWN, "--cfg", "job", "seed=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 7
    assert written(folder) == []


def test_info_searchpath_names_the_built_in_folders(folder, capsys):
    assert main(["compress", "--info", "searchpath", OWN]) == 0
    assert "/conf" in capsys.readouterr().out


def test_every_list_is_plain_text(folder, capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("cka_debiased", "disagreement", "digits_layers", "resnet56", "arrays", "greedy", "unlabelled"):
        assert name in out
    assert "\x1b" not in out


def test_the_installed_command_runs_in_a_process_of_its_own(folder):
    script = "import sys; from simprune.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-W", "error", "-c", script, "plan", OWN]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert the(folder, "plan.yaml").parent.parts[-4:-1] == ("outputs", "plan", "own")


def test_verdicts_map_to_the_documented_codes():
    from simprune.cli.commands import EXIT

    assert EXIT == {"pass": 0, "fail": 1, "inconclusive": 3}
    assert set(EXIT) == set(checks.Outcome.__args__)
