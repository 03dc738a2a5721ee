"""Contract checks that every part has to pass; run them on a part of your own: `check("score", "mine")`.

Each check raises AssertionError with a sentence that says which promise is broken. They run on small networks from
`simprune.zoo`, in seconds.

    import pytest
    from simprune.testing import check

    def test_my_score_keeps_its_promises():
        check("score", "mine")
"""

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.plan import Edit, Plan
from simprune.core.registry import Choice, Part, bound, check_options, read
from simprune.core.structures import UnitGroup
from simprune.edit.apply import apply
from simprune.measures import Measure
from simprune.planners.constraints import Constraints
from simprune.planners.search import Search
from simprune.planners.space import Space
from simprune.repair.reconstruct import reconstruct
from simprune.scores.blocks import BlockContext, observe
from simprune.scores.estimate import estimate
from simprune.structures import find_blocks, structure
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from simprune.tune.plan import plan
from simprune.zoo.residual import ResidualCNN

ROWS = 24  # inputs, representations and outputs that checks work with


def check(kind: str, choice: Choice) -> None:
    """Run the contract checks of one part.

    Args:
        kind: one of `simprune.core.registry.FOLDERS`.
        choice: the part's name, or a mapping with `name` and options.

    Raises:
        AssertionError: for the first promise that is broken.
        KeyError, ValueError: for an unknown part or option.

    >>> check("planner", "greedy")
    """
    part, options = read(kind, choice)
    assert part.summary, f"{kind} {part.name}: the docstring has no first sentence, which lists and pages show"
    CHECKS[kind](part, options)


