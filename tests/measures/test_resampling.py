"""Chance and uncertainty of a similarity matrix."""

import dataclasses

import numpy as np
import pytest
import torch

from simprune import measures


def normal(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(count=80, width=6, seed=0, share=0.6):
    X = normal(count, width, seed)
    return {
        "a": X,
        "b": share * X + (1 - share**2) ** 0.5 * normal(count, width, seed + 1),
        "c": normal(count, 4, seed + 2),
    }


LABELS = torch.arange(80) % 3
RESAMPLED = ["cka", "cka_debiased", "linear_regression", "orthogonal_procrustes", "knn_jaccard", "rsa"]
some = pytest.mark.parametrize("id", RESAMPLED)


@some
def test_shuffled_inputs_score_lower_and_say_how_likely_the_value_is(id):
    layers = related()
    result = measures.matrix(id, layers, null="permuted", repeats=39)
    null, values = result.null, result.values
    assert null.repeats == 39
    assert null.mean.shape == null.p_value.shape == values.shape
    better = np.greater if measures.get(id).larger_is_more_similar else np.less
    assert better(values[0, 1], null.mean[0, 1])
    assert better(values.diagonal(), null.mean.diagonal()).all()
    assert null.p_value[0, 1] == null.p_value[0, 0] == 1 / 40
    assert null.p_value[0, 2] > 1 / 40  # unrelated
    low, middle, high = (null.quantiles[name] for name in ("2.5%", "50%", "97.5%"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (low < null.mean).all()
    assert (null.mean < high).all()
    assert np.array_equal(values, measures.matrix(id, layers).values)


def test_the_null_is_the_value_of_shuffled_rows():
    layers = related(40)
    found = measures.matrix("cka", layers, null="permuted", repeats=100).null
    cka, g = measures.get("cka"), torch.Generator().manual_seed(9)
    direct = [cka(layers["a"], layers["b"][torch.randperm(40, generator=g)]) for _ in range(100)]
    error = np.std(direct) / 100**0.5
    assert abs(found.mean[0, 1] - np.mean(direct)) < 5 * error
    assert abs(found.quantiles["97.5%"][0, 1] - np.quantile(direct, 0.975)) < 10 * error


@some
def test_seeds_decide(id):
    layers = related(40)
    options = {"null": "permuted", "repeats": 3, "bootstrap": 4}
    one, again, other = (measures.matrix(id, layers, seed=seed, **options) for seed in (1, 1, 2))
    assert np.array_equal(one.null.mean, again.null.mean)
    assert np.array_equal(one.interval.low, again.interval.low)
    assert not np.array_equal(one.null.mean, other.null.mean)
    assert not np.array_equal(one.interval.low, other.interval.low)


@some
def test_the_interval_is_around_the_value_and_within_range(id):
    result = measures.matrix(id, related(), bootstrap=20)
    low, high = result.interval.low, result.interval.high
    assert result.interval.resamples == 20
    assert (low <= result.values).all()
    assert (result.values <= high).all()
    assert (high - low)[0, 1] > 0.005
    assert low.min() >= measures.get(id).range[0]
    assert high.max() <= measures.get(id).range[1]


@pytest.mark.parametrize("width", [6, 150])
def test_intervals_hold_the_truth(width):
    """Also for more units than inputs, where drawing inputs twice would put every value near one."""
    cka = measures.get("cka_debiased")
    truth = np.mean([cka(*list(related(400, width, 10_000 + 3 * s).values())[:2]) for s in range(4)])
    hits = []
    for s in range(8):
        layers = {name: X for name, X in related(40, width, 3 * s).items() if name != "c"}
        interval = measures.matrix(cka, layers, bootstrap=25).interval
        hits.append(interval.low[0, 1] <= truth <= interval.high[0, 1])
    assert np.mean(hits) >= 0.75


def test_labels_and_other_inputs_are_drawn_with_the_rows():
    layers = related()
    with_labels = measures.matrix("tolerance", layers, LABELS, bootstrap=5)
    assert (with_labels.interval.high - with_labels.interval.low)[0, 2] > 0
    Z = normal(80, 3, 7)
    confounded = measures.matrix("cka_deconfounded", layers, confounder=Z, bootstrap=3, null="permuted", repeats=3)
    assert np.isfinite(confounded.interval.low).all()
    assert np.isfinite(confounded.null.mean).all()


def test_a_measures_own_seed_follows_and_unknown_options_are_refused():
    layers = related(40)
    with pytest.raises(ValueError, match="cka takes no option 'seed'"):
        measures.matrix("cka", layers, seed=1)
    with pytest.raises(ValueError, match="cka takes no option 'repeats'"):
        measures.matrix("cka", layers, repeats=1)
    seeded = [id for id, cls in measures.classes().items() if "seed" in {f.name for f in dataclasses.fields(cls)}]
    assert "neuron_graph_modularity" in seeded
    measures.matrix("neuron_graph_modularity", layers, seed=3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"null": "shuffled"}, 'must be "permuted"'),
        ({"null": "permuted", "repeats": 0}, "at least 1"),
        ({"bootstrap": 1}, "at least 2"),
        ({"bootstrap": -1}, "at least 2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measures.matrix("cka", related(20), **options)


def test_what_cannot_be_drawn_is_refused():
    layers = related(20)
    prepared = {"a": measures.get("cka").prepare(layers["a"]), "b": layers["b"]}
    with pytest.raises(ValueError, match="a is prepared already"):
        measures.matrix("cka", prepared, bootstrap=3)
    with pytest.raises(ValueError, match="pairing of inputs has no part"):
        measures.matrix("magnitude", layers, null="permuted")
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        measures.matrix("cka_debiased", {name: X[:6] for name, X in layers.items()}, bootstrap=3)


@pytest.mark.parametrize("id", ["cka_debiased", "gbs", "linear_regression"])
def test_an_interval_from_some_inputs_is_near_that_from_all(id):
    X = related(800)
    every = measures.matrix(id, X, null="permuted", repeats=5, bootstrap=200)
    some = measures.matrix(id, X, null="permuted", repeats=5, bootstrap=200, resample_inputs=200)
    assert every.interval and some.interval and every.null and some.null
    assert (every.interval.inputs, some.interval.inputs, every.null.inputs, some.null.inputs) == (800, 200, 800, 200)
    np.testing.assert_array_equal(every.values, some.values)
    widths = [(each.interval.high - each.interval.low)[0, 1] for each in (every, some)]
    assert widths[1] < 2 * widths[0]
    assert widths[0] < 2 * widths[1]
    assert (some.interval.low <= some.values + 1e-12).all()
    assert (some.values <= some.interval.high + 1e-12).all()


def test_too_few_inputs_to_draw_from_are_refused():
    with pytest.raises(ValueError, match="resample_inputs must be at least 8, got 7"):
        measures.matrix("cka_debiased", related(), null="permuted", resample_inputs=7)
