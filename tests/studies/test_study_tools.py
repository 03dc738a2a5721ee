"""The pure parts of the studies: matches, rank correlation, scores of transferability, attacks, related data sets."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.stats import kendalltau, multivariate_normal
from torch import nn

import simprune as sp
from simprune.studies.tools.attacks import attacked, noised
from simprune.studies.tools.matching import best_matches, match_layers
from simprune.studies.tools.rank import kendall_interval, tau_of_draws
from simprune.studies.tools.related import classes_sharing, noisy, permuted_pixels
from simprune.studies.tools.transfer import h_score, knn_accuracy, leep, log_me, n_leep, probe_accuracy

RNG = np.random.default_rng(0)


def test_equal_layers_match_and_unrelated_ones_are_at_chance() -> None:
    pairs = list(combinations(range(5), 2))
    perfect = match_layers({pair: np.eye(4) for pair in pairs})
    assert (perfect.accuracy, perfect.low, perfect.high) == (1.0, 1.0, 1.0)
    assert np.array_equal(perfect.matrix, np.eye(4))
    many = list(combinations(range(40), 2))
    chance = match_layers({pair: RNG.random((4, 4)) for pair in many})
    assert chance.accuracy == pytest.approx(1 / 4, abs=0.03)
    assert chance.low < 1 / 4 < chance.high
    assert np.allclose(chance.matrix.sum(1), 1)


def test_a_distance_matches_as_the_similarity_does_and_undefined_values_never_match() -> None:
    values = RNG.random((6, 6))
    assert np.array_equal(best_matches(-values, larger_is_more_similar=False), best_matches(values))
    values[2] = np.nan
    values[:, 4] = np.nan
    best = best_matches(values)
    assert best[2] == -1
    assert 4 not in best
    assert match_layers({(0, 1): values}).matrix.sum() == pytest.approx(5)
    with pytest.raises(ValueError, match="L x L"):
        match_layers({(0, 1): np.ones((2, 3))})


def test_the_interval_of_matches_resamples_networks() -> None:
    alike, other = np.eye(3), np.roll(np.eye(3), 1, 0)
    pairs = list(combinations(range(6), 2))
    outlier = match_layers({pair: other if 5 in pair else alike for pair in pairs})
    assert outlier.accuracy == pytest.approx(10 / 15)
    assert outlier.low < 0.4  # the one network that is unlike the others may be drawn several times
    assert outlier.high == 1  # or not at all
    two = match_layers({(0, 1): alike})
    assert two.accuracy == 1
    assert np.isnan([two.low, two.high]).all()


def test_kendall_is_that_of_scipy_with_ties_and_in_every_draw() -> None:
    x, y = RNG.integers(0, 5, 12).astype(float), RNG.integers(0, 5, 12).astype(float)
    value, low, high = kendall_interval(x, y)
    assert value == pytest.approx(kendalltau(x, y).statistic)
    times = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 20)
    signs = [np.sign(values[:, None] - values) for values in (x, y)]
    expected = [kendalltau(np.repeat(x, time), np.repeat(y, time)).statistic for time in times]
    assert tau_of_draws(times.astype(float), *signs) == pytest.approx(expected, nan_ok=True)
    assert low < value < high


def test_a_truth_of_few_levels_may_be_followed_perfectly() -> None:
    levels = [0, 0, 1, 1, 2, 2]
    assert kendall_interval(range(6), levels)[0] < 1
    assert kendall_interval(range(6), levels, leave_out_ties=True) == (1, 1, 1)
    assert kendall_interval([0, 0, 1], [0, 1, 1], leave_out_ties=True)[0] == 1


def test_a_score_equal_to_the_truth_has_correlation_one_and_a_random_one_none() -> None:
    truth = RNG.random(200)
    assert kendall_interval(truth, 3 * truth + 1) == (1, 1, 1)
    assert kendall_interval(-truth, truth) == (-1, -1, -1)
    _, low, high = kendall_interval(RNG.random(200), truth)
    assert low < 0 < high
    assert kendall_interval([1, 2, np.nan, 3], [1, 2, 0, 4])[0] == 1
    assert np.isnan(kendall_interval([1, 2, 3], [5, 5, 5])).all()
    with pytest.raises(ValueError, match="one length"):
        kendall_interval([1, 2], [1, 2, 3])


def evidence(features: np.ndarray, target: np.ndarray) -> float:
    """The largest log density of the target under N(0, 1 / beta + F F' / alpha), per input."""

    def negative(logs: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        covariance = np.eye(len(target)) / beta + features @ features.T / alpha
        return -multivariate_normal.logpdf(target, np.zeros(len(target)), covariance)

    return -minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5}).fun / len(target)


@pytest.mark.parametrize("width", [3, 40])
def test_log_me_is_the_largest_evidence(width: int) -> None:
    labels = np.arange(24) % 3
    features = RNG.normal(size=(24, width)) + RNG.normal(size=(3, width))[labels]
    expected = np.mean([evidence(features, (labels == label).astype(float)) for label in range(3)])
    assert log_me(features, labels, rounds=5000) == pytest.approx(expected, abs=2e-3)


