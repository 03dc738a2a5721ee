"""Accumulated in any batches and merged in any order, a measure has the value of all rows at once."""

import warnings

import numpy as np
import pytest
import torch

from simprune import measures
from simprune.measures import UndefinedWarning
from simprune.measures._moments import FORMS
from simprune.trace.capture import capture, stream
from simprune.trace.sites import Site

N = 150
VARIANTS = {
    "mean_cca": [{}, {"denominator": "dim"}],
    "svcca": [{}, {"threshold": 0.7}],
    "pwcca": [{}, {"weights": "second"}, {"weights": "smaller"}, {"weights": "mean"}],
    "partial_whitening_shape_metric": [{"alpha": 0.0}, {"alpha": 0.3}, {"alpha": 1.0}],
    "permutation_procrustes": [{}, {"center": True}],
    "permutation_angular": [{}, {"center": False}],
    "linear_regression": [{}, {"target": "second"}],
    "gulp": [{}, {"lam": 0.1}],
}
CASES = [(id, hyper) for id in FORMS for hyper in VARIANTS.get(id, [{}])]

every = pytest.mark.parametrize("id, hyper", CASES, ids=[f"{id}-{hyper}" if hyper else id for id, hyper in CASES])


def layers(dtype=torch.float64, offset=0.0, dead=False):
    """Four related representations of different widths, dead units and duplicated units among them."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(N, 9, generator=g, dtype=torch.float64) @ torch.randn(9, 9, generator=g, dtype=torch.float64)
    Y = X[:, :5].relu() + 0.3 * torch.randn(N, 5, generator=g, dtype=torch.float64)
    found = {
        "wide": X,
        "thin": torch.cat([Y, torch.zeros(N, 2, dtype=torch.float64)], 1),
        "deficient": torch.cat([X[:, :3], X[:, 1:4] * 2], 1) + 1.0,
        "one": X[:, :1].tanh(),
    }
    if dead:
        found["dead"] = torch.full((N, 3), 0.1, dtype=torch.float64)
    return {name: (rows + offset).to(dtype) for name, rows in found.items()}


LABELS = torch.arange(N) * 7 % 4


def accumulated(measure, rows, cuts):
    """One accumulator per list in `cuts` (positions in the data where its batches end), merged from the right."""
    parts, start = [], 0
    for ends in cuts:
        acc = measures.streaming(measure, rows)
        for end in ends:
            labels = LABELS[start:end] if acc.needs_labels else None
            acc.update({name: X[start:end] for name, X in rows.items()}, labels)
            start = end
        parts.append(acc)
    assert start == N
    merged = parts[-1]
    for other in parts[-2::-1]:
        merged.merge(other)
    assert merged.count == N
    return merged


def at_once(measure, rows):
    return measures.matrix(measure, rows, LABELS if measure.needs_labels else None).values


def assert_equal(found, expected, tolerance=1e-9):
    """Distances are roots of differences of moments: near zero they have the root of the rounding error."""
    near = 1e-7 * np.nanmax(np.abs(expected))
    found, expected = (np.where(np.abs(values) < near, 0.0, values) for values in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


BATCHINGS = [  # of each worker, where its batches end
    [[N]],
    [[50, 100, 150]],
    [[1, 2, 80, N]],
    [[30, 90], [97, 140, N]],
    [[40], [41], [], [90], [N]],
]


@every
def test_equals_the_value_of_all_rows(id, hyper):
    measure = measures.get(id, **hyper)
    rows = layers()
    expected = at_once(measure, rows)
    for cuts in BATCHINGS:
        found = accumulated(measure, rows, cuts).matrix()
        assert found.names == tuple(rows)
        assert found.measure == id
        assert_equal(found.values, expected)


@every
def test_float32_with_an_offset_keeps_the_digits_of_its_input(id, hyper):
    measure = measures.get(id, **hyper)
    rows = layers(torch.float32, offset=1e3)
    del rows["deficient"]  # no longer so: rounding has given it a direction too small for second moments
    expected = at_once(measure, {name: X.double() for name, X in rows.items()})
    assert_equal(accumulated(measure, rows, [[64, 128], [N]]).matrix().values, expected, 1e-7)


@every
def test_a_constant_representation_is_undefined_as_for_all_rows(id, hyper):
    measure = measures.get(id, **hyper)
    rows = layers(dead=True)
    with warnings.catch_warnings(record=True) as expected_warnings:
        warnings.simplefilter("always")
        expected = at_once(measure, rows)
    with warnings.catch_warnings(record=True) as found_warnings:
        warnings.simplefilter("always")
        found = accumulated(measure, rows, [[70], [N]]).matrix().values
    assert_equal(found, expected)
    of = [
        [str(w.message) for w in each if w.category is UndefinedWarning] for each in (found_warnings, expected_warnings)
    ]
    assert of[0] == of[1]


def test_measures_share_one_state():
    rows = layers()
    ids = ["cka_debiased", "svcca", "magnitude"]
    acc = measures.streaming(ids, rows)
    for start in range(0, N, 40):
        acc.update({name: X[start : start + 40] for name, X in rows.items()})
    width = 1 + sum(X.shape[1] for X in rows.values()) + len(rows)
    assert acc.moments.shape == (width, width)
    for id in ids:
        assert_equal(acc.matrix(id).values, at_once(measures.get(id), rows))
    assert acc.value("wide", "thin", "svcca") == acc.matrix("svcca").values[0, 1]
    assert acc.describe("magnitude")["thin"] == pytest.approx(measures.get("magnitude").describe(rows["thin"]))
    with pytest.raises(ValueError, match="name the one you want"):
        acc.matrix()
    with pytest.raises(ValueError, match="does not describe"):
        acc.describe("svcca")


def test_the_value_can_be_asked_for_at_any_time():
    rows = layers()
    acc = measures.streaming("cka_debiased", rows)
    for end in (60, 110, N):
        start = acc.count
        acc.update({name: X[start:end] for name, X in rows.items()})
        assert_equal(acc.matrix().values, at_once(measures.get("cka_debiased"), {n: X[:end] for n, X in rows.items()}))


def test_sums_need_no_products():
    rows = layers()
    acc = measures.streaming("magnitude", rows)
    acc.update(rows)
    assert acc.moments.shape == (1, 1 + sum(X.shape[1] for X in rows.values()))


def test_arrays_in_and_refusals():
    rows = layers()
    acc = measures.streaming("cka", ["a", "b"])
    a, b = rows["wide"], rows["thin"]
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        acc.matrix()
    spoiled = b.clone()
    spoiled[3, 1] = float("nan")
    with pytest.raises(ValueError, match="b must be finite, got 1 NaN"):
        acc.update({"a": a, "b": spoiled})
    assert acc.count == 0
    acc.update({"a": a.numpy(), "b": b})
    with pytest.raises(ValueError, match=r"rows of a, b, got a"):
        acc.update({"a": a})
    with pytest.raises(ValueError, match="same inputs"):
        acc.update({"a": a, "b": b[1:]})
    with pytest.raises(ValueError, match="widths"):
        acc.update({"a": a, "b": a})
    with pytest.raises(ValueError, match="flatten or pool"):
        acc.update({"a": a, "b": b[..., None]})
    with pytest.raises(ValueError, match="same measures and names"):
        acc.merge(measures.streaming("cka", ["a", "c"]))
    with pytest.raises(ValueError, match="widths"):
        acc.merge(measures.streaming("cka", ["a", "b"]).update({"a": a, "b": a}))
    assert acc.count == N
    assert_equal(acc.matrix().values, at_once(measures.get("cka"), {"a": a, "b": b}))


def test_measures_without_a_streaming_form_say_so():
    with pytest.raises(ValueError, match="cka_rbf has no streaming form"):
        measures.streaming("cka_rbf", ["a"])
    with pytest.raises(KeyError, match="did you mean"):
        measures.streaming("cka_debiasd", ["a"])
    with pytest.raises(ValueError, match="distinct"):
        measures.streaming("cka", ["a", "a"])
    with pytest.raises(ValueError, match="pass get"):
        measures.streaming(["svcca", "cka"], ["a"], threshold=0.9)
    assert measures.streaming("svcca", ["a"], threshold=0.9).measures == (measures.get("svcca", threshold=0.9),)


def test_memory_is_bounded():
    acc = measures.streaming("cka", ["a", "b"], limit_bytes=8 * 100**2)
    with pytest.raises(ValueError, match="pool the representations"):
        acc.update({"a": torch.zeros(4, 60), "b": torch.zeros(4, 40)})


def test_labels_are_needed_where_the_measure_needs_them():
    rows = layers()
    acc = measures.streaming("tolerance", rows)
    with pytest.raises(ValueError, match="labels"):
        acc.update(rows)
    assert acc.count == 0


def test_capture_feeds_an_accumulator():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.Flatten())
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 3, 6, 6, generator=g), torch.arange(n) % 2) for n in (20, 7, 13)]
    sites = [Site("0", layout="flatten"), Site("1"), Site("2"), Site("0", side="input")]
    ids = ["cka_debiased", "tolerance"]
    acc = stream(model, batches, sites, measures.streaming(ids, [site.name for site in sites]))
    rows = capture(model, batches, sites)
    labels = torch.cat([labels for _, labels in batches])
    assert acc.count == 40
    for id in ids:
        expected = measures.matrix(id, rows, labels if id == "tolerance" else None).values
        np.testing.assert_allclose(acc.matrix(id).values, expected, atol=1e-6)
    assert acc.value("0", "1", "cka_debiased") < 0.99  # before the in-place ReLU, not after it
    acc.merge(acc).update(rows, labels)  # also outside of inference mode
    with pytest.raises(ValueError, match="nothing was read at 0"):
        stream(model, [], sites, acc)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_gpu_equals_cpu(id, hyper):
    measure = measures.get(id, **hyper)
    rows = {name: X.cuda() for name, X in layers().items()}
    assert_equal(accumulated(measure, rows, [[50], [N]]).matrix().values, at_once(measure, layers()))
