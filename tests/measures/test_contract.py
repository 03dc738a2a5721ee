"""What every measure promises, checked for every id; a new measure is covered as soon as it exists.

A measure with required hyperparameters, or whose traits depend on them, gets one line in `EXAMPLES`.
"""

import copy
import dataclasses
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simprune import measures
from simprune.measures import UndefinedWarning
from simprune.measures._base import INVARIANCES
from simprune.measures.contrasim import Encoder

pytestmark = pytest.mark.filterwarnings("ignore::simprune.measures.DegenerateWarning")

N = 24


def _encoder():
    """ContraSim's, as `fit` would return it for every width used here."""
    generator = torch.Generator().manual_seed(0)
    first = {width: torch.randn(width, 16, generator=generator, dtype=torch.float64) for width in range(1, 121)}
    return Encoder(first, torch.randn(16, 8, generator=generator, dtype=torch.float64))


EXAMPLES = {id: [{}] for id in measures.names()} | {
    "cka_deconfounded": [{}, {"psd": False}],
    "cka_minibatch": [{"batch_size": 8}],
    "cka_rbf": [{}, {"threshold": 0.4}, {"debiased": True}],
    "cka_sparse": [{"top": 6}, {"top": 9, "kernel": "linear"}, {"top": 9, "kernel": "rbf"}],
    "contrasim": [{"encoder": _encoder()}],
    "distance_correlation": [{}, {"debiased": True}],
    "gbs": [{}, {"k": 5}, {"center": True}],
    "geometry_score": [{"landmarks": 12, "gamma": 0.3, "repeats": 8}],
    "gradient_cka": [{}, {"debiased": True}],
    "gulp": [{}, {"lam": 0.1}],
    "intrinsic_dimension": [{}, {"method": "mle"}, {"method": "mle", "k": 4}],
    "linear_regression": [{}, {"target": "second"}],
    "maximum_match": [{"epsilon": 0.8}],
    "partial_whitening_shape_metric": [{"alpha": 0.0}, {"alpha": 0.5}, {"alpha": 1.0}],
    "permutation_angular": [{}, {"center": False}],
    "permutation_procrustes": [{}, {"center": True}],
    "pwcca": [{}, {"weights": "second"}, {"weights": "smaller"}, {"weights": "mean"}],
    "relational_knowledge_loss": [{}, {"form": "angle", "triples": 500}],
    "riemannian_distance": [{"reg": 0.1}],
    "rsa": [
        {},
        {"inner": "euclidean", "outer": "pearson"},
        {"inner": "dot", "outer": "euclidean"},
        {"outer": "kendall"},
    ],
    "rsm_norm_difference": [{}, {"inner": "dot"}],
    "uniformity": [{}, {"normalize": False, "t": 0.01}],
}
# Of fewer units there is no value: nothing varies across units, or between them.
SMALLEST_WIDTH = {"cka_sparse": 2, "cknna": 2, "neuron_graph_modularity": 2, "rsa": 3}
# What a measure says of X and itself where that is not the end of its range.
OWN = {
    "eigenspace_overlap": lambda X, _: int(torch.linalg.matrix_rank(X.double())) / X.shape[1],
    "gbs": lambda X, gbs: 1.0 if gbs.center else X.ne(0).any(1).double().mean().item(),  # zero rows count as 0
}
# A unit that does nothing counts as a correlation of 0, also with itself.
COUNT_DEAD_UNITS = {"hard_correlation_match", "soft_correlation_match", "soft_matching_correlation"}
CASES = [(id, hyper) for id, hypers in EXAMPLES.items() for hyper in hypers]
LABELS = torch.arange(N) % 3

every = pytest.mark.parametrize("id, hyper", CASES, ids=[f"{id}-{hyper}" if hyper else id for id, hyper in CASES])


@pytest.fixture
def measure(id, hyper):
    return measures.get(id, **hyper)


