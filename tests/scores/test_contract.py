"""What every score promises."""

import copy
from functools import cache

import pytest
import torch

from simprune.core.registry import bound
from simprune.structures import structure
from simprune.trace.network import Network
from tests.architectures.networks import batches, make
from tests.networks import NAMES, build
from tests.scores.scoring import SCORES, scores_of

# who stands in for a duplicate is not asked: size, gradient, chance, or a channel's place beside all others
BLIND_TO_DUPLICATES = {
    "leave_one_out_cka",
    "independence",
    "geometric_median",
    "magnitude",
    "bn_scale",
    "taylor",
    "random",
}
BLIND_TO_DEATH = {"geometric_median", "random"}  # a zero filter is as far from the others as they are long
CASES = [(score, network) for score in SCORES for network in NAMES]


@cache
def groups_of(network):
    """The groups of a network, which are data: scores are asked about them, not about the search for them."""
    model, x = build(network) if network in NAMES else (make(network), batches(network)[0])
    example = ((x[:2],), {})
    return [
        *structure("channels").find(Network(model, example))[0],
        *structure("heads").find(Network(model, example))[0],
    ]


@pytest.mark.parametrize("score, network", CASES)
def test_every_channel_has_its_turn_and_a_share(score, network):
    model, x = build(network)
    groups = groups_of(network)
    found = scores_of(score, model, [x], groups)
    assert set(found) == {group.name for group in groups}
    for group in groups:
        one = found[group.name]
        assert sorted(one.order) == list(range(group.size))
        assert all(0 <= value <= 1 for value in one.redundancy)
        assert all(value >= 0 for value in one.damage)


@pytest.mark.parametrize("score, network", CASES)
def test_scoring_leaves_the_model_as_it_was_and_repeats_itself(score, network):
    model, x = build(network)
    model.train()
    next(model.parameters()).requires_grad_(False)
    groups, before = groups_of(network), copy.deepcopy(model.state_dict())
    assert scores_of(score, model, [x], groups) == scores_of(score, model, [x], groups)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("network", ["vit", "mobilenet"])
def test_heads_and_grouped_convolutions_have_their_turn(score, network):
    model, some = make(network), batches(network)
    found = scores_of(score, model, some, groups_of(network))
    for group in groups_of(network):
        assert sorted(found[group.name].order) == list(range(group.size))
        assert all(value >= 0 for value in found[group.name].damage)


def plant(network):
    """A network of which channel 1 of the last group copies channel 0, and channel 2 is dead; its inputs; the group."""
    model, x = build(network)
    group = groups_of(network)[-1]
    for part in group.slices:
        if part.side == "out" and part.indices[0] == (0,):
            tensor = dict(model.state_dict())[part.tensor]
            tensor.select(part.dim, 1).copy_(tensor.select(part.dim, 0))
            if not part.tensor.endswith("running_var"):
                tensor.select(part.dim, 2).zero_()
    return model, x.repeat(3, 1, 1, 1), group.name


@pytest.mark.parametrize("score", [score for score in SCORES if score not in BLIND_TO_DUPLICATES])
@pytest.mark.parametrize("network", ["Residual", "Flat", "Concat"])
def test_a_planted_duplicate_costs_next_to_nothing(score, network):
    model, x, name = plant(network)
    found = scores_of(score, model, [x], groups_of(network))[name]
    twin = next(channel for channel in found.order if channel in (0, 1))
    assert found.damage[twin] <= 1e-2 * max(found.damage)


@pytest.mark.parametrize(
    "score, network",
    [
        (score, network)
        for score in SCORES
        for network in ("Residual", "Flat", "Concat")
        if score not in BLIND_TO_DEATH and (score != "bn_scale" or network == "Residual")  # the one with BatchNorm
    ],
)
def test_a_dead_channel_costs_next_to_nothing(score, network):
    model, x, name = plant(network)
    found = scores_of(score, model, [x], groups_of(network))[name]
    assert found.damage[2] <= 1e-2 * max(found.damage)
    assert found.order.index(2) < len(found.order) / 2


def test_an_unknown_score_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'second_order'"):
        bound("score", "second_ordr")
