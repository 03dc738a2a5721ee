"""Recipes: composition, the schema, checks before anything runs, and what an unnamed recipe may not do."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from torch import nn

from simprune import measures
from simprune.arguments import check_gates
from simprune.cli.folders import builtin, recipes
from simprune.cli.recipe.choices import GROUPS
from simprune.cli.recipe.compose import load_recipe, locate, register_bundle_recipe, resolved
from simprune.cli.recipe.explain import explain
from simprune.cli.recipe.objects import build, objects
from simprune.cli.recipe.schema import RecipeSchema, device, gates, settings
from simprune.core.registry import parts
from simprune.settings import Recipe, recipe_table
from simprune.sources import Data

RECIPES = recipes()
# the user names a model or data
TEMPLATES = {
    "own_model", "language_model_depth", "language_model_width", "sentence_encoder", "encoder_decoder",
    "mixture_of_experts", "vision_transformer",
}  # fmt: skip
LAUNCHERS = {"sweep_submitit": "hydra_submitit_launcher", "sweep_ray": "hydra_ray_launcher"}  # of simprune[cluster]


def installed(names: Iterable[str]) -> list[Any]:
    """Recipes, of which those are skipped whose launcher is not installed."""
    missing = {name for name, package in LAUNCHERS.items() if find_spec(f"hydra_plugins.{package}") is None}
    skip = pytest.mark.skip(reason="needs simprune[cluster]")
    return [pytest.param(name, marks=skip) if name in missing else name for name in names]


def message(recipe: str | DictConfig, *overrides: str, command: str = "compress") -> str:
    """The error about a recipe by name or file, or about one that is composed already."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the text is what the test is about
        settings(load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe, command)
    return explain(caught.value) or str(caught.value.args[0])