def example_network() -> tuple[nn.Module, list[Tensor]]:
    """A small residual network with random weights, in training mode and partly frozen, and two batches of inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResidualCNN(in_channels=3, widths=(4, 8), depths=(2, 2), classes=5)
        batches = [torch.randn(ROWS // 2, 3, 8, 8) for _ in range(2)]
    next(model.parameters()).requires_grad_(False)
    return model, batches


@contextmanager
def left_alone(model: nn.Module, who: str) -> Iterator[None]:
    """Raise AssertionError unless a model is afterwards what it was: weights, modes, gradients, hooks."""
    before = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    yield
    after = model.state_dict()
    assert before.keys() == after.keys(), f"{who} changes the names of the model's tensors"
    assert all(torch.equal(value, after[name]) for name, value in before.items()), f"{who} changes the model's tensors"
    assert flags == [parameter.requires_grad for parameter in model.parameters()], f"{who} changes requires_grad"
    assert all(parameter.grad is None for parameter in model.parameters()), f"{who} leaves gradients behind"
    assert modes == [module.training for module in model.modules()], f"{who} changes the training mode"
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not hooks, f"{who} leaves hooks behind"


def check_measure(part: Part, options: dict[str, Any]) -> None:
    """A measure states its traits truly, prepares once what pairs need, and does not change its inputs."""
    measure = part.make(**options)
    who = f"measure {part.name}"
    assert isinstance(measure, Measure), f"{who} is no simprune.measures.Measure"
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(ROWS, 5, generator=generator, dtype=torch.float64) for _ in range(2 + len(measure.extras))]
    first, second, *extras = rows
    extra = dict(zip(measure.extras, extras, strict=True))
    labels = torch.arange(ROWS) % 3 if measure.needs_labels else None
    kept = first.clone()
    value = measure(first, second, labels, **extra)
    assert torch.equal(first, kept), f"{who} changes its input"
    low, high = measure.range
    assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9, f"{who}: {value} lies outside of {measure.range}"
    a, b = measure.prepare(first, labels, **extra), measure.prepare(second, labels, **extra)
    assert _same(measure.compare(a, b), value), f"{who}: compare of what was prepared differs from the call"
    if measure.symmetric:
        assert _same(measure.compare(b, a), value), f"{who} says that it is symmetric and is not"


def check_functional(part: Part, options: dict[str, Any]) -> None:
    """A functional measure states its range, and does not change the outputs that it gets."""
    measure = part.make(**options)
    who = f"functional measure {part.name}"
    shapes = {"classes": (ROWS, 4), "vectors": (ROWS, 4), "multilabel": (ROWS, 4), "tokens": (ROWS // 4, 4, 6)}
    shapes["maps"] = (ROWS // 4, 4, 3, 5)
    if measure.form not in shapes or part.name == "block_drift":
        return  # it runs models itself
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(shapes[measure.form], generator=generator, dtype=torch.float64) for _ in range(2)]
    labels = None
    if measure.needs_labels:
        labels = torch.randint(
            2 if measure.form == "multilabel" else 4, _label_shape(measure.form), generator=generator
        )
    kept = outputs[0].clone()
    fewest, most = measure.models
    models = [outputs[number % 2] for number in range(max(fewest, min(2, most or 2)))]
    value = measure.group(models, labels=labels)
    assert torch.equal(outputs[0], kept), f"{who} changes its input"
    low, high = measure.range
    assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9, f"{who}: {value} lies outside of {measure.range}"


def check_structure(part: Part, options: dict[str, Any]) -> None:
    """Everything that a structure finds can be removed at the cost that is predicted; what it refuses has a reason."""
    who = f"structure {part.name}"
    model, batches = example_network()
    network = Network.trace(model, batches[0])
    with left_alone(model, who):
        entries, refused = part.make(**options).find(network)
    names = dict(model.named_modules())
    assert all(name in names and reason for name, reason in refused), f"{who} refuses without a name or a reason"
    for entry in entries:
        if isinstance(entry, UnitGroup):
            edit = Edit(entry.kind, entry.name, entry.expand([0]), entry.width)
            expected = network.costs.after(entry.cut([0]))
        else:
            edit = Edit("block", entry.name, replace="zero" if entry.replace == "zero" else "identity")
            expected = network.costs.after(dropped=[entry.name])
        small = apply(Plan((edit,), network.fingerprint, {}), network)
        assert measure_cost(small, network.example) == expected, f"{who}: {entry.name} does not cost what is predicted"


def check_score(part: Part, options: dict[str, Any]) -> None:
    """A score orders every channel of a group once, says its damage, and leaves the model alone."""
    who = f"score {part.name}"
    model, batches = example_network()
    network = Network.trace(model, batches[0])
    groups = [group for group in structure("channels").find(network)[0] if isinstance(group, UnitGroup)]
    with left_alone(model, who):
        scores = bound("score", {"name": part.name, **options}, seed=0)(network, batches, groups)
    assert set(scores) <= {group.name for group in groups}, f"{who} scores groups that it was not given"
    for group in groups:
        if group.name in scores:
            score = scores[group.name]
            assert sorted(score.order) == list(range(group.size)), f"{who}: order is no permutation of the channels"
            assert all(0 <= value <= 1 for value in score.redundancy), f"{who}: redundancy lies outside of [0, 1]"
            assert all(value >= 0 for value in score.damage), f"{who}: a damage is negative"
            assert len(score.redundancy) == len(score.damage) == group.size, f"{who}: not one value per channel"
    again = bound("score", {"name": part.name, **options}, seed=0)(network, batches, groups)
    assert again == scores, f"{who}: the same inputs and seed give another score"


def check_block_score(part: Part, options: dict[str, Any]) -> None:
    """A score of blocks gives every block a redundancy in [0, 1], and leaves the model alone."""
    who = f"block score {part.name}"
    model, batches = example_network()
    network = Network.trace(model, batches[0])
    blocks = find_blocks(network)
    measure = read("measure", "cka")[0].make()
    context = BlockContext(network, batches, observe(network, batches, blocks), measure)
    with left_alone(model, who):
        scores = bound("block_score", {"name": part.name, **options}, seed=0)(context)
    assert set(scores) == {block.name for block in blocks}, f"{who} does not score all blocks, and these alone"
    assert all(0 <= value <= 1 for value in scores.values()), f"{who}: redundancy lies outside of [0, 1]"


def check_planner(part: Part, options: dict[str, Any]) -> None:
    """A planner meets what budget it can, counts costs exactly, and gives the same plan again."""
    who = f"planner {part.name}"
    model, batches = example_network()
    measure = read("measure", "cka")[0].make()
    redundancy = estimate(Network.trace(model, batches[0]), batches, measure, score="magnitude").redundancy
    whole = redundancy.costs.total().macs
    search = Search(Space.of(redundancy, Constraints()), {"macs": 0.7 * whole})
    space, selection = part.make(search, **options)
    exact = space.exact(selection)
    assert space.cost(selection).tolist() == [exact.macs, exact.params, exact.bytes], f"{who}: costs are not exact"
    if options:
        return  # an option such as a threshold may say by itself how much goes
    assert exact.macs <= 0.7 * whole, f"{who} keeps {exact.macs / whole:.1%} of the macs where 70 % are allowed"
    first, again = (plan(redundancy, {"macs": 0.7}, part.name) for _ in range(2))
    assert first.to_yaml() == again.to_yaml(), f"{who}: the same inputs give another plan"


def check_repair(part: Part, options: dict[str, Any]) -> None:
    """A repair works on the smaller network alone, keeps its shapes, and leaves the original alone."""
    who = f"repair {part.name}"
    model, batches = example_network()
    network = Network.trace(model, batches[0])
    block = find_blocks(network)[-1]
    group = next(group for group in structure("channels").find(network)[0] if isinstance(group, UnitGroup))
    edits = (Edit("block", block.name), Edit("channels", group.name, group.expand([0]), group.width))
    made = Plan(edits, network.fingerprint, {})
    small = apply(made, network)
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    with left_alone(model, who):
        refits = reconstruct(small, made, network, batches, {"name": part.name, **options})
    assert shapes == {name: value.shape for name, value in small.state_dict().items()}, f"{who} changes shapes"
    assert all(value.isfinite().all() for value in small.state_dict().values()), f"{who} leaves weights not finite"
    assert all(refit.after >= 0 for refit in refits), f"{who}: an error is negative"


def check_source(part: Part, options: dict[str, Any]) -> None:
    """A source of models or data is a function that recipes call with its options; it is not called here."""
    assert callable(part.make), f"source {part.name} must be a function"


def check_corruption(part: Part, options: dict[str, Any]) -> None:
    """A corruption keeps the shape of images, gives the same for the same seed, and leaves its input alone."""
    if part.facts.get("attack"):
        return  # it needs a model that was trained on its images
    who = f"corruption {part.name}"
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    for severity in (1, 2, 3):
        first, again = (part.make(images, severity, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(images, kept), f"{who} changes its input"
        assert first.shape == images.shape, f"{who} changes the shape of images"
        assert torch.equal(first, again), f"{who}: the same seed gives other images"


def check_set(part: Part, options: dict[str, Any]) -> None:
    """A check set is a list of gates."""
    from simprune.checks import Gate

    gates = part.make(**options)
    listed = isinstance(gates, list | tuple) and gates and all(isinstance(gate, Gate) for gate in gates)
    assert listed, f"check set {part.name} must return a list of Gate; got {gates!r}"


def check_format(part: Part, options: dict[str, Any]) -> None:
    """A format writes into the folder that it gets and reads the same outputs back, or says why it cannot."""
    who = f"format {part.name}"
    model, batches = example_network()
    model.eval()
    example = (batches[0][:2],), {}
    with TemporaryDirectory() as folder, left_alone(model, who):
        try:
            written = part.make(model, example, Path(folder), **options)
        except ValueError:
            return  # it cannot express this model, such as one that is not of transformers
        assert any(Path(folder).iterdir()), f"{who} writes no file"
        assert written.usage, f"{who} does not say how its files are opened"
        with torch.no_grad():
            (actual,), expected = written.run(*example), model(*example[0])
        assert torch.allclose(actual, expected, atol=1e-4), f"{who}: its files give other outputs than the model"


def check_study(part: Part, options: dict[str, Any]) -> None:
    """A study says its question, protocol and cost; its options and those of its quick version can be run."""
    who = f"study {part.name}"
    prose = part.make.__doc__ or ""
    assert part.summary.endswith("?"), f"{who}: the first paragraph of the docstring is no question"
    for word in ("Protocol:", "Cost:"):
        assert word in prose, f"{who}: the docstring has no paragraph that begins with {word}"
    for name in part.options:
        said = re.search(rf"^ +{name}[:,]|, {name}[:,]", prose, re.M)
        assert said, f"{who}: the docstring does not say what {name} is"
    quick = part.facts.get("quick")
    assert quick, f"{who} has no quick version; register it with quick={{...}}"
    check_options(part, {**part.options, **options})
    check_options(part, {**part.options, **quick})


CHECKS: dict[str, Callable[[Part, dict[str, Any]], None]] = {
    "measure": check_measure,
    "functional": check_functional,
    "structure": check_structure,
    "score": check_score,
    "block_score": check_block_score,
    "planner": check_planner,
    "repair": check_repair,
    "model": check_source,
    "data": check_source,
    "corruption": check_corruption,
    "check": check_set,
    "format": check_format,
    "study": check_study,
}


def _label_shape(form: str) -> tuple[int, ...]:
    return {"tokens": (ROWS // 4, 4), "maps": (ROWS // 4, 3, 5), "multilabel": (ROWS, 4)}.get(form, (ROWS,))


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
