"""The error that the repair left at the place of each edit."""

import pytest
import torch

import simprune as sp
from simprune.core.plan import Edit, Plan
from simprune.repair.outcome import outcomes
from simprune.zoo.residual import ResidualCNN


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(8, 16), depths=(2, 2), shortcut="A").eval()
    batches = list(torch.randn(64, 3, 8, 8).split(16))
    found = sp.analyze(model, batches, score="magnitude")
    edits = (Edit("block", "layer1.1"), Edit("channels", "layer2.1.conv1", (1, 2, 3), 16))
    return model, batches, found, Plan(edits, found.fingerprint, found.inputs)


def test_the_error_left_is_that_of_the_layers_that_read_the_place(case):
    model, batches, found, plan = case
    small = sp.apply(plan, model)
    refits = [refit.to_dict() for refit in sp.reconstruct(small, plan, model, batches)]
    after = {refit["layer"]: refit["after"] for refit in refits}
    block, channels = outcomes(plan, found, refits)
    assert (block["name"], block["left"]) == ("layer1.1", after["layer2.0.conv1"])
    assert (channels["name"], channels["left"]) == ("layer2.1.conv1", after["layer2.1.conv2"])
    assert [{**edit, "left": None} for edit in (block, channels)] == [
        edit.to_dict() | {"left": None} for edit in plan.edits
    ]


def test_in_a_block_that_was_refitted_whole_it_is_the_blocks(case):
    model, batches, found, plan = case
    small = sp.apply(plan, model)
    refits = [refit.to_dict() for refit in sp.reconstruct(small, plan, model, batches, "blockwise")]
    whole = {refit["layer"]: refit["after"] for refit in refits}
    assert [edit["left"] for edit in outcomes(plan, found, refits)] == [whole["layer2.0"], whole["layer2.1"]]


def test_without_a_repair_nothing_is_said(case):
    _, _, found, plan = case
    assert all("left" not in edit for edit in outcomes(plan, found, []))
