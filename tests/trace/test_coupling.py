"""Each trap of torch-pruning that would hang or corrupt in silence."""

import gc

import pytest
import torch
from torch import nn

from simprune.core.structures import NotPrunable
from simprune.trace.coupling import CouplingGraph
from tests.networks import build


def graph(name="Residual"):
    model, x = build(name)
    return CouplingGraph(model, ((x[:2],), {})), model, x


@pytest.mark.parametrize("indices", [[], [3, 1], [1, 1], [-1], [8]])
def test_indices_are_checked_before_torch_pruning_sees_them(indices):
    coupling, model, _ = graph()
    with pytest.raises(ValueError, match="sorted distinct"):
        coupling.prune([("stem.0", indices)])
    assert model.stem[0].out_channels == len(model.stem[0].weight) == 8


def test_a_layer_is_never_emptied():
    coupling, _, _ = graph()
    with pytest.raises(NotPrunable, match="empty"):
        coupling.prune([("stem.0", list(range(8)))])


def test_group_building_is_bounded():
    coupling, model, _ = graph()
    guarded, stem = coupling._graph, model.get_submodule("stem.0")
    traced = coupling.coupling("stem.0")
    guarded._item_cap = 1
    with pytest.raises(NotPrunable, match="cyclic or exploding"):
        guarded.group(stem, range(8))
    followed = coupling.coupling("stem.0")  # where torch-pruning fails, the flow of channels says the same
    assert followed.units == traced.units
    assert set(followed.slices) == set(traced.slices)
    guarded._item_cap = 1000
    assert guarded.group(stem, range(8))  # the guard is taken off again


def test_a_layer_outside_the_forward_pass_is_named():
    model, x = build("Residual")
    model.spare = nn.Linear(3, 3)
    with pytest.raises(NotPrunable, match="no part"):
        CouplingGraph(model, ((x[:2],), {})).width("spare")


def test_two_groups_one_graph_keep_their_own_numbering():
    model, x = build("Concat")
    expected = torch.cat([model.left(x)[:, [0, 2]], model.right(x)[:, [1, 2, 3, 4]]], 1)
    coupling = CouplingGraph(model, ((x[:2],), {}))
    coupling.prune([("left", [1, 3]), ("right", [0, 5])])
    torch.testing.assert_close(torch.cat([model.left(x), model.right(x)], 1), expected)
    assert model.join.in_channels == 6


def test_a_graph_holds_nothing_of_what_the_pass_computed():
    model, x = build("Residual")
    gc.collect()
    before = {id(value) for value in gc.get_objects() if type(value) is torch.Tensor}
    coupling = CouplingGraph(model, ((x[:2],), {}))
    coupling.coupling("stem.0")
    gc.collect()
    left = [value for value in gc.get_objects() if type(value) is torch.Tensor and id(value) not in before]
    assert [tuple(value.shape) for value in left if value.grad_fn is not None] == []


def test_a_layer_is_followed_once():
    coupling, _, _ = graph()
    assert coupling.coupling("stem.0") is coupling.coupling("stem.0")
