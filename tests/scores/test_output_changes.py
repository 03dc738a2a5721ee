"""The expected change of the output against the change itself, where the network is linear in the errors."""

import numpy as np
import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.holdout import held_out
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.core.redundancy import Interactions
from simprune.scores.output_changes import BlockLosses, OutputChanges, OutputLoss, output_changes
from simprune.trace.capture import read
from simprune.trace.hooks import hooks
from simprune.trace.sensitivity import backpropagate

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def fixed(error):
    return lambda given, made: error[: len(made)]


@pytest.fixture
def line():
    """Two layers with one output: a random sign squared is one, so that expectations are exact."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1)).double(), normal(60, 4)


def test_damage_is_the_squared_change_over_the_variance(line):
    model, x = line
    error = normal(60, 5)
    damage, _ = output_changes(model, [x], {("block", "a", 0): [OutputLoss("0", fixed(error))]})
    with torch.no_grad():
        change, z = error @ model[1].weight.T, model(x)
    expected = change.square().sum() / (z - z.mean()).square().sum()
    assert damage["block", "a", 0] == pytest.approx(float(expected))


def test_errors_of_several_modules_of_one_structure_are_one_change(line):
    model, x = line
    first, second = normal(60, 5), normal(60, 1)
    damage, _ = output_changes(
        model, [x], {("channels", "a", 0): [OutputLoss("0", fixed(first)), OutputLoss("1", fixed(second))]}
    )
    with torch.no_grad():
        change, z = first @ model[1].weight.T + second, model(x)
    assert damage["channels", "a", 0] == pytest.approx(float(change.square().sum() / (z - z.mean()).square().sum()))


def test_changes_of_rows_of_another_kind_are_counted_too():
    """The second layer sees every input as two rows."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Flatten(0), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1)).double()
    model.extend([nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.Linear(2, 1, dtype=torch.float64)])
    x, first, second = normal(60, 4), normal(60, 2), normal(120, 1)
    damage, _ = output_changes(
        model, [x], {("block", "a", 0): [OutputLoss("0", fixed(first)), OutputLoss("3", fixed(second))]}
    )
    with torch.no_grad():
        one = (first * model[3].weight) @ model[6].weight.T
        other, z = second * model[6].weight.flatten().repeat(60)[:, None], model(x)
    expected = (one.square().sum() + other.square().sum()) / (z - z.mean()).square().sum()
    assert damage["block", "a", 0] == pytest.approx(float(expected))


def test_batches_do_not_matter_where_the_output_is_one_number(line):
    model, x = line
    losses = {("block", "a", 0): [OutputLoss("0", lambda given, made: given @ torch.ones(4, 5, dtype=torch.float64))]}
    whole, _ = output_changes(model, [x], losses)
    parts, _ = output_changes(model, list(x.split(7)), losses)
    assert parts["block", "a", 0] == pytest.approx(whole["block", "a", 0])