def test_h_score_is_the_sum_of_squared_canonical_correlations() -> None:
    labels = RNG.integers(0, 4, 80)
    features = RNG.normal(size=(80, 6)) + RNG.normal(size=(4, 6))[labels]
    shared = sp.measures.get("mean_squared_cca")(features, np.eye(4)[labels][:, :3])
    assert h_score(features, labels) == pytest.approx(3 * shared)
    assert h_score(RNG.normal(size=(80, 90)), labels) == pytest.approx(3)  # as wide as long: it fits anything


def test_leep_of_certain_and_of_useless_predictions() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    entropy = -np.mean(np.log([1 / 2, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 6]))
    assert leep(np.full((6, 5), 1 / 5), labels) == pytest.approx(-entropy)
    assert leep(np.eye(3)[labels], labels) == 0
    source = np.array([0, 0, 1, 1, 1, 0])  # P(y | 0) = 2/3, 0, 1/3; P(y | 1) = 1/3, 2/3, 0
    assert leep(np.eye(2)[source], labels) == pytest.approx(np.mean(np.log([2 / 3, 2 / 3, 1 / 3, 2 / 3, 2 / 3, 1 / 3])))


def test_n_leep_sees_clusters_that_are_classes() -> None:
    labels = np.arange(90) % 3
    separated = 20 * np.eye(3)[labels] + RNG.normal(size=(90, 3))
    assert n_leep(separated, labels) > -0.01
    assert n_leep(RNG.normal(size=(90, 3)), labels) < -0.8
    with pytest.raises(ValueError, match="same for all"):
        n_leep(np.ones((9, 2)), labels[:9])


def test_nearest_neighbours_and_probes_agree_with_scikit_learn() -> None:
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    labels = RNG.integers(0, 3, 60)
    features = RNG.normal(size=(60, 5)) + RNG.normal(size=(3, 5))[labels]
    neighbours = KNeighborsClassifier(3, metric="cosine", algorithm="brute")
    assert knn_accuracy(features, labels, k=3) == cross_val_score(neighbours, features, labels, cv=LeaveOneOut()).mean()
    assert probe_accuracy(np.eye(3)[labels], labels, np.eye(3)[labels], labels) == 1
    noise = RNG.normal(size=(400, 5))
    assert probe_accuracy(noise[:200], np.arange(200) % 2, noise[200:], np.arange(200) % 2) < 0.62


def test_features_must_be_finite_rows() -> None:
    for score in (log_me, h_score, leep, n_leep, knn_accuracy):
        with pytest.raises(ValueError, match="finite rows"):
            score(np.array([[1.0], [np.nan]]), [0, 1])
        with pytest.raises(ValueError, match="finite rows"):
            score(np.ones(3), [0, 1, 0])


@pytest.mark.parametrize("steps", [1, 5])
def test_an_attack_stays_within_its_size_and_raises_the_loss(steps: int) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    images, labels = torch.rand(30, 6), torch.arange(30) % 3
    before = images.clone()
    changed = attacked(model, images, labels, 0.05, steps)
    assert torch.equal(images, before)
    assert (changed - images).abs().max() <= 0.05 + 1e-6
    assert changed.min() >= 0
    assert changed.max() <= 1
    control = noised(images, 0.05, seed=0)
    losses = [F.cross_entropy(model(x), labels).item() for x in (images, control, changed)]
    assert losses[2] > max(losses[:2])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_step_of_an_attack_on_a_linear_model_is_the_sign_of_its_weights() -> None:
    model = nn.Linear(4, 2, bias=False)
    images = torch.full((3, 4), 0.5)
    changed = attacked(model, images, torch.zeros(3, dtype=torch.int64), 0.1)
    assert torch.allclose(changed - images, 0.1 * (model.weight[1] - model.weight[0]).sign().expand(3, 4), atol=1e-6)


def test_sets_of_classes_share_what_was_asked_for() -> None:
    for shared in range(6):
        first, second = classes_sharing(10, 5, shared, seed=1)
        assert len(set(first)) == len(set(second)) == 5
        assert len(set(first) & set(second)) == shared
        assert first == classes_sharing(10, 5, 0, seed=1)[0]
    with pytest.raises(ValueError, match="do not fit"):
        classes_sharing(10, 6, 1)


def test_permuting_pixels_moves_a_share_of_them_alike_in_all_images() -> None:
    images = torch.rand(3, 2, 4, 4)
    assert torch.equal(permuted_pixels(images, 0), images)
    half = permuted_pixels(images, 0.5)
    moved = (half != images).flatten(2)
    assert moved.sum((1, 2)).tolist() == [16, 16, 16]
    assert (moved == moved[0, 0]).all()
    assert torch.equal(half.flatten(2).sort().values, images.flatten(2).sort().values)
    further = (permuted_pixels(images, 0.75) != images).flatten(2)[0, 0]
    assert bool(further[moved[0, 0]].all())


def test_noise_has_its_level() -> None:
    images = torch.rand(4, 1, 20, 20)
    assert (noisy(images, 0.5) - images).std() / images.std() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(noisy(images, 0.0), images)
