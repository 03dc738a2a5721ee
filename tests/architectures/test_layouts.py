"""The same function written in different layouts gives the same analysis, plan and repair."""

from functools import cache

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.repair.absorb import absorb
from simprune.trace.capture import capture
from simprune.trace.gradients import capture_gradients
from simprune.trace.sites import Site

from .layouts import POINTWISE, SPANNING, matrix, permuting, pointwise, positions_first, spanning

CASES = [
    (make, name) for make, names in ((pointwise, POINTWISE), (spanning, SPANNING)) for name in names if name != "map"
]
CASES += [(permuting, name) for name in ("to channels last", "to tokens")]


def identity(value) -> str:
    return getattr(value, "__name__", value)


def everything(make, name: str, method: str = "blockwise", **options) -> dict:
    """What the whole path says of a network, in numbers that do not depend on the layout."""
    model, batches = make(name)
    redundancy = sp.analyze(model, batches, structures=("channels", "blocks"), **options)
    plan = sp.plan(redundancy, budget={"macs": 0.55})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches, method=method)
    with torch.no_grad():
        return {
            "answers": torch.cat([model(x) for x in batches]),
            "macs": redundancy.costs.total().macs,
            "blocks": torch.tensor([(block.redundancy, block.damage) for block in redundancy.blocks]),
            "damages": torch.tensor([damage for group in redundancy.channels for damage in group.damage]),
            "edits": [(edit.remove, edit.name, edit.indices) for edit in plan.edits],
            "weights": [matrix(parameter, "transposed" in name) for parameter in small.parameters()],
            "repaired": torch.cat([small(x) for x in batches]),
        }


def assert_same(known: dict, seen: dict) -> None:
    assert len(known["blocks"]) == 3 and len(known["edits"]) > 1
    assert seen["macs"] == known["macs"] and seen["edits"] == known["edits"]
    for what in ("answers", "blocks", "damages", "weights", "repaired"):
        torch.testing.assert_close(seen[what], known[what], rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def of_maps() -> dict:
    known = {make: everything(make, "map") for make in (pointwise, spanning)}
    return known | {permuting: known[pointwise]}


@pytest.mark.parametrize("make, name", CASES, ids=identity)
def test_analysis_plan_and_repair_do_not_depend_on_the_layout(make, name, of_maps):
    assert_same(of_maps[make], everything(make, name))


@pytest.mark.parametrize("score", ["correlation", "predictability", "magnitude", "taylor", "leave_one_out_cka"])
def test_scores_of_channels_do_not_depend_on_the_layout(score):
    block_score = {"correlation": "segments", "predictability": "leave_one_out"}.get(score, "block_influence")
    # Iterations of the blockwise repair would enlarge rounding errors, of which the layouts have different ones.
    options = {"score": score, "block_score": block_score, "method": "least_squares"}
    known = everything(pointwise, "map", **options)
    for name in ("tokens", "channels last", "sequence"):
        assert_same(known, everything(pointwise, name, **options))


@cache
def with_maps(make, name: str, replace: str) -> tuple[list[tuple[str, str | None]], torch.Tensor]:
    """Where maps in place of blocks end, and the outputs."""
    model, batches = make(name)
    redundancy = sp.analyze(model, batches, structures=("blocks",), replace=replace)
    plan = sp.plan(redundancy, budget={"macs": 0.75})
    assert plan.edits and {edit.replace for edit in plan.edits} == {replace}
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches, method="none")
    ends = [(entry.block, entry.folded_into) for entry in absorb(small, plan, batches)]
    with torch.no_grad():
        return ends, torch.cat([small(x) for x in batches])


@pytest.mark.parametrize("replace", ["linear", "mean"])
@pytest.mark.parametrize("make, name", CASES, ids=identity)
def test_maps_in_place_of_blocks_do_not_depend_on_the_layout(make, name, replace):
    known, expected = with_maps(pointwise if make is permuting else make, "map", replace)
    ends, outputs = with_maps(make, name, replace)
    torch.testing.assert_close(outputs, expected)
    assert ends == known


def test_rows_and_gradients_do_not_depend_on_the_layout():
    known = None
    for name in POINTWISE:
        model, batches = pointwise(name)
        modules = [module for module, _ in model.named_modules() if module]
        pooled = [Site(module, "pool", side) for module in modules for side in ("input", "output")]
        positions = [Site(module, "positions", site.side) for site in pooled for module in [site.module]]
        rows = [capture(model, batches, pooled), capture(model, batches, positions)]
        rows += capture_gradients(model, batches, pooled)
        known = known or rows
        for one, other in zip(rows, known, strict=True):
            torch.testing.assert_close(one, other)
    assert known is not None and known[0]["blocks.0"].shape == (24, 6) and known[1]["stem:input"].shape == (24 * 16, 3)


def test_rows_are_inputs_also_where_positions_come_first():
    (known, batches), (model, _) = pointwise("tokens"), positions_first()
    sites = [Site(f"blocks.{number}", side=side) for number in range(3) for side in ("input", "output")]
    torch.testing.assert_close(capture(model, batches, sites), capture(known, batches, sites))
    of = [sp.analyze(net, batches, structures=("blocks",)).blocks for net in (known, model)]
    assert [entry.redundancy for entry in of[0]] == pytest.approx([entry.redundancy for entry in of[1]])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_network_of_grouped_convolutions_alone_is_analysed(transposed):
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), make(8, 8, 3, groups=2), nn.ReLU(), make(8, 4, 1, groups=2))
    redundancy = sp.analyze(model, torch.randn(8, 3, 8, 8), structures=("channels", "blocks"))
    assert transposed or redundancy.channels
