"""The command line as a user meets it: what is written, what is printed, and the exit codes.

Four compressions run from end to end here, and one in `conftest.py`; other tests call functions or cheaper commands.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from rich.cells import cell_len
from safetensors.torch import save_file

from simprune import api, checks, formats
from simprune import bundle as bundles
from simprune.cli import commands, console
from simprune.cli.errors import report
from simprune.cli.flags import split
from simprune.cli.help import LISTED
from simprune.cli.main import DETAILS, main
from simprune.cli.recipe.sweep import objective
from simprune.core import registry
from simprune.core.names import did_you_mean, locate
from simprune.core.plan import Plan
from tests.cli.users import LOOSE, OWN, STRICT, furnish, job, the, written

# ---- whole compressions ----


def test_compress_leaves_a_bundle_and_nothing_else(compressed, bundle):
    assert compressed.code == 0
    assert bundle.parent.parts[-4:-1] == ("outputs", "compress", "own")
    assert {path.name for path in bundle.iterdir()} == {
        "plan.yaml", "model.safetensors", "recipe.yaml", "report.json", "report.html",
    }  # fmt: skip
    folder = compressed.folder
    run = bundle.parent
    others = {name for name in written(folder) if Path(folder, name).is_file() and "bundle" not in name}
    logs = [run / "simprune.log", run / "training" / "training.jsonl"]
    assert others == {str(log.relative_to(folder)) for log in logs}
    assert "INFO checks: " in logs[0].read_text()
    assert not (run / "training" / "state").exists()  # what an interrupted training goes on from


def test_compress_shows_the_stages_the_verdict_and_the_report(compressed, bundle):
    shown = compressed.shown
    for word in ("accuracy", "agreement", "macs", "params", "bytes", "latency", "PASS", str(bundle / "report.html")):
        assert word in shown
    stages = json.loads((bundle / "report.json").read_text())["stages"]
    assert stages[-1]["name"] == "random control" and all(stage["name"] in shown for stage in stages)
    macs = stages[-2]["macs"]
    assert f"{macs:,}" in shown and macs <= 0.6 * stages[0]["macs"]


def test_the_figures_of_a_compression_are_those_of_its_last_model(compressed, bundle):
    original, *_, last, _ = json.loads((bundle / "report.json").read_text())["stages"]
    figures = compressed.job.figures
    assert list(figures) == ["outcome", "accuracy", "agreement", "macs", "params", "bytes", "latency_ms"]
    assert figures["outcome"] == "pass" and figures["macs"] == last["macs"] / original["macs"]
    assert all(figures[key] == last[key] for key in ("accuracy", "agreement", "latency_ms"))


def test_a_bundles_recipe_repeats_the_run(folder, bundle):
    (folder / "mine" / "again.yaml").write_bytes((bundle / "recipe.yaml").read_bytes())
    assert main(["compress", "recipe=mine/again.yaml", "hydra.run.dir=second"]) == 0
    for name in ("plan.yaml", "model.safetensors"):
        assert (folder / "second" / "bundle" / name).read_bytes() == (bundle / name).read_bytes()


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


# ---- compress as a function ----


@pytest.mark.parametrize("check", ["check=default", LOOSE])
def test_nothing_checked_is_no_success(folder, capsys, check):
    untested = ["structures=[blocks]", "reconstruct=none", "+data.test=false", check]
    assert commands.compress(job("compress", *untested)) == 3
    assert "nothing was checked" in capsys.readouterr().out
    assert (folder / "out" / "bundle").is_dir()


def test_a_second_run_in_a_folder_is_refused_before_any_work(folder, bundle, monkeypatch):
    again = job("compress", out=str(folder / "other"))
    monkeypatch.setattr(api, "compress", None)
    with pytest.raises(FileExistsError, match="holds a bundle already; give the run another folder"):
        commands.compress(replace(again, out=bundle.parent))


def test_a_plan_file_is_the_one_applied(folder, bundle, monkeypatch):
    options = {}

    def compress(model, **given):
        options.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "compress", compress)
    path = folder / "mine" / "edited.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((bundle / "plan.yaml").read_text()) | {"edits": []}))
    with pytest.raises(KeyboardInterrupt):
        commands.compress(job("compress", f"plan={path}", "reconstruct=none", LOOSE, "check.correction=none"))
    assert options["plan"] == Plan.load(path) and options["plan"].edits == ()
    assert (options["reconstruct"], options["correction"], options["gates"][0].limit) == ("none", "none", 1.0)


def test_a_plan_for_another_model_is_refused(folder, bundle, capsys):
    assert main(["compress", OWN, f"plan={bundle / 'plan.yaml'}", "+model.widths=[8,12]"]) == 2
    err = capsys.readouterr().err
    assert "plan: layer" in err and err.count("\n") == 1
    assert written(folder) == []


def test_smallest_says_which_check_nothing_passes(folder, capsys):
    assert commands.compress(job("compress", *QUICK, "check.gates=[{measure: disagreement, limit: 0.001}]")) == 3
    shown = capsys.readouterr().out
    assert "not even the original passes" in shown and "no bundle was made" in shown
    assert "No smaller model passed" in (folder / "out" / "report.html").read_text()
    assert not list(folder.rglob("bundle"))


def test_a_search_in_which_nothing_passes_has_no_objective(folder):
    failed = job("compress", *QUICK, STRICT, "search.inconclusive=pass", "objective=macs")
    assert commands.compress(failed) == 1
    assert failed.figures == {"outcome": "fail"} and objective(failed.recipe, failed.figures) is None
    assert json.loads((folder / "out" / "report.json").read_text())["verdict"]["outcome"] == "fail"


# ---- validate ----


@pytest.mark.parametrize("limit, code", [(1.0, 0), (-1.0, 1)])
def test_validate_writes_the_verdict_and_returns_its_code(folder, bundle, limit, code):
    gates = f"check.gates=[{{measure: disagreement, limit: {limit}}}]"
    assert commands.validate(job("validate", f"bundle={bundle}", gates)) == code
    verdict = json.loads((folder / "out" / "verdict.json").read_text())
    assert verdict["outcome"] == ("fail" if code else "pass")
    assert verdict["gates"][0]["limit"] == limit


# ---- export ----


def test_a_bundle_is_exported_and_the_difference_is_printed(folder, bundle, capsys):
    assert commands.export(job("export", f"bundle={bundle}", "to=mine/small")) == 0
    shown = capsys.readouterr().out
    assert "exported as torch, read back and compared: largest difference" in shown
    assert sorted(path.name for path in (folder / "mine" / "small").iterdir()) == [
        "README.md", "export.json", "model.pt2", "plan.yaml"
    ]  # fmt: skip


def test_files_that_differ_are_code_1_and_one_line(folder, bundle, capsys, monkeypatch):
    def wrong(model, example, to):
        """Wrong files."""
        return formats.Written(lambda args, _: [model(*args) + 1], "usage")

    registry.parts("format")
    monkeypatch.setitem(registry._parts["format"], "torch", registry.Part("format", "torch", wrong))
    exported = job("export", f"bundle={bundle}", "format=torch")
    capsys.readouterr()
    assert commands.export(exported) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("simprune: format torch: output of the files differs") and err.count("\n") == 1
    assert list((folder / "out").iterdir()) == []


LOOSER = "gates: [{measure: accuracy_drop, limit: 0.2}, {measure: disagreement, limit: 0.25}]\n"
GATED = """defaults: [base, model: function, data: function, override check: loose, _self_]
model: {function: "users_parts:build"}
data: {function: "users_parts:tested"}
pruned: {function: "users_parts:build"}
device: cpu
"""


def test_a_release_pipeline_gets_pass_fail_or_too_little_data(folder, bundle, capsys):
    (folder / "mine" / "gated.yaml").write_text(GATED)
    (folder / "mine" / "check").mkdir()
    (folder / "mine" / "check" / "loose.yaml").write_text(LOOSER)
    weights = job("validate", LOOSE, f"bundle={bundle}").model.state_dict()
    save_file(weights | {"linear.weight": -weights["linear.weight"]}, folder / "mine" / "sabotaged.safetensors")
    sabotaged, few = "pruned.weights=mine/sabotaged.safetensors", "+data.count=10"
    runs = (
        ("good", 0, ["junit=reports/good.xml"], "200"),
        ("bad", 1, [sabotaged, "junit=reports/bad.xml"], "220"),
        ("few", 3, [few, "junit=reports/few.xml"], "202"),
    )
    for name, code, overrides, counts in runs:
        assert commands.validate(job("validate", *overrides, out=name, recipe="mine/gated.yaml")) == code
        suite = ElementTree.parse(f"reports/{name}.xml").getroot()
        assert [suite.get(key) for key in ("tests", "failures", "errors")] == list(counts), name
        assert [case.get("name") for case in suite] == ["accuracy_drop", "disagreement"]
        page = (folder / name / "verdict.html").read_text()
        assert "<script" not in page and "data:image/png" in page and "http:" not in page.replace("http://www.w3", "")
        assert json.loads((folder / name / "verdict.json").read_text())["count"] == (10 if name == "few" else 200)
    assert "samples would decide" in capsys.readouterr().out


def test_a_bundle_alone_does_not_call_a_users_function(folder, bundle, capsys):
    assert main(["validate", f"bundle={bundle}"]) == 2
    assert "would call users_parts:build" in capsys.readouterr().err
    assert written(folder) == []


def test_hashes_are_checked_before_anything_in_a_bundle_is_looked_at(folder, bundle, capsys, monkeypatch):
    shutil.copytree(bundle, folder / "theirs")
    (folder / "theirs" / "recipe.yaml").write_text("model: {name: function, function: 'os:system'}\n")
    monkeypatch.setattr("simprune.cli.recipe.compose.register_bundle_recipe", None)
    assert main(["validate", "bundle=theirs"]) == 2
    assert "recipe.yaml has changed since the bundle was saved" in capsys.readouterr().err


# ---- plan ----


def test_plan_writes_a_plan_and_shows_its_edits(folder, capsys):
    assert main(["plan", OWN]) == 0
    path, shown = the(folder, "plan.yaml"), capsys.readouterr().out
    plan = yaml.safe_load(path.read_text())
    assert plan["edits"] and all(edit["name"] in shown for edit in plan["edits"])
    assert path.parent.parts[-4:-1] == ("outputs", "plan", "own")
    assert not list(folder.rglob("job.json")) and not list(folder.rglob("sweep.json"))  # these are a sweep's


def test_an_analysis_leaves_out_what_is_protected(folder):
    quick = "analysis={chance:0,bootstrap:0,figures:false}"
    assert commands.analyze(job("analyze", "planner.protect=[layer1.*]", "structures=[channels]", quick)) == 0
    content = json.loads((folder / "out" / "redundancy.json").read_text())
    assert content["entries"] and not any(entry["name"].startswith("layer1.") for entry in content["entries"])
    assert {"name": "layer1.0.conv1", "reason": "it is protected"} in content["unprunable"]


def test_finalists_are_tried_shown_and_kept(folder, capsys):
    assert commands.plan(job("plan", "planner.finalists=3")) == 0
    tried = yaml.safe_load((folder / "out" / "plan.yaml").read_text())["planner"]["finalists"]
    assert len(tried) > 1 and all({"blocks", "expected", "measured"} <= set(entry) for entry in tried)
    assert sum(entry.get("chosen", False) for entry in tried) == 1
    shown = capsys.readouterr().out
    assert "Finalists" in shown and "chosen" in shown and "measured error" in shown


def test_a_frontier_is_a_page_a_table_a_figure_and_plans(folder, capsys, monkeypatch):
    monkeypatch.setattr("simprune.trace.timing.ROUNDS", 1)
    curve = job("plan", "budget=[0.8,0.02]", "control=1")
    assert commands.plan(curve) == 0
    shown = capsys.readouterr().out
    assert "unreachable" in shown and "depth 2%: " in shown and "joint" in shown
    points = json.loads((folder / "out" / "frontier.json").read_text())["points"]
    assert [point["budget"] for point in points] == [0.8, 0.02] * 4
    names = {path.name for path in (folder / "out").rglob("*.*")}
    assert {"frontier.html", "frontier.csv", "frontier.svg", "frontier.png", "joint_0.8.yaml"} <= names
    Plan.load("out/plans/joint_0.8.yaml").check(curve.model)


def test_the_flag_is_short_for_a_list_of_budgets(folder, monkeypatch):
    seen = []
    monkeypatch.setitem(commands.COMMANDS, "plan", lambda job: seen.append(job.recipe.budget) or 0)
    assert main(["plan", OWN, "--frontier"]) == 0
    assert main(["plan", OWN, "--frontier", "budget=[0.6]"]) == 0
    assert main(["plan", OWN, "--frontier", "budget={params:[0.6]}"]) == 0
    assert seen == [[0.9, 0.7, 0.5, 0.3], [0.6], {"params": [0.6]}]


# ---- analyze ----


def test_an_analysis_is_interrupted_and_goes_on(folder, capsys, monkeypatch):
    few = ["structures=[blocks]", "analysis.chance=2", "analysis.bootstrap=2", "analysis.figures=false"]
    assert main(["analyze", OWN, *few, "hydra.run.dir=whole"]) == 0
    assert not (folder / "whole" / "unfinished").exists()
    entries = json.loads((folder / "whole" / "redundancy.json").read_text())["entries"]
    assert {entry["kind"] for entry in entries} == {"block"}
    assert yaml.safe_load((folder / "whole" / "recipe.yaml").read_text())["structures"] == ["blocks"]
    shown = capsys.readouterr().out
    assert all(entry["name"] in shown for entry in entries) and "redundancy.json" in shown

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "describe_depth", interrupted)
        assert main(["analyze", OWN, *few, "hydra.run.dir=half"]) == 130
    assert "add resume=half to the same command" in capsys.readouterr().err.replace(str(folder) + "/", "")
    assert main(["analyze", OWN, *few, "resume=half", "measure=cka"]) == 2
    assert "other settings (recipe.measure" in capsys.readouterr().err
    (folder / "half" / "figures").symlink_to(folder / "mine")
    assert main(["analyze", OWN, *few, "resume=half"]) == 2
    assert "figures is a link" in capsys.readouterr().err
    (folder / "half" / "figures").unlink()
    assert main(["analyze", OWN, *few, "resume=half"]) == 0
    for name in ("redundancy.json", "blocks.csv"):
        assert (folder / "half" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    half, whole = (json.loads((folder / run / "analysis.json").read_text()) for run in ("half", "whole"))
    for stamp in ("command", "date"):
        assert half.pop(stamp) and whole.pop(stamp)
    assert half == whole


# ---- wrong input: one line, exit code 2, nothing written ----


@pytest.mark.parametrize("there", ["", "runs", "runs/mine", "../beside"])
def test_a_run_that_fails_removes_the_folders_that_it_made_and_no_other(folder, there):
    """Empty folders of the user's stay, in the working folder and outside of it."""
    inner = folder / "here"
    (inner / there).mkdir(parents=True)
    furnish(inner)
    os.chdir(inner)
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    out = f"{there or 'runs'}/mine/one"
    unreachable = ["plan", OWN, "structures=[blocks]", "budget.macs=1e-9"]  # said after the analysis
    assert main([*unreachable, f"hydra.run.dir={out}"]) == 2
    after = {path: path.stat().st_ino for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    (inner / out).mkdir(parents=True, exist_ok=True)
    assert main([*unreachable, f"hydra.run.dir={out}"]) == 2
    assert (inner / out).is_dir() and not any((inner / out).iterdir())


@pytest.mark.parametrize(
    "args, expected",
    [
        (["compres"], "did you mean 'compress'"),
        (["compress"], "name a recipe: recipe=NAME"),
        (["compress", "digits"], "cannot read 'digits': expected key=value, such as recipe=digits"),
        (["compress", "recipe"], "cannot read 'recipe': expected recipe=VALUE"),
        (["compress", "--recipe", "digits"], "no flag --recipe; write recipe=VALUE, without dashes"),
        (["compress", "--budget.macs=0.5"], "no flag --budget.macs; write budget.macs=0.5, without dashes"),
        (["--verison"], "no command '--verison'; did you mean '--version'?"),
        (["compress", "recipe=digist"], "did you mean 'digits'"),
        (["compress", "recipe=mine/onw.yaml"], "did you mean mine/own.yaml"),
        (["compress", OWN, "bugdet.macs=0.5"], "did you mean 'budget'"),
        (["compress", OWN, "budget.macs=2"], "macs must be a fraction in (0, 1] or an amount such as 60M; got 2"),
        (["compress", OWN, "budget.macs=1e-9"], "cannot be reached"),
        (["compress", OWN, "model.function=users_part:build"], "did you mean 'users_parts'"),
        (["compress", OWN, "plan=mine/own.yaml"], "expected a simprune plan"),
        (["compress", OWN, "budget=smallest", "resume=nowhere"], "no search or training to go on with in nowhere"),
        (["compress", OWN, "budget=smallest", "resume=mine", "-m"], "no sweep to go on with in mine"),
        (["plan", OWN, "resume=mine"], "resume goes on with one"),
        (["analyze", OWN, "resume=nowhere"], "no analysis to go on with in nowhere"),
        (["compress", OWN, "~nothing"], "nothing"),
        (["compress", OWN, "hydra.run.dir=/dev/null/x"], "/dev/null/x: Not a directory; choose another path"),
        (["compress", OWN, "--frontier"], "--frontier is for `simprune plan`"),
        (["validate", "bundle=nowhere"], "no bundle at nowhere"),
        (["validate", OWN, "bundle=mine"], "mine"),
        (["validate", OWN, "pruned.function=users_parts:build", "pruned.weights=nowhere.safetensors"],
         "no weights at nowhere.safetensors"),
        (["export", "bundle=nowhere"], "no bundle at nowhere"),
        (["export"], "give bundle=FOLDER"),
        (["export", OWN], "bundle is missing: add either bundle=FOLDER"),
        (["export", OWN, "pruned.function=users_parts:build", "format=onx"], "did you mean 'onnx'"),
        (["export", OWN, "pruned.function=users_parts:build", "format.opset=18"], "format: expected a name"),
        (["export", OWN, "pruned.function=users_parts:build", "to=mine"], "is no earlier export"),
        (["export", OWN, "pruned.function=users_parts:build", "format=transformers"], "choose torch or onnx"),
        (["compress", OWN, "format=onx"], "did you mean 'onnx'"),
        (["list", "mesures"], "did you mean 'measures'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(folder, capsys, args, expected):
    assert main(args) == 2
    out, err = capsys.readouterr()
    *progress, error = err.splitlines()
    assert error.startswith("simprune: error: ") and expected in error
    assert not progress or expected == "cannot be reached"  # only an analysis shows what can be reached
    assert out.strip() == "" and written(folder) == []


@pytest.mark.parametrize(
    "args, expected",
    [
        (["--multirum"], "did you mean '--multirun'"),
        (["--cfg"], "--cfg expects job or hydra or all; got nothing"),
        (["--cfg", "jbo"], "--cfg expects job or hydra or all; got jbo"),
        (["--config-dir="], "--config-dir expects a value; got nothing"),
    ],
)
def test_wrong_flags(args, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        split(args)


def test_arguments_are_sorted():
    args = ["--cfg", "job", "seed=7", "recipe=digits", "-m", "~finetune", "--info=searchpath"]
    assert split(args) == (["seed=7", "~finetune"], ["--cfg", "job", "-m", "--info", "searchpath"], "digits")


# ---- errors ----


def raised(function, *args, **options):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is reported
        function(*args, **options)
    return caught.value


def test_wrong_input_is_one_line(capsys, monkeypatch):
    error = raised(locate, "math.sqtr")
    assert report(error) == 2
    assert capsys.readouterr().err == "simprune: error: math has no 'sqtr'; did you mean 'sqrt' or 'isqrt'?\n"
    monkeypatch.setenv("SIMPRUNE_TRACEBACK", "1")
    assert report(error) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "simprune: error: math has" in err


def test_a_path_that_no_system_takes_is_one_line(capsys):
    assert report(raised(bundles.load, "a\0b", lambda: None)) == 2
    assert "a path has a zero byte in it" in capsys.readouterr().err


@pytest.mark.parametrize("function", [lambda: Fraction("no number"), lambda: did_you_mean("a", [{}["a key"]])])
def test_an_error_in_a_library_and_a_defect_are_not_blamed_on_the_input(capsys, function):
    assert report(raised(function)) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and "simprune: error" not in err


FAULTS = {
    "no such key": ("{}['images']", "KeyError: 'images'"),
    "no such entry": ("[][3]", "IndexError: list index out of range"),
    "no number": ("int('many')", "ValueError: invalid literal for int()"),
    "no file": ("open('nowhere.npz')", "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.npz'"),
    "in a library": ("torch.zeros(2).reshape(3)", "RuntimeError: shape '[3]' is invalid"),
    "two lines": ("exec('raise OSError(chr(97) + chr(10) + chr(98))')", "OSError: a ("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_in_a_users_function_names_it_with_file_and_line(folder, capsys, fault):
    statement, expected = FAULTS[fault]
    path = folder / "mine" / "users_parts.py"
    path.write_text(path.read_text().replace("    parts =", f"    {statement}\n    parts ="))
    assert main(["analyze", OWN]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"users_parts:load raised {expected}" in err
    assert f"({path}, line {path.read_text()[: path.read_text().index(statement)].count(chr(10)) + 1})" in err


LAZY = """
class Loader:
    def __init__(self, batches):
        self.batches = batches
    def __iter__(self):
        for number, batch in enumerate(self.batches):
            yield batch if number < 1 else {}["second"]

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.zeros(1, 8, 8) if index < 32 else {}["second"]

def lazy():
    return {"calibration": Loader(list(load()["calibration"]))}

def workers():
    return {"calibration": torch.utils.data.DataLoader(Rows(), 32, num_workers=1)}
"""


@pytest.mark.parametrize("function, where", [("lazy", "Loader.__iter__"), ("workers", "__getitem__")])
def test_an_error_in_a_users_loader_on_the_way_is_the_users(folder, capsys, function, where):
    path = folder / "mine" / "users_parts.py"
    path.write_text(path.read_text() + LAZY)
    assert main(["analyze", OWN, f"data.function=users_parts:{function}", "structures=[blocks]"]) == 2
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert "Traceback" not in err and f"KeyError: 'second' ({where} in {path}, line " in last


def test_a_defect_keeps_its_traceback_and_has_its_own_code(folder, capsys, monkeypatch):
    monkeypatch.setattr(commands, "ANALYZED", 3)  # so that simprune's own code raises
    assert main(["analyze", OWN]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and "TypeError: 'int' object is not iterable" in err and "simprune: error" not in err
    assert written(folder) == []


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


def test_cfg_job_shows_the_recipe_with_a_users_group_and_runs_nothing(folder, capsys):
    (folder / "mine" / "conf" / "check").mkdir(parents=True)
    (folder / "mine" / "conf" / "check" / "loose.yaml").write_text("gates: [{measure: disagreement, limit: 0.75}]\n")
    assert main(["compress", OWN, "--config-dir", "mine/conf", "check=loose", "--cfg", "job", "seed=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["seed"] == 7 and shown["check"]["gates"][0]["limit"] == 0.75
    assert written(folder) == []


def test_info_searchpath_names_the_built_in_folders(folder, capsys):
    assert main(["compress", "--info", "searchpath", OWN]) == 0
    assert "/conf" in capsys.readouterr().out


def test_every_list_is_plain_text(folder, capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("cka_debiased", "disagreement", "digits_layers", "resnet56", "arrays", "greedy", "unlabelled"):
        assert name in out
    for title in (
        "measures: similarity of representations (measure=ID)",
        "recipes (recipe=NAME)",
        "repairs (reconstruct)",
        "structures (structures)",
        "block_scores (block_score)",
        "corruptions (inputs of a gate)",
    ):
        assert title in out
    assert sum(line.startswith(tuple(LISTED)) for line in out.splitlines()) >= len(LISTED)
    assert "\x1b" not in out


@pytest.mark.parametrize("columns", [30, 60, 80, 130, 300])
def test_no_table_breaks_a_word_at_any_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ["unmistakable", "1,234,567 (50%)", "brackets [hf]", "", "two of three", "\u6f22\u5b57"]
    console.show(console.table("a title of several words", words, [words, words[::-1]], right=words[2:]))
    out = capsys.readouterr().out
    assert {word for text in words for word in text.split()} <= set(re.split(r"[\s:]+", out))
    assert all(cell_len(line) <= columns for line in out.splitlines())


def test_the_list_of_measures_shows_invariances_and_sources(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["list", "measures"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["cka"])
    assert "PT, OT, IS, TR" in line and "arXiv:1905.00414" in line


def test_brackets_are_text_and_no_markup(capsys):
    console.show(console.table("[bold]", ["[red]"], [["[blocks]"]]), None, "[residual]")
    out = capsys.readouterr().out
    assert all(word in out for word in ("[bold]", "[red]", "[blocks]", "[residual]")) and "None" not in out


def test_the_installed_command_runs_in_a_process_of_its_own(folder):
    script = "import sys; from simprune.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-W", "error", "-c", script, "plan", OWN]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    assert all(re.fullmatch(r"[a-z ]+: (\d+ in )?[\d.]+ s", line) for line in done.stderr.strip().splitlines())
    assert "score channels and heads: " in done.stderr  # one line a step, with its time, where there is no terminal
    assert the(folder, "plan.yaml").parent.parts[-4:-1] == ("outputs", "plan", "own")


def test_verdicts_map_to_the_documented_codes():
    assert commands.EXIT == {"pass": 0, "fail": 1, "inconclusive": 3}
    assert set(commands.EXIT) == set(checks.Outcome.__args__)
