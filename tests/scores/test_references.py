"""Scores against plain formulas on rows and filters."""

import numpy as np
import pytest
import torch
from torch import nn

from simprune.core.registry import bound
from simprune.measures import get
from simprune.scores.channels import ReaderMoments, _moments
from simprune.structures import structure
from simprune.trace.capture import read
from simprune.trace.network import Network
from tests.scores.scoring import scores_of


@pytest.fixture
def perceptron():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(60, 4, dtype=torch.float64)
    return model, x, structure("channels").find(Network(model, ((x[:2],), {})))[0]


def score_of(name, perceptron, **options):
    model, x, groups = perceptron
    return scores_of(name, model, [x[:20], x[20:]], groups, **options)["0"]


def hidden_of(perceptron):
    return perceptron[0][:2](perceptron[1]).detach()


def test_leave_one_out_cka_is_the_measures_cka_of_what_is_kept(perceptron):
    score, hidden = score_of("leave_one_out_cka", perceptron), hidden_of(perceptron)
    least = 1.0  # CKA may rise again when more goes; nothing is lost then
    for gone in range(1, 6):
        least = min(least, float(get("cka")(hidden, hidden[:, sorted(score.order[gone:])])))
        lost = sum(score.damage[channel] for channel in score.order[:gone])
        assert 1 - lost == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("wide", [False, True], ids=["products", "rows"])
def test_who_is_most_alike_is_so_by_all_correlations_however_few_are_looked_at_together(perceptron, monkeypatch, wide):
    model, x, groups = perceptron
    monkeypatch.setattr(_moments, "FEW", 4)
    if wide:
        monkeypatch.setattr(_moments, "WIDE", 1)
        monkeypatch.setattr("simprune.core.moments.gram", None)  # no matrix of all products is made
        x = x[:5]
    model[0].weight.data[4] = 0.0
    moments = ReaderMoments(groups, apart=True)
    read(model, [x[:3], x[3:]], [moments])
    (most,) = dict(moments.nearest()).values()
    alive = [0, 1, 2, 3, 5]  # a channel that never varies is like none
    squared = np.corrcoef(model[:2](x).detach().numpy()[:, alive].T) ** 2
    np.fill_diagonal(squared, -1)
    assert [most[channel] for channel in alive] == [alive[other] for other in squared.argmax(1)]


def test_the_first_to_go_leaves_the_greatest_cka(perceptron):
    score, hidden = score_of("leave_one_out_cka", perceptron), hidden_of(perceptron)
    left = [float(get("cka")(hidden, np.delete(hidden.numpy(), channel, 1))) for channel in range(6)]
    assert score.order[0] == int(np.argmax(left))


def test_independence_is_the_change_of_the_nuclear_norm(perceptron):
    score, hidden = score_of("independence", perceptron), hidden_of(perceptron).numpy()
    whole = np.linalg.norm(hidden, "nuc")
    expected = [(whole - np.linalg.norm(np.delete(hidden, c, 1), "nuc")) / whole for c in range(6)]
    np.testing.assert_allclose(score.damage, expected, rtol=1e-6)


def test_correlation_goes_by_the_closest_channel_still_there(perceptron):
    score, hidden = score_of("correlation", perceptron), hidden_of(perceptron).numpy()
    squared, kept = np.corrcoef(hidden.T) ** 2, list(range(6))
    np.fill_diagonal(squared, 0)
    for channel in score.order[:-1]:
        assert score.redundancy[channel] == pytest.approx(squared[channel, kept].max(), abs=1e-9)
        assert score.redundancy[channel] == pytest.approx(squared[np.ix_(kept, kept)].max(), abs=1e-9)
        kept.remove(channel)
    assert score.redundancy[kept[0]] == 0


def test_geometric_median_sums_the_distances_of_filters(perceptron):
    weight = perceptron[0][0].weight.detach().numpy()
    sums = np.array([sum(np.linalg.norm(a - b) for b in weight) for a in weight])
    np.testing.assert_allclose(score_of("geometric_median", perceptron).damage, sums / sums.sum(), rtol=1e-9)


def test_weight_cosine_takes_multiples_for_copies_and_opposites_for_strangers(perceptron):
    with torch.no_grad():
        weight = perceptron[0][0].weight
        weight[3], weight[5] = 2 * weight[1], -weight[0]
    score = score_of("weight_cosine", perceptron)
    assert score.order[0] in (1, 3)
    assert score.damage[score.order[0]] == pytest.approx(0, abs=1e-9)
    assert min(score.damage[0], score.damage[5]) > 1e-3


def test_magnitude_is_the_share_of_the_squared_norm(perceptron):
    squared = perceptron[0][0].weight.detach().square().sum(1)
    np.testing.assert_allclose(score_of("magnitude", perceptron).damage, squared / squared.sum(), rtol=1e-12)


def test_taylor_is_the_first_order_change_of_the_loss(perceptron):
    model, x, groups = perceptron
    labels, step = torch.arange(60) % 3, 1e-6
    score = scores_of("taylor", model, [(x, labels)], groups)["0"]

    def loss():
        return nn.functional.cross_entropy(model(x), labels).item()

    before = loss()
    for channel in range(6):
        weight = model[0].weight.data
        kept = weight[channel].clone()
        weight[channel] = kept * (1 - step)
        assert score.damage[channel] == pytest.approx(((loss() - before) / step) ** 2, rel=1e-3, abs=1e-9)
        weight[channel] = kept


def test_bn_scale_is_the_share_of_absolute_scales():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    model[1].weight.data.copy_(torch.tensor([-3.0, 1.0, 0.0]))
    groups = structure("channels").find(Network(model, ((torch.randn(2, 1, 2, 2),), {})))[0]
    score = scores_of("bn_scale", model, [], groups)["0"]
    assert score.order == (2, 1, 0)
    assert score.damage == pytest.approx((0.75, 0.25, 0.0))


def test_the_random_order_depends_on_the_seed_alone(perceptron):
    assert score_of("random", perceptron) == score_of("random", perceptron, seed=0)
    assert len({score_of("random", perceptron, seed=seed).order for seed in range(5)}) > 1


@pytest.mark.parametrize("score", ["correlation", "leave_one_out_cka", "independence", "taylor"])
def test_no_batches_are_one_clear_error(score, perceptron):
    model, x, groups = perceptron
    with pytest.raises(ValueError, match="no batches"):
        bound("score", score)(Network.trace(model, x), [], groups)


@pytest.mark.parametrize("score", ["leave_one_out_cka", "independence"])
def test_batches_do_not_matter(score, perceptron):
    model, x, groups = perceptron
    once, split = (scores_of(score, model, batches, groups)["0"] for batches in ([x], list(x.split(7))))
    np.testing.assert_allclose(once.damage, split.damage, atol=1e-12)
