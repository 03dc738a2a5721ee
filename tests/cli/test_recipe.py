"""Recipes: composition, the schema, checks before anything runs, and what an unnamed recipe may not do."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from simprune import functional, measures
from simprune.cli.recipe import (
    Recipe,
    build,
    builtin,
    explain,
    finetuning,
    gates,
    load_recipe,
    locate,
    objects,
    options,
    register_bundle_recipe,
    resolved,
    settings,
)
from simprune.planners.choosers import CHOOSERS
from simprune.sources.local import Data

RECIPES = options(builtin("recipes"))
TEMPLATES = {"own_model", "transformers_folder", "transformers_name"}  # the user names a model or data
GROUPS = sorted(folder.name for folder in builtin("conf").iterdir() if folder.is_dir())


def message(recipe: str, *overrides: str, command: str = "compress") -> str:
    """What a user is told about a recipe."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the text is what the test is about
        settings(load_recipe(recipe, overrides), command)
    return explain(caught.value) or str(caught.value.args[0])


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file and returns its path."""

    def write(text: str, name: str = "own") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


# ---- what is there ----


@pytest.mark.parametrize("name", RECIPES)
def test_every_built_in_recipe_composes_and_says_what_it_is(name):
    config = load_recipe(name)
    assert set(config) == {each.name for each in dataclasses.fields(Recipe)}
    assert len(RECIPES[name]) > 20


@pytest.mark.parametrize("name", sorted(set(RECIPES) - TEMPLATES))
def test_built_in_recipes_are_complete(name):
    assert settings(load_recipe(name), "compress").budget


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_composes_and_says_what_it_is(group):
    for name, what in options(builtin("conf") / group).items():
        assert len(what) > 10, name
        assert group in load_recipe("digits", [f"{group}={name}"])


@pytest.mark.parametrize("name", measures.names())
def test_every_measure_is_an_option_without_a_file(name):
    kind = measures.classes()[name]
    required = [f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    config = load_recipe("digits", [f"measure={name}"])
    if not required:
        assert build(OmegaConf.to_container(config.measure), "measure") == measures.get(name)


def test_every_planner_is_an_option():
    assert set(options(builtin("conf") / "planner")) == set(CHOOSERS)


def test_the_default_check_is_the_librarys():
    from simprune.checks import DEFAULT_GATES

    assert tuple(gates(settings(load_recipe("digits"), "compress"))) == DEFAULT_GATES
    assert {gate.measure for gate in DEFAULT_GATES} <= set(functional.names())


def test_a_recipe_in_another_folder_inherits_and_overrides(recipe):
    path = recipe("defaults: [digits, override measure: cka_rbf, _self_]\nmeasure: {threshold: 0.5}\nseed: 3\n")
    made = settings(load_recipe(path, ["budget.macs=0.25"]), "compress")
    assert (made.seed, made.budget["macs"], made.measure["threshold"], made.model["seed"]) == (3, 0.25, 0.5, 3)


def test_a_users_group_option_wins_over_the_built_in_one(recipe, tmp_path):
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "default.yaml").write_text("gates: [{measure: disagreement, limit: 0.5}]\n")
    made = settings(load_recipe(recipe("defaults: [digits, _self_]\n")), "compress")
    assert [gate.limit for gate in gates(made)] == [0.5]


def test_searchpath_in_a_recipe_adds_a_folder(recipe, tmp_path):
    (tmp_path / "more" / "check").mkdir(parents=True)
    (tmp_path / "more" / "check" / "mine.yaml").write_text("gates: [{measure: disagreement, limit: 0.25}]\n")
    path = recipe(
        f"defaults: [digits, override check: mine, _self_]\nhydra: {{searchpath: ['file://{tmp_path}/more']}}\n"
    )
    assert [gate.limit for gate in gates(settings(load_recipe(path), "compress"))] == [0.25]


def test_no_epochs_is_no_finetuning():
    assert finetuning(settings(load_recipe("digits", ["finetune=none"]), "compress")) is None
    assert finetuning(settings(load_recipe("digits"), "compress"))["epochs"] > 0


# ---- what is wrong is said in one line, before anything runs ----


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["bugdet.macs=0.5"], "did you mean 'budget'"),
        (["budget.mac=0.5"], "unknown cost 'mac'; did you mean 'macs'"),
        (["budget.macs=1.5"], "macs must be a fraction in (0, 1] or an amount such as 60M; got 1.5"),
        (["budget.macs=0"], "(0, 1]"),
        (["budget.macs=nan"], "(0, 1]"),
        (["budget.macs=null"], "give at least one of macs"),
        (["budget=null"], "give at least one of macs"),
        (["budget.macs=half"], "got 'half'"),
        (["budget=smalest"], "unknown 'smalest'; did you mean 'smallest'"),
        (["budget=[0.9,0.5]"], "a list is for the frontier of `simprune plan`"),
        (["budget={params:[0.9,0.5]}"], "a list is for the frontier of `simprune plan`"),
        (["budget={params:[0.9],macs:0.5}"], "along one kind of cost; got params, macs"),
        (["budget=7"], "expected costs to keep"),
        (["seed=1.5"], "seed: expected a whole number; got 1.5"),
        (["seed=-1"], "seed must not be negative"),
        (["control=maybe"], "control: expected a whole number; got maybe"),
        (["control=-1"], "control must not be negative"),
        (["structures=blocks"], "structures: expected a list"),
        (["structures=[chanels]"], "did you mean 'channels'"),
        (["structures=[]"], "structures is empty"),
        (["reconstruct=leastsquares"], "did you mean 'least_squares'"),
        (["replace=lineal"], "did you mean 'linear'"),
        (["analysis.inputs=3"], "at least 32; got 3"),
        (["measure=ckaa"], "measure has no option 'ckaa'; did you mean 'cka'"),
        (["measure=cka_rbf", "measure.treshold=1"], "did you mean 'threshold'"),
        (["planner=gredy"], "did you mean 'greedy'"),
        (["planner.name=gredy"], "did you mean 'greedy'"),
        (["+planner.options.depth=3"], "planner optimal takes no option 'depth'"),
        (["finetune.epoch=3"], "did you mean 'epochs'"),
        (["finetune.epochs=-1"], "expected epochs >= 0"),
        (["finetune.lr=0"], "lr > 0"),
        (["check.gates=[]"], "check.gates is empty"),
        (["check.gates=[{measure: disagrement, limit: 0.1}]"], "did you mean disagreement"),
        (["check.gates=[{measure: disagreement, limt: 0.1}]"], "did you mean 'limit'"),
        (["check.gates.0.confidence=2"], "confidence must lie in [0.5, 1)"),
        (["plan=nowhere.yaml"], "no plan file nowhere.yaml"),
        (["device=gpu"], "device 'gpu' cannot be used"),
        (["~model"], "model is missing"),
        (["model=function"], "model.function is missing"),
        (["+sede=3"], "did you mean 'seed'"),
        (["model.seed=${sede}"], "'sede' not found"),
        (["a=[1"], "cannot read 'a=[1'"),
        (["override measur: cka"], "cannot read"),
    ],
)
def test_wrong_overrides(overrides, expected):
    text = message("digits", *overrides)
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("defaults: [digits, _self_]\nbugdet: {macs: 0.5}\n", "no key 'bugdet'; did you mean 'budget'"),
        ("defaults: [digits, _self_]\nbudget: {mac: 0.5}\n", "did you mean 'macs'"),
        ("defaults: [digits, _self_]\nseed: many\n", "seed: expected a whole number; got many"),
        ("defaults: [base, model: digist, _self_]\n", "model has no option 'digist'; did you mean 'digits'"),
        ("defaults: [bsae, _self_]\n", "'bsae'"),
        ("defaults: [digits, override measur: cka, _self_]\n", "did you mean 'measure'"),
        ("defaults: [digits, _self_]\nbudget: {macs: 0.5\n", "own.yaml, line 3: not valid YAML"),
        ("defaults: [base, _self_]\nbudget: {macs: 0.5}\n", "data is missing"),
    ],
)
def test_wrong_recipe_files(recipe, text, expected):
    found = message(recipe(text))
    assert expected in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "budget, expected",
    [
        ("smallest", "searched by `simprune compress`"),
        ("[]", "the list is empty"),
        ("[0.5,1.5]", "shares of the macs in (0, 1]; got 1.5"),
        ("[0.5,0.5]", "listed twice"),
    ],
)
def test_budgets_that_make_no_plan(budget, expected):
    assert expected in message("digits", f"budget={budget}", command="plan")


@pytest.mark.parametrize("first", ["{macs: 0.5}", "smallest", "[0.9, 0.5]", "null"])
@pytest.mark.parametrize("then", [{"macs": 0.25}, "smallest", [0.75, 0.5]])
def test_any_budget_can_follow_any_other_on_the_command_line(recipe, first, then):
    path = recipe(f"defaults: [base, model: digits, data: digits, _self_]\nbudget: {first}\n")
    text = str(then).replace("'", "").replace(" ", "").replace(":", ": ")
    assert load_recipe(path, [f"budget={text}"]).budget == then


def test_validate_needs_a_bundle():
    assert "bundle is missing" in message("digits", command="validate")
    assert "no bundle folder nowhere" in message("digits", "bundle=nowhere", command="validate")


def test_recipes_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'digist'; did you mean 'digits'"):
        locate("digist")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ValueError, match=r"did you mean .*mine\.yaml"):
        locate(str(tmp_path / "mien.yaml"))
    with pytest.raises(ValueError, match="ends in .yaml"):
        locate(str(tmp_path / "mine.yml"))


# ---- objects ----


def test_targets_that_are_not_there():
    with pytest.raises(ValueError, match="did you mean 'resnet20'"):
        build({"_target_": "simprune.zoo.resnet21"}, "model")
    with pytest.raises(ValueError, match="simprune.zoo.resnet20: .*did you mean 'classes'"):
        build({"_target_": "simprune.zoo.resnet20", "clases": 3}, "model")


def test_what_a_target_raises_comes_through():
    with pytest.raises(ValueError, match="zero padding") as caught:
        build({"_target_": "simprune.zoo.ResidualCNN", "shortcut": "C"}, "model")
    assert caught.value.__cause__ is None


def own(model: dict, data: dict) -> Recipe:
    return Recipe(model=model, data=data, measure={"_target_": "simprune.measures.cka.CKA"}, device="cpu")


DIGITS = {"_target_": "simprune.sources.digits"}


def test_model_and_data_have_to_fit():
    measure, model, data = objects(own({"_target_": "simprune.zoo.ResidualCNN", "in_channels": 1}, DIGITS))
    assert measure.id == "cka" and isinstance(model, nn.Module) and isinstance(data, Data)
    with pytest.raises(ValueError, match="does not run on the first calibration batch: RuntimeError"):
        objects(own({"_target_": "simprune.zoo.ResidualCNN", "in_channels": 3}, DIGITS))
    with pytest.raises(ValueError, match=r"model must be a torch.nn.Module; got dict"):
        objects(own({"in_channels": 3}, DIGITS))
    with pytest.raises(ValueError, match="calibration must be an iterable of batches; got ResidualCNN"):
        objects(own(DIGITS, {"_target_": "simprune.zoo.ResidualCNN"}))


# ---- a recipe that the user did not name ----


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.nn.functional.torch.load",
        "simprune.sources.local.os.remove",
        "simprune.sources.local.names.resolve",
        "simprune.bundle.save",
        "a_module_that_would_be_imported.f",
    ],
)
def test_an_unnamed_recipe_calls_only_what_is_harmless(target):
    for node in ({"_target_": target}, {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": target}]}):
        with pytest.raises(ValueError, match="is not simprune's own; if you trust it, name"):
            build(node, "model", trusted=False)
    assert "a_module_that_would_be_imported" not in sys.modules


def test_an_unnamed_recipe_calls_no_function_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "simprune.sources.model_from", "function": "their_module:build"}
    with pytest.raises(ValueError, match="would call their_module:build"):
        build(node, "model", trusted=False)


def test_an_unnamed_recipe_may_use_the_zoo_and_torchs_layers():
    node = {"_target_": "simprune.sources.model_from", "function": "simprune.zoo:resnet20"}
    assert isinstance(build(node, "model", trusted=False), nn.Module)
    layer = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    assert isinstance(build(layer, "model", trusted=False), nn.Linear)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hydra: {callbacks: {x: {_target_: os.system}}}\n", "hydra"),
        ("defaults: [base]\n", "not the recipe of a bundle"),
        ("[1, 2]\n", "not the recipe of a bundle"),
        ("bugdet: {}\n", "bugdet"),
    ],
)
def test_a_bundles_recipe_holds_a_recipes_keys_alone(tmp_path, text, expected):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(Exception, match=expected):
        register_bundle_recipe(str(tmp_path))


def test_a_resolved_recipe_is_a_recipe_again(recipe):
    first = load_recipe("digits", ["budget.macs=0.3", "measure=cka_rbf", "seed=4"])
    import yaml

    path = recipe(yaml.safe_dump(resolved(first), sort_keys=False))
    again = load_recipe(path)
    assert settings(again, "compress") == settings(first, "compress")
    assert resolved(again) == resolved(first)


# ---- the wheel ----


def test_the_wheel_holds_conf_and_recipes_inside_the_package(tmp_path):
    """The file map that an installer would unpack; building needs no network."""
    root = builtin("conf").parent
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root, check=True, capture_output=True,
    )  # fmt: skip
    import zipfile

    (wheel,) = Path(tmp_path).glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "recipes"):
        for path in builtin(folder).rglob("*.yaml"):
            assert f"simprune/{path.relative_to(root).as_posix()}" in names
    assert {"simprune/cli/main.py", "simprune/report/page.html"} <= names
    assert not [name for name in names if name.startswith(("conf/", "recipes/", "tests/"))]


def test_device_auto_is_a_gpu_if_there_is_one():
    from simprune.cli.recipe import device

    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device(own({}, {})).type == "cpu"
    assert device(dataclasses.replace(own({}, {}), device="auto")).type == expected