@pytest.fixture(scope="module")
def digits() -> DictConfig:
    """The recipe of the digits, composed once for the tests of values, which need no composition of their own."""
    return load_recipe("digits")


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file and returns its path."""

    def write(text: str, name: str = "own") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


# ---- what is there ----


@pytest.mark.parametrize("name", installed(RECIPES))
def test_every_built_in_recipe_composes_and_says_what_it_is(name):
    config = load_recipe(name)
    assert set(config) == {each.name for each in dataclasses.fields(RecipeSchema)}
    assert len(RECIPES[name]) > 20


@pytest.mark.parametrize("name", installed(sorted(set(RECIPES) - TEMPLATES)))
def test_built_in_recipes_are_complete(name):
    assert settings(load_recipe(name), "compress").budget


@pytest.mark.parametrize("key, kind", GROUPS.items())
def test_every_part_is_an_option_without_a_file(key, kind):
    for name, part in parts(kind).items():
        assert len(part.summary) > 10, name
        assert ConfigStore.instance().load(f"{key}/{name}.yaml").node == {"name": name}
    assert load_recipe("digits", [f"{key}={name}"])[key].name == name


@pytest.mark.parametrize("name", measures.names())
def test_every_measure_is_built_by_its_name(name):
    kind = measures.classes()[name]
    required = [f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if not required:
        assert build("measure", name) == measures.get(name)


def test_the_default_check_is_the_librarys_which_fits_the_model():
    assert gates(settings(load_recipe("depth_only"), "compress")) is None


def test_a_recipe_in_another_folder_inherits_and_overrides(recipe):
    path = recipe("defaults: [digits, override measure: cka_rbf, _self_]\nmeasure: {threshold: 0.5}\nseed: 3\n")
    made = settings(load_recipe(path, ["budget.macs=0.25"]), "compress")
    assert (made.seed, made.budget["macs"], made.measure["threshold"]) == (3, 0.25, 0.5)


GATES = "check: {gates: [{measure: disagreement, limit: 0.5}]}\n"


def test_gates_stand_in_for_the_set_that_a_recipe_builds_on_and_a_typed_set_for_gates(recipe):
    path = recipe("defaults: [digits, _self_]\n" + GATES)
    alone = load_recipe(path)
    assert [gate.limit for gate in gates(settings(alone, "compress"))] == [0.5]
    assert alone.check.get("name") is None  # so that nothing shows the name of a set that is not checked
    typed = load_recipe(path, ["check=strict"])
    assert gates(settings(typed, "compress")) == check_gates("strict") and "gates" not in typed.check


def test_a_check_set_and_gates_in_one_place_are_an_error(recipe):
    both = "check: {name: strict, gates: [{measure: disagreement, limit: 0.5}]}\n"
    with pytest.raises(ValueError, match="expected a check set or a list of gates; got both"):
        load_recipe(recipe("defaults: [digits, _self_]\n" + both))
    typed = ["check=strict", "check.gates=[{measure: disagreement, limit: 0.5}]"]
    with pytest.raises(ValueError, match="expected a check set or a list of gates; got both"):
        load_recipe(recipe("defaults: [digits, _self_]\n"), typed)
    cosine = GATES.replace("{gates", "{cosine: 0.9, gates")
    config = load_recipe(recipe("defaults: [digits, override check: embedding, _self_]\n" + cosine))
    with pytest.raises(ValueError, match="cosine is an option of a check set; leave it out, or gates"):
        settings(config, "compress")


def test_a_users_group_option_wins_over_the_built_in_one(recipe, tmp_path):
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "default.yaml").write_text("gates: [{measure: disagreement, limit: 0.5}]\n")
    made = settings(load_recipe(recipe("defaults: [depth_only, _self_]\n")), "compress")
    assert [gate.limit for gate in gates(made)] == [0.5]


def test_searchpath_in_a_recipe_adds_a_folder(recipe, tmp_path):
    (tmp_path / "more" / "check").mkdir(parents=True)
    (tmp_path / "more" / "check" / "mine.yaml").write_text("gates: [{measure: disagreement, limit: 0.25}]\n")
    path = recipe(
        f"defaults: [digits, override check: mine, _self_]\nhydra: {{searchpath: ['file://{tmp_path}/more']}}\n"
    )
    assert [gate.limit for gate in gates(settings(load_recipe(path), "compress"))] == [0.25]


OVERRIDES = [
    ["bundle=somewhere", "plan=a.yaml", "data=arrays", "data.path=x.npz", "budget=smallest", "structures=[blocks]",
     "seed=3", "control=1", "device=cpu", "replace=mean", "reconstruct=none", "trials=[0.2]", "search.kind=params",
     "finetune=none", "other=there", "resume=there", "junit=x.xml", "objective=macs", "planner=greedy",
     "planner.blocks=2", "check=strict", "measure=cka", "pruned.weights=w", "analysis.chance=0"],
    ["budget=[0.9,0.5]", "reconstruct={layer1: bn, fc: none}", "finetune=default", "finetune.epochs=2", "plan=null"],
    ["budget={params: 0.4}", "budget.macs=0.3", "score=taylor"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_folders_beside_a_recipe_change_no_key_and_a_resolved_recipe_takes_the_same_overrides(
    recipe, tmp_path, overrides
):
    path = recipe("defaults: [digits, _self_]\n")
    alone = resolved(load_recipe(path, overrides))
    whole = recipe(yaml.safe_dump(resolved(load_recipe(path))), "whole")
    for key in (field.name for field in recipe_table()):
        (tmp_path / key).mkdir()
        (tmp_path / key / "note.txt").touch()
    assert resolved(load_recipe(path, overrides)) == alone
    assert resolved(load_recipe(whole, overrides)) == alone


def test_no_epochs_is_no_finetuning():
    assert settings(load_recipe("digits", ["finetune=none"]), "compress").finetune is None
    assert settings(load_recipe("digits", ["finetune=null"]), "compress").finetune is None
    assert settings(load_recipe("digits", ["finetune=default"]), "compress").finetune.epochs > 0
    assert settings(load_recipe("digits", ["finetune=7"]), "compress").finetune.epochs == 7


# ---- what is wrong is said in one line, before anything runs ----


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["bugdet.macs=0.5"], "did you mean 'budget'"),
        (["budget.mac=0.5"], "unknown cost 'mac'; did you mean 'macs'"),
        (["budget.macs=1.5"], "macs must be a fraction in (0, 1] or an amount such as 60M; got 1.5"),
        (["planner=threshold", "planner.threshold=0.9"], "give either a budget or a threshold"),
        (["budget=[0.9,0.5]"], "a list is for the frontier of `simprune plan`"),
        (["budget={params:[0.9,0.5]}"], "a list is for the frontier of `simprune plan`"),
        (["budget={params:[0.9],macs:0.5}"], "along one kind of cost; got params, macs"),
        (["measure=ckaa"], "measure has no option 'ckaa'; did you mean 'cka'"),
        (["measure=cka_rbf", "measure.treshold=1"], "did you mean 'threshold'"),
        (["planner=gredy"], "did you mean 'greedy'"),
        (["planner.depth=3"], "planner optimal takes no option 'depth'"),
        (["planner.roundto=8"], "did you mean 'round_to'"),
        (["finetune.epoch=3"], "did you mean 'epochs'"),
        (["check=strickt"], "did you mean 'strict'"),
        (["~model"], "model is missing"),
        (["model=function"], "model function needs function"),
        (["check=null"], "check: expected a name, or a mapping with name and options; got None"),
        (["planner=3"], "planner: expected a name, or a mapping with name and options; got 3"),
        (["finetune=-3"], "finetune.epochs: expected a whole number of at least 0; got -3"),
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
    "override, expected",
    [
        ("budget.macs=0", "(0, 1]"),
        ("budget.macs=nan", "(0, 1]"),
        ("budget.macs=null", "give at least one of macs"),
        ("budget=null", "give at least one of macs"),
        ("budget.macs=half", "got 'half'"),
        ("budget=smalest", "unknown 'smalest'; did you mean 'smallest'"),
        ("budget=7", "expected costs to keep"),
        ("seed=1.5", "seed: expected a whole number of at least 0; got 1.5"),
        ("seed=-1", "seed: expected a whole number of at least 0; got -1"),
        ("control=maybe", "control: expected a whole number of at least 0; got 'maybe'"),
        ("control=-1", "control: expected a whole number of at least 0; got -1"),
        ("structures=blocks", "structures: expected a list"),
        ("structures=[chanels]", "did you mean 'channels'"),
        ("structures=[]", "structures is empty"),
        ("reconstruct=leastsquares", "did you mean 'least_squares'"),
        ("trials=0.2", "trials: expected a list of numbers in (0, 1), such as [0.2]; got 0.2"),
        ("replace=lineal", "did you mean 'linear'"),
        ("analysis.inputs=3", "analysis.inputs: expected a whole number of at least 32; got 3"),
        ("planner.name=gredy", "did you mean 'greedy'"),
        ("finetune.epochs=-1", "finetune.epochs: expected a whole number of at least 0; got -1"),
        ("finetune.lr=0", "finetune.lr: expected a number above 0 or null; got 0"),
        ("check.gates=[]", "check.gates is empty"),
        ("check.gates=[{measure: disagrement, limit: 0.1}]", "did you mean 'disagreement'"),
        ("check.gates=[{measure: disagreement, limt: 0.1}]", "did you mean 'limit'"),
        ("check.gates=[{measure: ece, limit: 1, confidence: 2}]", "confidence must lie in [0.5, 1)"),
        ("plan=nowhere.yaml", "no plan file nowhere.yaml"),
        ("device=gpu", "device 'gpu' cannot be used"),
        ("search.kind=mac", "search.kind: unknown 'mac'; did you mean 'macs'"),
        ("planner.finalists=1", "planner.finalists: expected 0, or a whole number of at least 2"),
    ],
)
def test_wrong_values(digits, override, expected):
    key, _, value = override.partition("=")
    config = digits.copy()
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    text = message(config)
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("defaults: [digits, _self_]\nbugdet: {macs: 0.5}\n", "no key 'bugdet'; did you mean 'budget'"),
        ("defaults: [digits, _self_]\nbudget: {mac: 0.5}\n", "did you mean 'macs'"),
        ("defaults: [digits, _self_]\nseed: many\n", "seed: expected a whole number of at least 0; got 'many'"),
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
        ("smallest", "searched by compress"),
        ("[]", "the list is empty"),
        ("[0.5,1.5]", "budgets: expected a list of numbers in (0, 1]"),
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


def test_validate_needs_a_bundle(digits, tmp_path):
    assert "bundle is missing" in message(digits, command="validate")
    both = OmegaConf.merge(digits, {"bundle": str(tmp_path), "pruned": {"function": "torch.nn:Linear"}})
    assert "both given" in message(both, command="validate")
    assert "no bundle folder nowhere" in message("digits", "bundle=nowhere", command="validate")


def test_recipes_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'digist'; did you mean 'digits'"):
        locate("digist")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ValueError, match=r"did you mean .*mine\.yaml"):
        locate(str(tmp_path / "mien.yaml"))
    with pytest.raises(ValueError, match="ends in .yaml"):
        locate(str(tmp_path / "mine.yml"))


# ---- choices ----


@pytest.mark.parametrize(
    "body, overrides, expected",
    [
        ("score: magnitude", [], {"name": "magnitude"}),
        ("score: {name: random, seed: 2}", [], {"name": "random", "seed": 2}),
        ("score: {name: random, seed: 2}", ["score=magnitude"], {"name": "magnitude"}),
        ("score: magnitude", ["score=random", "score.seed=3"], {"name": "random", "seed": 3}),
        ("", ["score={name: random, seed: 4}"], {"name": "random", "seed": 4}),
    ],
)
def test_a_choice_is_a_name_or_a_mapping_and_the_command_line_decides(recipe, body, overrides, expected):
    score = settings(load_recipe(recipe(f"defaults: [digits, _self_]\n{body}\n"), overrides), "compress").score
    assert ({"name": score} if isinstance(score, str) else score) == expected


def test_a_planners_constraints_stay_when_another_planner_is_named(recipe):
    path = recipe("defaults: [base, model: digits, data: digits, override planner: optimal, _self_]\n"
                  "planner: {round_to: 8}\nbudget: {macs: 0.5}\n")  # fmt: skip
    assert settings(load_recipe(path), "compress").planner.name == "optimal"
    planner = settings(load_recipe(path, ["planner=greedy", "planner.min_width=2"]), "compress").planner
    assert (planner.name, planner.round_to, planner.min_width) == ("greedy", 8, 2)


def test_an_option_can_be_given_to_a_choice_that_the_recipe_names_alone(recipe):
    path = recipe("defaults: [digits, _self_]\nplanner: optimal\nscore: taylor\n")
    planner = settings(load_recipe(path, ["planner.round_to=8"]), "compress").planner
    assert (planner.name, planner.round_to) == ("optimal", 8)


def test_a_named_check_set_replaces_a_recipes_gates(recipe):
    path = recipe(
        "defaults: [digits, _self_]\ncheck: {gates: [{measure: disagreement, limit: 0.5}], correction: none}\n"
    )
    own = settings(load_recipe(path), "compress")
    assert [gate.limit for gate in gates(own)] == [0.5]
    named = settings(load_recipe(path, ["check=strict"]), "compress")
    assert len(gates(named)) == 6 and named.check.correction == "none"


def test_the_seed_of_a_recipe_reaches_model_and_data(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = recipe("defaults: [digits, _self_]\nmodel: {widths: [4], depths: [1], epochs: 0}\ndevice: cpu\n")
    first, second = (objects(settings(load_recipe(path, [f"seed={seed}"]), "compress")) for seed in (0, 1))
    assert not torch.equal(next(first[1].parameters()), next(second[1].parameters()))
    assert first[2].train.shuffle == 0 and second[2].train.shuffle == 1


# ---- objects ----


def test_functions_that_are_not_there():
    with pytest.raises(ValueError, match="did you mean 'resnet20'"):
        build("model", {"name": "function", "function": "simprune.zoo:resnet21"})
    with pytest.raises(ValueError, match="simprune.zoo:resnet20: .*did you mean 'classes'"):
        build("model", {"name": "function", "function": "simprune.zoo:resnet20", "clases": 3})
    with pytest.raises(ValueError, match="did you mean"):
        build("model", {"name": "function", "function": "simprune.zo:resnet20"})
    with pytest.raises(FileNotFoundError, match="no weights at nowhere.safetensors"):
        build("model", {"name": "resnet20", "weights": "nowhere.safetensors"})
    with pytest.raises(FileNotFoundError, match="no file nowhere.npz"):
        build("data", {"name": "arrays", "path": "nowhere.npz"})
    with pytest.raises(ValueError, match="_target_ is not read; write model: {name: function"):
        build("model", {"_target_": "simprune.zoo.resnet20"})


def own(function: str = "simprune.zoo:ResidualCNN", data: str = "digits", **options) -> Recipe:
    source = {"name": "function", "function": function} | options
    return Recipe(model=source, data=data, measure="cka", device="cpu")


def test_model_and_data_have_to_fit():
    measure, model, data = objects(own(in_channels=1))
    assert measure.id == "cka" and isinstance(model, nn.Module) and isinstance(data, Data)
    with pytest.raises(ValueError, match="does not run on the first calibration batch: RuntimeError"):
        objects(own(in_channels=3))
    with pytest.raises(ValueError, match=r"must return a torch.nn.Module, got Data"):
        objects(own("simprune.sources:digits"))


# ---- a recipe that the user did not name ----


@pytest.mark.parametrize(
    "function",
    [
        "os:system",
        "torch:load",
        "torch.hub:load",
        "torch.nn:functional.torch.load",
        "torch.nn.functional:torch.load",
        "simprune.sources.functions:resolve",
        "simprune.bundle:save",
        "a_module_that_would_be_imported:f",
    ],
)
def test_an_unnamed_recipe_calls_only_what_is_harmless(function):
    with pytest.raises(ValueError, match="is not simprune's own; if you trust it, name"):
        build("model", {"name": "function", "function": function}, trusted=False)
    assert "a_module_that_would_be_imported" not in sys.modules


def test_an_unnamed_recipe_calls_no_function_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="would call their_module:build"):
        build("model", {"name": "function", "function": "their_module:build"}, trusted=False)


def test_an_unnamed_recipe_uses_no_part_of_another_package(monkeypatch):
    monkeypatch.setattr("simprune.core.registry._parts", {"model": {}, "data": {}} | {})
    from simprune.core.registry import Part, _parts

    def theirs() -> nn.Module:
        raise SystemExit("called")

    _parts["model"]["theirs"] = Part("model", "theirs", theirs)
    with pytest.raises(ValueError, match="which is not simprune's own"):
        build("model", "theirs", trusted=False)


def test_an_unnamed_recipe_may_use_the_zoo_and_torchs_layers():
    node = {"name": "function", "function": "simprune.zoo:resnet20"}
    assert isinstance(build("model", node, trusted=False), nn.Module)
    layer = {"name": "function", "function": "torch.nn:Linear", "in_features": 2, "out_features": 3}
    assert isinstance(build("model", layer, trusted=False), nn.Linear)


@pytest.mark.parametrize(
    "choice",
    [
        {"name": "function", "function": "torch.nn:Linear", "in_features": 10**6, "out_features": 10**6},
        {"name": "function", "function": "torch.nn:Embedding", "num_embeddings": 10**12, "embedding_dim": 10**3},
        {"name": "function", "function": "torch.nn:Transformer", "num_encoder_layers": 10**9, "d_model": 8, "nhead": 1},
        {"name": "function", "function": "simprune.zoo:VGG", "widths": [10**7, 10**7], "depths": [1, 1]},
        {"name": "function", "function": "simprune.zoo:ResidualCNN", "widths": [10**9], "depths": [1]},
        {"name": "digits", "widths": [16, 32, 10**8]},
        {"name": "digits", "depths": [10**9, 3, 3]},
        {"name": "digits", "epochs": 10**12},
    ],
    ids=str,
)
def test_an_unnamed_recipe_that_asks_for_more_than_there_is_is_refused_before_memory_is_taken(choice, monkeypatch):
    monkeypatch.setattr("simprune.core.sizes.OPERATIONS", 5_000)

    def fill(tensor, *_, **options):
        return tensor if tensor.is_meta else pytest.fail("a tensor is filled")

    monkeypatch.setattr("torch.Tensor.uniform_", fill)
    with pytest.raises(ValueError, match="expected at most") as caught:
        build("model", choice, trusted=False)
    assert "\n" not in str(caught.value)


def bomb(depth=12):
    """Lists of aliases of lists of aliases: 9 ** depth values in a few hundred bytes."""
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, depth)]
    return "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels]) + "\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model: {name: function, function: 'os:system', command: touch hacked}\n", "would call os:system"),
        ("model: {name: function, function: 'simprune.sources:model_from', _args_: ['os:system']}\n", "_args_"),
        ("model: {name: function, function: 'simprune.sources:pretrained', trust_remote_code: true}\n", "would call"),
        ("model: {name: function, function: 'torch.nn.utils:parameters_to_vector'}\n", "would call"),
        ("model: {name: function, function: 'torch.nn:functional.torch.load'}\n", "would call"),
        ("model: {name: function, function: ['os:system']}\n", "would call"),
        ("model: {name: transformers, pretrained: theirs, trust_remote_code: true}\n", "trust_remote_code=True"),
        ("model: {name: transformers, pretrained: x, attn_implementation: a/kernel}\n", "attn_implementation"),
        ("data: {name: function, function: 'simprune.zoo:VGG'}\n", "would call"),
        ("check: {name: tasks, tasks: [theirs.yaml]}\n", "tasks of lm_eval"),
        ("check: {gates: [{measure: task_accuracy_drop, limit: 1}]}\n", "tasks of lm_eval"),
        ("seed: '${oc.env:HOME}'\n", "interpolation"),
        ("device: '${a}${b}'\n", "interpolation"),
        ("model: {'${x}': 1}\n", "the key"),
        ("model: {_target_: os.system}\n", "private name '_target_'"),
        ("score: {name: x, deep: [{__class__: 1}]}\n", "private name '__class__'"),
        ("model: !!python/name:os.system\n", "tag"),
        ("seed: 2020-01-01\n", "holds a date"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands there twice"),
        (bomb(), "aliases"),
        ("a: " + "[" * 100_000, "levels"),
        ("a: " + "{b: " * 100_000, "levels"),
        ("a: &a [*a]\n", "alias"),
        ("x: '" + "y" * (1 << 20) + "'\n", "at most 1,048,576 bytes"),
        (b"seed: \xff\n", "UTF-8"),
        (b"\x00", "not valid YAML"),
    ],
)
def test_a_bundles_recipe_that_could_run_something_is_refused_before_it_is_resolved(
    tmp_path, monkeypatch, text, expected
):
    """In one line, by the reader of the file: neither Hydra nor the registry's functions see any of it."""
    (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr("simprune.core.names.locate", None)
    monkeypatch.setattr("simprune.cli.recipe.compose.OmegaConf.merge", None)
    with pytest.raises(ValueError, match=expected) as caught:
        register_bundle_recipe(str(tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_of_a_bundles_recipe_only_what_rebuilds_and_checks_the_model_is_read(tmp_path):
    text = "seed: 3\nscore: {name: theirs}\nplan: /etc/passwd\nto: there\npruned: {function: 'os:system'}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    register_bundle_recipe(str(tmp_path))
    stored = ConfigStore.instance().load("bundle.yaml").node
    assert stored.seed == 3 and set(stored) == {"defaults", "seed"}


@pytest.mark.parametrize(
    "text, expected",
    [
        (b"seed: \xff\n", "expected a text in UTF-8; got the byte 0xff at 6"),
        (b"seed: 1\nseed: 2\n", "stands there twice, in lines 1 and 2"),
        (b"\x00", "not valid YAML"),
        (bomb().encode(), "aliases"),
        (b"a: " + b"[" * 5000, "levels"),
        (b"defaults:\n", "defaults: expected a list"),
        (b"", "expected a recipe, such as model: digits; got nothing"),
    ],
)
def test_a_damaged_recipe_file_is_one_line(recipe, text, expected):
    path = recipe("")
    Path(path).write_bytes(text)
    assert expected in message(path)


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
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device(own()).type == "cpu"
    assert device(dataclasses.replace(own(), device="auto")).type == expected
