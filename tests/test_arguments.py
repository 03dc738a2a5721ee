"""What is wrong with an argument is one line before the first forward pass of the model."""

import inspect

import pytest
import torch
from torch import nn

import simprune as sp


class Counting(nn.Module):
    """A small network that counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.passes = nn.Linear(4, 8), nn.Linear(8, 3), 0

    def forward(self, x):
        self.passes += 1
        return self.second(self.first(x).relu())


BATCHES = [(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3)]
DATA = {"calibration": BATCHES, "test": BATCHES}
NO_VERDICT = "saliency_cosine_similarity"  # reads gradients, and has no bounds
WRONG = [
    ({"budget": {"mac": 0.5}}, "did you mean 'macs'"),
    ({"budget": 0.5}, "budget: expected costs to keep, as macs: 0.5"),
    ({"budget": {"macs": "x"}}, "macs must be a fraction"),
    ({"budget": "smalest"}, "did you mean 'smallest'"),
    ({"planner": "gredy"}, "did you mean 'greedy'"),
    ({"planner": {"name": "optimal", "depth": 3}}, "planner optimal takes no option 'depth'"),
    ({"planner": {"protect": ["frist"]}}, "did you mean 'first'"),
    ({"planner": {"round_to": 0}}, "planner.round_to: expected a whole number of at least 1; got 0"),
    ({"planner": {"name": "threshold", "threshold": 0.9}, "budget": {"macs": 0.5}}, "either a budget or a threshold"),
    ({"score": "taylr"}, "did you mean 'taylor'"),
    ({"block_score": "window"}, "did you mean 'windows'"),
    ({"block_score": {"name": "windows", "m": 3}}, "takes no option 'm'"),
    ({"structures": ["chanels"]}, "did you mean 'channels'"),
    ({"structures": "channels"}, "structures: expected a list of names"),
    ({"measure": "ckaa"}, "did you mean"),
    ({"reconstruct": "magic"}, "no repair named 'magic'"),
    ({"reconstruct": {"third.*": "none"}}, "no module fits the pattern 'third.*'"),
    ({"finetune": {"epoch": 3}}, "did you mean 'epochs'"),
    ({"finetune": {"lr": 0}}, "finetune.lr: expected a number above 0 or null; got 0"),
    ({"train": (batch for batch in BATCHES), "finetune": 1}, "walked more than once"),
    ({"train": BATCHES, "finetune": 1, "frozen": True}, "all are frozen"),
    ({"finetune": 1}, "finetune needs training batches"),
    ({"finetune": {"epochs": 2}}, "finetune needs training batches"),
    ({"control": "3"}, "control: expected a whole number of at least 0; got '3'"),
    ({"gates": sp.Gate("disagreement", limit=0.1)}, "put it into a list"),
    ({"gates": "strickt"}, "did you mean 'strict'"),
    ({"correction": "hlm"}, "did you mean 'holm'"),
    ({"trials": 0.2}, "trials: expected a list of numbers in (0, 1), such as [0.2]; got 0.2"),
    ({"trials": [1]}, "trials: expected a list of numbers in (0, 1)"),
    ({"seed": True}, "seed: expected a whole number of at least 0; got True"),
    ({"replace": "lineal"}, "did you mean 'linear'"),
    ({"search": {"tolerance": 2}}, "search.tolerance: expected a number in"),
    ({"bugdet": {"macs": 0.5}}, "did you mean 'budget'"),
    ({"budgets": [1.5]}, "budgets: expected a list of numbers in (0, 1]"),
    ({"kind": "mac"}, "did you mean 'macs'"),
]
CALLS = {
    "analyze": lambda model, data, train, options: sp.analyze(model, data["calibration"], **options),
    "compress": lambda model, data, train, options: sp.compress(model, **data, train=train, **options),
    "frontier": lambda model, data, train, options: sp.frontier(model, **data, train=train, **options),
    "validate": lambda model, data, train, options: sp.validate(model, model, data["test"], **options),
}


def takes(function: str, options: dict) -> bool:
    """Whether a function has these arguments, so that their values are at fault; compress is asked for all others."""
    names = set(inspect.signature(getattr(sp, function)).parameters) | {"frozen"}
    own = {"budgets", "kind"}
    return options.keys() <= names or (function == "compress" and not options.keys() & own)


@pytest.mark.parametrize(
    "function, options, expected",
    [
        pytest.param(function, options, expected, id=f"{function}-{number}-{'-'.join(options)}")
        for function in CALLS
        for number, (options, expected) in enumerate(WRONG)
        if takes(function, options)
    ],
)
def test_wrong_arguments_are_one_line_before_any_forward_pass(function, options, expected):
    model, options = Counting(), dict(options)
    if options.pop("frozen", False):
        model.requires_grad_(False)
    with pytest.raises((TypeError, ValueError, KeyError)) as caught:
        CALLS[function](model, DATA, options.pop("train", None), options)
    text = str(caught.value.args[0])
    assert expected in text and "\n" not in text
    assert model.passes == 0


@pytest.mark.parametrize("function", ["compress", "validate"])
def test_a_gate_that_no_verdict_can_use_is_refused_where_it_is_written(function):
    model = Counting()
    with pytest.raises(ValueError, match="cannot be a gate"):
        CALLS[function](model, DATA, None, {"gates": [sp.Gate(NO_VERDICT, limit=0.1)]})
    assert model.passes == 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"budget": {"mac": 0.5}}, "did you mean 'macs'"),
        ({"budget": "smallest"}, "searched by compress"),
        ({"planner": "gredy"}, "did you mean 'greedy'"),
        ({"depth": 3}, "planner greedy takes no option 'depth'"),
        ({"roundto": 8}, "did you mean 'round_to'"),
        ({"max_share": 2}, "planner.max_share: expected a number in (0, 1]; got 2"),
        ({"protect": "first"}, "planner.protect: expected a list of names"),
        ({"finalists": 1}, "planner.finalists"),
        ({"planner": "threshold", "threshold": 0.5, "budget": {"macs": 0.5}}, "either a budget or a threshold"),
    ],
)
def test_wrong_arguments_of_plan(arguments, expected):
    model = Counting()
    redundancy = sp.analyze(model, BATCHES)
    model.passes = 0
    with pytest.raises((ValueError, KeyError)) as caught:
        sp.plan(redundancy, model=model, **arguments)
    assert expected in str(caught.value.args[0])
    assert model.passes == 0


def test_a_model_and_data_that_are_none_are_said():
    with pytest.raises(ValueError, match=r"model: expected a torch.nn.Module; got str"):
        sp.analyze("resnet", BATCHES)
    with pytest.raises(ValueError, match="calibration must be an iterable"):
        sp.analyze(Counting(), 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_before_any_forward_pass(value):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].bias.data[1] = value
    model.register_forward_pre_hook(lambda *_: pytest.fail("it runs"))
    for function, more in ((sp.analyze, {}), (sp.compress, {"budget": {"macs": 0.5}})):
        with pytest.raises(ValueError, match=r"model: 2\.bias has (nan|infinite entries)"):
            function(model, calibration=[torch.randn(8, 4)], **more)


def test_the_seed_reaches_scores():
    model = Counting()

    def damage(seed):
        return sp.analyze(model, BATCHES, structures=["channels"], score="random", seed=seed).channels[0].damage

    assert damage(0) == damage(0) != damage(1)


def test_signatures_and_help_name_every_option():
    for name in ("analyze", "compress", "frontier", "validate", "finetune"):
        function = getattr(sp, name)
        signature = inspect.signature(function)
        assert not [each for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD]
        for parameter in signature.parameters:
            assert f"        {parameter}: " in function.__doc__, (name, parameter)
    assert inspect.signature(sp.compress).parameters["control"].default == 0
    assert inspect.signature(sp.frontier).parameters["control"].default == 3


@pytest.mark.parametrize("name", sorted(set(sp.__all__) - {"functional", "measures"}))
def test_public_functions_are_documented_and_have_an_example(name):
    part = getattr(sp, name)
    if inspect.isfunction(part) and part.__module__ in ("simprune.api", "simprune.repair.training"):
        for word in ("Args:", "Returns:", "Raises:", ">>> "):
            assert word in part.__doc__, (name, word)
        for parameter in inspect.signature(part).parameters:
            assert f"        {parameter}: " in part.__doc__, (name, parameter)


def test_compress_fits_on_a_screen():
    lines = inspect.getsource(inspect.unwrap(sp.compress)).splitlines()
    assert len(lines) <= 60