def test_changes_interact_as_far_as_they_point_the_same_way(line):
    model, x = line
    error = normal(60, 5)
    losses = {
        ("block", name, 0): [OutputLoss("0", fixed(each))]
        for name, each in {"a": error, "twice a": 2 * error, "minus a": -error, "zero": 0 * error}.items()
    }
    _, found = output_changes(model, [x], losses)
    values = found.among([("block", "a"), ("block", "twice a"), ("block", "minus a"), ("block", "zero")])
    np.testing.assert_allclose(values, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("rows", [256, 1024])
def test_changes_that_have_nothing_to_do_with_each_other_add_up(rows):
    """Chance makes every second cosine positive, and of fifty structures their sum would be several times too large."""
    model, x = nn.Linear(4, 1).double(), normal(rows, 4)
    losses = {("block", str(number), 0): [OutputLoss("", fixed(normal(rows, 1)))] for number in range(50)}
    _, found = output_changes(model, [x], losses)
    lengths = found.values.sum() / 50  # the damage of all of them, as a multiple of the sum of their damages
    assert 1 <= lengths < 1.3


def test_changes_that_agree_in_part_interact_in_part():
    model, x, shared = nn.Linear(4, 1).double(), normal(512, 4), normal(512, 1)
    losses = {("block", str(number), 0): [OutputLoss("", fixed(shared + normal(512, 1)))] for number in range(8)}
    _, found = output_changes(model, [x], losses)
    apart = found.values[~np.eye(8, dtype=bool)]
    assert apart.mean() == pytest.approx(0.5, abs=0.1)


def test_errors_that_agree_at_all_positions_change_more_than_errors_that_do_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    x, size = normal(200, 1, 8, 8), 64
    same, apart = normal(200, 1, 1, 1).expand(-1, -1, 8, 8), normal(200, 1, 8, 8)
    damage, _ = output_changes(
        model,
        [x],
        {("block", "same", 0): [OutputLoss("0", fixed(same))], ("block", "apart", 0): [OutputLoss("0", fixed(apart))]},
    )
    assert damage["block", "same", 0] / damage["block", "apart", 0] == pytest.approx(size, rel=0.3)


def test_unknown_structures_do_not_interact():
    known = Interactions({("block", "a"): 0, ("block", "b"): 1}, np.array([[1.0, 0.5], [0.5, 1.0]]))
    keys = [("block", "b"), ("channels", "a"), ("block", "a")]
    np.testing.assert_array_equal(known.among(keys), [[1, 0, 0.5], [0, 1, 0], [0.5, 0, 1]])


def test_nothing_to_lose_is_no_work():
    damage, interactions = output_changes(nn.Linear(2, 2), [torch.ones(1, 2)], {})
    assert damage == {}
    assert interactions.among([("block", "a")]).tolist() == [[1.0]]


def test_a_fitted_loss_is_judged_by_the_inputs_that_were_held_out(line):
    model, x = line
    error, held = normal(60, 5), held_out(0, 60)
    error[held] *= 3

    def loss(value, output):
        return error[held] if len(output) == held.sum() else error

    damage, _ = output_changes(model, [x], {("channels", "a", 1): [OutputLoss("0", loss, fitted=True)]})
    with torch.no_grad():
        change, z = error[held] @ model[1].weight.T, model(x)
    expected = change.square().mean(0).sum() / (z - z.mean()).square().mean(0).sum()
    assert damage["channels", "a", 1] == pytest.approx(float(expected))


def test_after_a_walk_over_all_inputs_those_that_are_held_out_suffice_for_fitted_losses(line):
    """The directions are the same in both walks, and so are the damages and how far the removals interact."""
    model, x = line
    batches, error = list(x.split(7)), torch.randn(5, 4, dtype=torch.float64)
    block = {("block", "a", 0): [OutputLoss("0", lambda value, output: output.sin())]}
    units = {("channels", "a", 1): [OutputLoss("0", lambda value, output: value @ error.T, fitted=True)]}
    together, expected = output_changes(model, batches, {**block, **units}, seed=3)

    rows, beside = [], OutputChanges(block)
    backpropagate(model, batches, [beside], seed=3)
    with hooks(before=[(model, lambda _, args, kwargs: rows.append(len(args[0])))]):
        apart, interactions = output_changes(model, batches, units, seed=3, beside=beside)
    assert sum(rows) < len(x) / 2
    assert apart == pytest.approx(together)
    assert interactions.rows == expected.rows
    np.testing.assert_allclose(interactions.values, expected.values, atol=1e-12)


def few_inputs_network(width):
    """Convolutions behind which a classifier has more inputs than there are rows."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, width, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, 20),
    )  # fmt: skip
    return model.eval()


def few_directions(count, seed):
    """Images of six latent directions and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(6, 3 * 8 * 8, generator=torch.Generator().manual_seed(5))
    latent = torch.randn(count, 6, generator=generator) @ directions
    return latent.view(count, 3, 8, 8) + 0.3 * torch.randn(count, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [32, 128, 1024])
def test_expected_damage_holds_for_inputs_that_nothing_has_seen(count, share):
    width = 128
    model, images, others = few_inputs_network(width), few_directions(count, 1), few_directions(1024, 7)
    batches = list(images.split(64))
    redundancy = sp.analyze(model, batches, structures=("channels",))
    entry = next(entry for entry in redundancy.channels if entry.name == "2")
    units = entry.order[: round(width * share)]
    plan = Plan((Edit("channels", "2", tuple(sorted(units)), width),), fingerprint(model), redundancy.inputs)
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches)
    with torch.no_grad():
        error, z = model(others) - small(others), model(others)
    measured = float(error.square().sum() / (z - z.mean(0)).square().sum())
    factor = 2 if count > 32 else 5  # eight held-out inputs of 32 tell no more
    assert measured / factor < sum(entry.damage[unit] for unit in units) < factor * measured


def test_a_copied_block_and_its_copy_interact():
    """Two blocks that add the same to a stream: without both the output changes by four times as much."""

    class Add(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return x + self.layer(x).tanh()

    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), Add(layer), nn.Linear(6, 1)).eval()
    twice = nn.Sequential(model[0], Add(nn.Linear(6, 6)), Add(nn.Linear(6, 6)), model[2]).eval()
    for block in (twice[1], twice[2]):
        block.layer.load_state_dict(layer.state_dict())
        with torch.no_grad():
            block.layer.weight.mul_(0.05)
    batches = list(torch.randn(512, 6).split(128))
    found = sp.analyze(twice, batches, structures=("blocks",))
    shared = found.interactions.among([("block", "1"), ("block", "2")])[0, 1]
    assert shared > 0.8
    apart = [sp.plan(found, {"macs": 1.0 - entry.share}).expected["damage"] for entry in found.blocks]
    both = sp.plan(found, {"macs": 1.0 - sum(entry.share for entry in found.blocks)}).expected["damage"]
    assert both > 1.8 * sum(apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_linear_map_of_its_input_makes_is_no_loss_of_a_block(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype).eval()
    x = torch.randn(200, 3, dtype=dtype)
    losses = BlockLosses(["1"])
    read(model, [x[:80], x[80:]], [losses])
    loss = losses.losses()["1"]
    with torch.no_grad():
        given = model[0](x)
        assert loss.error(given, model[1](given)).abs().max() < 1e-2 * given.std()
        curved = loss.error(given, model[1](given) + given.square())
    assert curved.std() > 0.1 * given.std()
