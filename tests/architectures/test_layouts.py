"""The same function written in different layouts gives the same analysis, plan and repair."""

import pytest
import torch

import simprune as sp

from .layouts import POINTWISE, SPANNING, matrix, pointwise, spanning

CASES = [(make, name) for make, names in ((pointwise, POINTWISE), (spanning, SPANNING)) for name in names]


def everything(make, name: str, **options) -> dict:
    """What the whole path says of a network, in numbers that do not depend on the layout."""
    model, batches = make(name)
    redundancy = sp.analyze(model, batches, structures=("channels", "blocks"), **options)
    plan = sp.plan(redundancy, budget={"macs": 0.55})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches, method="blockwise")
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


@pytest.fixture(scope="module")
def of_maps() -> dict:
    return {make: everything(make, "map") for make in (pointwise, spanning)}


@pytest.mark.parametrize("make, name", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_analysis_plan_and_repair_do_not_depend_on_the_layout(make, name, of_maps):
    known, seen = of_maps[make], everything(make, name)
    assert len(known["blocks"]) == 3 and len(known["edits"]) > 1
    assert seen["macs"] == known["macs"] and seen["edits"] == known["edits"]
    for what in ("answers", "blocks", "damages", "weights", "repaired"):
        torch.testing.assert_close(seen[what], known[what], rtol=1e-6, atol=1e-8)
