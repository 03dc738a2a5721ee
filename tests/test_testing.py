"""Every part that simprune ships keeps the promises that it asks of others; and the checks can fail."""

import dataclasses

import pytest
import torch

from simprune.core import registry
from simprune.core.registry import FOLDERS, Part, parts, register
from simprune.testing import check, left_alone

OPTIONS = {("block_score", "trend"): {"statistic": "magnitude"}, ("measure", "riemannian_distance"): {"reg": 0.1}}
FITTED = {"contrasim"}  # has to be fitted before it compares


def cases():
    for kind in FOLDERS:
        for name, part in parts(kind).items():
            if dataclasses.MISSING not in part.options.values() and name not in FITTED:
                yield kind, name


@pytest.mark.parametrize("kind, name", [*cases()])
def test_every_part_keeps_the_contract(kind, name):
    check(kind, {"name": name, **OPTIONS.get((kind, name), {})})


@pytest.fixture
def part(monkeypatch):
    """Registers a part for one test."""

    def add(kind, name, function, **facts):
        monkeypatch.setitem(registry._parts[kind], name, Part(kind, name, function, facts=facts))

    return add


def test_a_score_that_forgets_a_channel_or_changes_the_model_is_caught(part):
    def forgetful(network, calibration, groups):
        """Forgets a channel."""
        from simprune.scores.channels import ChannelScore

        return {g.name: ChannelScore(tuple(range(g.size - 1)), (0.0,) * g.size, (0.0,) * g.size) for g in groups}

    def careless(network, calibration, groups):
        """Changes the model."""
        with torch.no_grad():
            next(network.model.parameters()).add_(1)
        return {}

    part("score", "forgetful", forgetful)
    part("score", "careless", careless)
    with pytest.raises(AssertionError, match="no permutation"):
        check("score", "forgetful")
    with pytest.raises(AssertionError, match="changes the model's tensors"):
        check("score", "careless")


def test_a_planner_that_keeps_too_much_is_caught(part):
    def lazy(search):
        """Removes nothing."""
        return search.space, search.space.nothing

    part("planner", "lazy", lazy)
    with pytest.raises(AssertionError, match="where 70 % are allowed"):
        check("planner", "lazy")


def test_a_part_without_a_sentence_is_caught(part):
    part("data", "mute", lambda: None)
    with pytest.raises(AssertionError, match="no first sentence"):
        check("data", "mute")


def test_hooks_left_behind_are_caught():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="leaves hooks behind"), left_alone(model, "it"):
        model.register_forward_hook(lambda *_: None)


def test_a_name_that_is_taken_and_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="score id 'taylor' is taken"):
        register("score", "taylor")(lambda: None)
    with pytest.raises(ValueError, match="no kind of part 'scores'; did you mean 'score'"):
        register("scores", "mine")
