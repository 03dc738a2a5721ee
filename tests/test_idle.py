"""An option changes something, or is refused in one line before the model runs; a recipe may hold what others read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.cli.recipe.compose import load_recipe
from simprune.cli.recipe.schema import settings
from simprune.cli.recipe.unread import refuse_unread, without_effect
from simprune.core.options import listed
from simprune.idle import effective, idle, refuse_idle
from simprune.settings import PYTHON_ONLY, Planner, Settings, recipe_table
from simprune.studies import study

# A value of every option that is not its default.
VALUES = {
    "budget": {"macs": 0.7}, "budgets": (0.8,), "kind": "params", "measure": "cka", "structures": ("channels",),
    "score": "magnitude", "block_score": "block_influence", "replace": "linear", "trials": (0.3,),
    "planner": {"protect": ["0"]}, "reconstruct": "none", "outputs": {"aux": 0.1}, "finetune": 1, "gates": "strict",
    "correction": "none", "control": 2, "rounds": 2, "schedule": "linear", "search": {"tolerance": 0.2}, "seed": 3,
    "planner.name": "random", "planner.options": {"name": "threshold", "threshold": 0.5}, "planner.round_to": 2,
    "planner.min_width": 2, "planner.max_share": 0.5, "planner.loader": "transformers", "planner.blocks": 1,
    "planner.finalists": 2, "planner.batch_size": 4, "planner.protect": ["0"],
}  # fmt: skip
MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
BATCHES = [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]
PLAN = sp.plan(sp.analyze(MODEL, BATCHES))
RUNS = [
    ("analyze", {}, {}),
    ("analyze", {"trials": (0.2,)}, {"damage": False}),
    ("analyze", {"structures": ("channels",)}, {}),
    ("analyze", {"structures": ("blocks", "sub_blocks")}, {}),
    ("compress", {}, {}),
    ("compress", {"rounds": 2}, {}),
    ("compress", {}, {"plan": PLAN}),
    ("compress", {"control": 1}, {"plan": PLAN}),
    ("frontier", {"structures": ("heads",)}, {}),
]
COMMANDS = ("analyze", "plan", "compress", "validate", "export")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The recipe of the demo by command; a bundle is typed for all of them."""
    config = load_recipe("digits", [f"bundle={tmp_path_factory.mktemp('bundle')}"])
    return {command: settings(config, command) for command in COMMANDS}


def option(name: str) -> dict:
    """An argument that sets an option to another value than its default."""
    table, _, inner = name.rpartition(".")
    if not table:
        return {name: VALUES[name]}
    return {table: VALUES[name] if inner == "options" else {"name": "greedy", inner: VALUES[name]}}


def test_every_option_has_another_value_here():
    assert VALUES.keys() >= {entry.name for entry in listed(Settings)}
    assert VALUES.keys() >= {f"planner.{entry.name}" for entry in listed(Planner)}


@pytest.mark.parametrize("function, base, facts", RUNS)
def test_options_without_an_effect_are_refused_before_the_model_runs(function, base, facts):
    def runs(*_):
        pytest.fail("the model runs")

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model.register_forward_pre_hook(runs)
    without = idle(Settings(**base), function, plan="plan" in facts, damage=facts.get("damage", True))
    heads = {name.partition(".")[0] for name in without}
    assert heads
    for name in without:
        with pytest.raises(ValueError, match=rf"^({'|'.join(heads)})(\.\w+)? has no effect: [^\n]+$"):
            getattr(sp, function)(model, calibration=BATCHES, **facts, **base | option(name))


@pytest.mark.parametrize("function, base, facts", RUNS)
def test_defaults_have_no_need_of_an_effect_and_recipes_are_cut_to_what_is_read(function, base, facts):
    refuse_idle(Settings(**base), function, plan="plan" in facts)
    full = Settings(**{name: value for name, value in VALUES.items() if "." not in name} | base)
    refuse_idle(effective(full, function, plan="plan" in facts), function, plan="plan" in facts)


def test_what_a_plan_cannot_use_is_refused():
    redundancy = sp.analyze(MODEL, BATCHES)
    with pytest.raises(ValueError, match="reconstruct has no effect"):
        sp.plan(redundancy, model=MODEL, calibration=BATCHES, reconstruct="none")
    with pytest.raises(ValueError, match="timer has no effect"):
        sp.plan(redundancy, model=MODEL, timer=lambda *_: 1.0)
    both = sp.plan(redundancy, planner=Planner(round_to=4), min_width=2)
    assert both.planner["round_to"] == 4 and both.planner["min_width"] == 2


@pytest.mark.parametrize("size", ["4", 0, 1 << 40])
def test_a_plan_that_names_a_wrong_batch_is_one_line(size):
    plan = replace(PLAN, planner={**PLAN.planner, "batch_size": size})
    with pytest.raises(ValueError, match=r"^planner: batch_size[^\n]+$"):
        sp.compress(MODEL, calibration=BATCHES, plan=plan)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "momentum": 0.5},
        {"feature_measure": "rsa"},
        {"distill": 0.2},
        {"temperature": 1.0},
        {"passes": lambda *_: True},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_a_training_without_an_effect_are_refused(options):
    batches = [(BATCHES[0], torch.arange(16) % 3)]
    with pytest.raises(ValueError, match=f"{[*options][-1]} has no effect"):
        sp.finetune(nn.Linear(4, 3), batches, **options)


def test_your_own_networks_leave_nothing_to_architectures():
    with pytest.raises(ValueError, match="architectures has no effect"):
        study("grounding", models=["mine:network"], architectures=["vgg"])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_does_not_read_is_refused_where_it_is_typed(command, recipes):
    recipe = recipes[command]
    read = {entry.name for entry in recipe_table(command)}
    without = {name.partition(".")[0] for name in without_effect(recipe, command)}
    assert not read & {*PYTHON_ONLY}
    for entry in recipe_table():
        typed = [f"{entry.name}=null"]
        if entry.name not in read:
            with pytest.raises(
                ValueError, match=f"^{command} does not read {entry.name}, which is for .+; leave it out$"
            ):
                refuse_unread(recipe, command, typed)
        elif entry.name not in without:
            refuse_unread(recipe, command, typed)


@pytest.mark.parametrize(
    "command, typed, expected",
    [
        ("analyze", "planner.round_to=8", "planner.round_to has no effect"),
        ("analyze", "planner=optimal", "planner.name has no effect"),
        ("analyze", "planner={name:threshold,threshold:0.5}", "planner"),
        ("analyze", "++chosen.planner.threshold=0.5", "planner.threshold has no effect"),
        ("plan", "finetune=default", "add --frontier"),
        ("plan", "reconstruct=none", "add planner.finalists"),
        ("compress", "search.tolerance=0.1", "add budget smallest"),
        ("compress", "to=folder", "add format"),
        ("validate", "pruned.weights=file", "the bundle has weights"),
    ],
)
def test_what_has_no_effect_in_a_run_is_refused_where_it_is_typed(command, typed, expected, recipes):
    recipe = recipes[command]
    with pytest.raises(ValueError, match=expected):
        refuse_unread(recipe, command, [typed])
    refuse_unread(recipe, command, ["seed=3"] if command != "export" else [])