def rows(width, seed=0, count=N, dtype=torch.float64):
    """Correlated, positive-mean rows, so that no invariance holds by accident."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(count, width, generator=generator, dtype=torch.float64)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return (X @ mix + torch.randn(width, generator=generator, dtype=torch.float64).abs()).to(dtype)


def others(measure, count=N):
    """What else `prepare` of `count` rows wants."""
    labels = {"labels": LABELS[:count]} if measure.needs_labels else {}
    return labels | {name: rows(6, 99, count) for name in measure.extras}


def value(measure, X, Y):
    return measure(X, Y, **others(measure, len(X)))


def own_value(measure, X):
    if measure.id in OWN:
        return OWN[measure.id](X, measure)
    return measure.range[1] if measure.larger_is_more_similar else measure.range[0]


def close(expected, tolerance=1e-9):
    # a distance of zero comes out of arccos or a square root with the root of the rounding error
    return pytest.approx(expected, rel=tolerance, abs=1e-7 if np.min(np.abs(expected)) < 1e-3 else tolerance)


@every
def test_declares_everything(measure):
    assert set(measure.invariant_to) <= set(INVARIANCES)
    assert ("AT" in measure.invariant_to) == ({"ILT", "TR"} <= set(measure.invariant_to))
    assert "ILT" not in measure.invariant_to or "IS" in measure.invariant_to
    low, high = measure.range
    assert low < high
    assert isinstance(measure.larger_is_more_similar, bool)
    assert not (measure.is_metric and (measure.larger_is_more_similar or not measure.symmetric))
    assert measure.source
    assert measure.cost
    assert measure.undefined
    assert ">>>" in (type(measure).__doc__ or "")
    assert f"Source: {measure.source}." in " ".join((type(measure).__doc__ or "").split())


@every
def test_is_a_frozen_hashable_plain_dataclass(measure, hyper, id):
    assert measures.classes()[id] is type(measure)
    assert measure == measures.get(id, **hyper)
    assert hash(measure) == hash(measures.get(id, **hyper))
    assert pickle.loads(pickle.dumps(measure)) == measure == copy.copy(measure)
    for each in dataclasses.fields(measure):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(measure, each.name, getattr(measure, each.name))
        with pytest.raises(ValueError, match=each.name):
            dataclasses.replace(measure, **{each.name: object()})


@every
@given(seed=st.integers(0, 10**6), width=st.integers(1, 40), other=st.integers(1, 40))
@settings(deadline=None, derandomize=True, max_examples=15)
def test_range_symmetry_and_self_similarity(id, hyper, seed, width, other):
    measure = measures.get(id, **hyper)
    smallest = SMALLEST_WIDTH.get(id, 1)
    X, Y = rows(max(width, smallest), seed), rows(max(other, smallest), seed + 1)
    low, high = measure.range
    result = value(measure, X, Y)
    assert low <= result <= high
    if measure.symmetric:
        assert result == close(value(measure, Y, X))
    assert value(measure, X, X) == close(own_value(measure, X))


@every
def test_similar_is_on_the_declared_side(measure):
    near = far = 0.0
    for seed in range(5):  # together: two unrelated representations may share one statistic by chance
        X = rows(8, seed)
        near += value(measure, X, X + 0.1 * rows(8, seed + 5))
        far += value(measure, X, rows(8, seed + 10))
    assert near > far if measure.larger_is_more_similar else near < far


def transformed(X, kind, seed=7):
    generator = torch.Generator().manual_seed(seed)
    width = X.shape[1]
    full = torch.randn(width, width, generator=generator, dtype=X.dtype)
    shift = 5 * torch.randn(width, generator=generator, dtype=X.dtype)
    return {
        "PT": lambda: X[:, torch.randperm(width, generator=generator)],
        "OT": lambda: X @ torch.linalg.qr(full).Q,
        "IS": lambda: 37.5 * X,
        "ILT": lambda: X @ full,
        "TR": lambda: X + shift,
        "AT": lambda: X @ full + shift,
    }[kind]()


@every
def test_declared_invariances_hold_and_others_do_not(measure):
    for width in (6, 40):
        X, Y = rows(width, 3), rows(7, 4)
        before = value(measure, X, Y)
        for kind in INVARIANCES:
            if kind in measure.invariant_to:
                assert value(measure, transformed(X, kind), Y) == close(before), (kind, width)
                if measure.symmetric:
                    assert value(measure, Y, transformed(X, kind)) == close(before), (kind, width)
            elif width < N - 1:  # beyond, a measure may be constant
                # Neighbours are discrete: one transformation may leave them.
                changed = (value(measure, transformed(X, kind, seed), Y) for seed in (7, 8, 9))
                assert any(abs(each - before) > 1e-6 for each in changed), (kind, width)


@every
def test_prepared_pairs_and_matrices_equal_the_call(measure):
    layers = {
        "thin": rows(3),
        "middle": rows(11, 1),
        "wide": rows(50, 2),
        "single": rows(4, 3, dtype=torch.float32),
    }
    prepared = [measure.prepare(X, **others(measure)) for X in layers.values()]
    result = measures.matrix(measure, layers, **others(measure))
    assert result.names == tuple(layers)
    assert result.values.dtype == np.float64
    for i, X in enumerate(layers.values()):
        for j, Y in enumerate(layers.values()):
            expected = close(value(measure, X, Y), 1e-6 if 3 in (i, j) else 1e-9)
            assert result.values[i, j] == expected
            assert measure.compare(prepared[i], prepared[j]) == expected
    assert np.array_equal(measures.matrix(measure, dict(zip(layers, prepared, strict=True))).values, result.values)


@every
def test_numpy_and_torch_agree_and_inputs_stay_as_they_are(measure):
    X, Y = rows(9), rows(30, 1)
    kept = X.clone(), Y.clone()
    expected = value(measure, X, Y)
    assert value(measure, X, Y) == expected  # deterministic
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    assert value(measure, frozen, Y.numpy()) == expected
    assert value(measure, np.asfortranarray(X.numpy()), Y.T.contiguous().T) == close(expected)
    assert torch.equal(X, kept[0])
    assert torch.equal(Y, kept[1])


@every
def test_float32_with_a_common_offset_stays_accurate(measure):
    offset = 1e3 if "TR" in measure.invariant_to else 0.0
    for width in (5, 60):
        X = rows(width, dtype=torch.float32) + offset
        Y = X[:, : width // 2] + rows(width // 2, 1, dtype=torch.float32)
        assert value(measure, X, Y) == pytest.approx(value(measure, X.double(), Y.double()), abs=1e-4), width


@pytest.mark.parametrize(
    "id, hyper",
    [case for case in CASES if "IS" in measures.get(case[0], **case[1]).invariant_to],
)
def test_scale_invariance_survives_extreme_units(measure):
    Y = rows(8, 1)
    for width in (5, 60):
        X = rows(width, dtype=torch.float32)
        expected = pytest.approx(value(measure, X, Y), abs=1e-4)
        for scale in (1e-30, 1e30):
            assert value(measure, X * scale, Y) == expected, (scale, width)


AWKWARD = {
    "dead units": lambda X: torch.cat([X, torch.zeros(N, 4)], 1),
    "constant units": lambda X: torch.cat([X, torch.full((N, 4), 0.1)], 1),
    "rank-deficient": lambda X: torch.cat([X, X], 1),
    "duplicate rows": lambda X: torch.cat([X[:8], X[:8], X[:8]]),
    "zero rows": lambda X: torch.cat([torch.zeros(2, 6), X[2:]]),
    "more units than rows": lambda X: X.repeat(1, 20),
    "one unit": lambda X: X[:, :1],
    "integers with ties": lambda X: X.round().long(),
}


@every
def test_awkward_input_has_a_value(measure):
    for name, spoil in AWKWARD.items():
        X = spoil(rows(6))
        if X.shape[1] < SMALLEST_WIDTH.get(measure.id, 1):
            continue  # so few units have no value
        with warnings.catch_warnings():
            warnings.simplefilter("error", UndefinedWarning)
            result = value(measure, X, rows(6, 1))
            own = value(measure, X, X)
        assert measure.range[0] <= result <= measure.range[1], name
        if measure.id in COUNT_DEAD_UNITS:
            X = X[:, X.ne(X[0]).any(0)]
            own = value(measure, X, X)
        assert own == close(own_value(measure, X)), name


@every
def test_a_constant_representation_is_undefined_or_within_range(measure):
    for case in itertools.product((3, 30), (torch.float32, torch.float64), (0.0, 0.1, 1e3)):
        width, dtype, constant = case
        X, Y = torch.full((N, width), constant, dtype=dtype), rows(5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = value(measure, X, Y)
            values = measures.matrix(measure, {"dead": X, "fine": Y}, **others(measure)).values
        said = [str(each.message) for each in caught if each.category is UndefinedWarning]
        if math.isnan(result):
            assert len(said) == 2, case
            assert all(measure.undefined in text for text in said), case
            assert "dead" in said[1], case
            assert np.isnan(values[0]).all(), case
            assert np.isfinite(values[1, 1]), case
        else:
            assert measure.range[0] <= result <= measure.range[1], case
            assert not said or not measure.symmetric, case  # the other way round it may be undefined


@every
def test_bad_rows_are_refused(measure, id):
    X = rows(5)
    given = others(measure)
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = X.clone()
        spoiled[3, 2] = bad
        with pytest.raises(ValueError, match=r"Y must be finite, got 1 NaN or infinite"):
            measure(X, spoiled, **given)
        with pytest.raises(ValueError, match="second must be finite"):
            measures.matrix(measure, {"first": X, "second": spoiled}, **given)
    with pytest.raises(ValueError, match="flatten or pool"):
        measure.prepare(torch.zeros(N, 2, 3, 3), **given)
    with pytest.raises(ValueError, match="flatten or pool"):
        measure.prepare(torch.zeros(N, 0), **given)
    with pytest.raises(ValueError, match="real numbers"):
        measure.prepare(X.to(torch.complex64), **given)
    with pytest.raises(ValueError, match="real numbers"):
        measure.prepare(np.array([["a"]] * N), **given)
    few = measure.minimum_rows - 1
    with pytest.raises(ValueError, match=f"at least {measure.minimum_rows} rows, got {few}"):
        measure.prepare(X[:few], **others(measure, few))
    with pytest.raises(ValueError, match="expected the inputs"):
        measure.prepare(X, **given, nonsense=X)
    if measure.needs_labels:
        with pytest.raises(ValueError, match="needs labels"):
            measure.prepare(X)


@every
def test_pairs_that_do_not_belong_together_are_refused(measure, id):
    X, fewer = rows(5), rows(5, count=N - 1)
    a, b = measure.prepare(X, **others(measure)), measure.prepare(fewer, **others(measure, N - 1))
    with pytest.raises(ValueError, match=f"rows, got {N} and {N - 1}"):
        measure.compare(a, b)
    with pytest.raises(ValueError, match=f"rows, got {N} and {N - 1}"):
        measure.matrix([a, b])
    with pytest.raises(ValueError, match="prepare"):
        measure.compare(a, X)  # pyright: ignore[reportArgumentType]
    other = measures.get("cka" if id != "cka" else "cka_debiased")
    with pytest.raises(ValueError, match="prepared"):
        measure.compare(a, other.prepare(X))
    with pytest.raises(ValueError, match="at least one"):
        measures.matrix(measure, {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    for id, hyper in CASES:
        measure, layers = measures.get(id, **hyper), {"a": rows(5), "b": rows(60, 1)}
        expected = measures.matrix(measure, layers, **others(measure)).values
        there = measures.matrix(measure, {name: X.cuda() for name, X in layers.items()}, **others(measure)).values
        assert there == close(expected), (id, hyper)
