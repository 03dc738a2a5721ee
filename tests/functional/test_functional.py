"""One contract for every functional measure, and references for each."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import accuracy_score, zero_one_loss

from simprune import functional
from simprune.functional import FunctionalMeasure, Outputs, Score

N, C = 60, 4


@pytest.fixture(params=functional.names())
def measure(request):
    return functional.get(request.param)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(N, C, generator=generator, dtype=torch.float64) * 3
    b = a + torch.randn(N, C, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(C, (N,), generator=generator)
    return a, b, labels


# ---- the contract ----


def test_declares_what_callers_rely_on(measure):
    low, high = measure.range
    assert low < high
    assert measure.kind in ("rate", "mean", "difference", "statistic")
    assert isinstance(measure.symmetric, bool)
    assert isinstance(measure.larger_is_more_similar, bool)
    assert measure.source
    assert functional.classes()[measure.id] is type(measure)
    assert measure == functional.get(measure.id)


def test_a_model_is_like_itself(measure, data):
    a, _, labels = data
    expected = measure.range[1] if measure.larger_is_more_similar else 0.0
    assert measure(a, a.clone(), labels) == expected


def test_score_is_in_range_and_carries_its_evidence(measure, data):
    low, high = measure.range
    score = measure(*data)
    assert isinstance(score, Score)
    assert score.defined
    assert low <= score <= high
    assert score.count + score.skipped == N
    assert score != (high if measure.larger_is_more_similar else 0.0), "the two models differ"


def test_symmetry_is_as_declared(measure, data):
    a, b, labels = data
    same = measure(a, b, labels) == pytest.approx(measure(b, a, labels), abs=1e-12)
    assert same == measure.symmetric


def test_order_of_samples_does_not_matter(measure, data):
    a, b, labels = data
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert measure(a[order], b[order], labels[order]) == pytest.approx(measure(a, b, labels), abs=1e-12)


def test_batches_give_the_same_as_all_at_once(measure, data):
    parts = zip(*(part.split(7) for part in data), strict=True)
    rows = torch.cat([measure.per_sample([a, b], labels) for a, b, labels in parts])
    assert len(rows) == N
    assert rows.dtype == torch.float64
    assert measure.reduce(rows) == pytest.approx(measure(*data), abs=1e-12)


def test_rows_fit_the_kind_of_bound(measure, data):
    rows = measure.per_sample(data[:2], data[2])
    allowed = {"rate": {0.0, 1.0}, "difference": {-1.0, 0.0, 1.0}}.get(measure.kind)
    if allowed:
        assert set(rows[~rows.isnan()].tolist()) <= allowed
    if measure.kind != "statistic":
        assert rows.shape == (N,)
        assert rows.nanmean().item() == pytest.approx(measure(*data), abs=1e-12)


def test_tensors_arrays_and_lists_agree(measure, data):
    a, b, labels = data
    arrays = [a.numpy().copy(), b.numpy().copy(), labels.numpy().copy()]
    for array in arrays:
        array.flags.writeable = False
    assert measure(*arrays) == measure(a, b, labels) == measure(a.tolist(), b.tolist(), labels.tolist())


def test_inputs_are_left_alone_and_gradients_ignored(measure, data):
    a, b, labels = data
    kept = [a.clone(), b.clone(), labels.clone()]
    measure(a.requires_grad_(), b, labels)
    assert all(torch.equal(x, y) for x, y in zip((a, b, labels), kept, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a, b, y: (a, b.index_fill(0, torch.tensor([3]), math.nan), y),
            "model 2 must be finite; 1 of 60",
        ),
        (
            lambda a, b, y: (a.index_fill(1, torch.tensor([0]), math.inf), b, y),
            "model 1 must be finite; 60 of 60",
        ),
        (lambda a, b, y: (a, b[:-1], y), "one shape"),
        (lambda a, b, y: (a, b[:, :-1], y), "one shape"),
        (lambda a, b, y: (a[:0], b[:0], y[:0]), "N >= 1"),
        (lambda a, b, y: (a[:, :1], b[:, :1], y), "C >= 2"),
        (lambda a, b, y: (a[0], b[0], y), r"must be \(N, C\)"),
        (lambda a, b, y: (a > 0, b > 0, y), "real numbers"),
        (lambda a, b, y: ([["x", "y"]], [["x", "y"]], [0]), "real numbers"),
        (lambda a, b, y: (a, b, y + 1), r"labels must lie in \[0, 4\)"),
        (lambda a, b, y: (a, b, y - 1), r"labels must lie in \[0, 4\)"),
        (lambda a, b, y: (a, b, y[:-1]), r"shape \(60,\)"),
        (lambda a, b, y: (a, b, y.double()), "integer class indices"),
        (lambda a, b, y: (a, b, y.double().numpy()), "integer class indices"),
    ],
)
def test_bad_input_is_one_clear_error(measure, data, change, message):
    with pytest.raises(ValueError, match=message):
        measure(*change(*data))


def test_labels_are_asked_for(measure, data):
    if measure.needs_labels:
        with pytest.raises(ValueError, match="needs labels"):
            measure(*data[:2])
    else:
        assert measure(*data[:2]) == measure(*data)


def test_number_of_models_is_checked(measure, data):
    fewest, _ = measure.models
    with pytest.raises(ValueError, match="takes the outputs of"):
        measure.group([data[0]] * (fewest - 1), data[2])


# ---- references ----


def test_disagreement_is_the_error_of_one_model_against_the_other(data):
    a, b, _ = data
    expected = zero_one_loss(a.argmax(1), b.argmax(1))
    assert functional.get("disagreement")(a, b) == pytest.approx(expected, abs=1e-12)


def test_the_first_of_tied_classes_is_the_prediction():
    ties = Outputs.from_logits([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert ties.classes.tolist() == [0, 1, 0]


def test_accuracy_drop_is_a_difference_of_accuracies(data):
    a, b, labels = data
    right = [x.argmax(1) == labels for x in (a, b)]
    expected = accuracy_score(labels, a.argmax(1)) - accuracy_score(labels, b.argmax(1))
    score = functional.get("accuracy_drop")(a, b, labels)
    assert score == pytest.approx(expected, abs=1e-12)
    difference = right[0].double() - right[1].double()
    assert score.details["standard_error"] == pytest.approx(difference.numpy().std() / math.sqrt(N), abs=1e-12)
    lost, gained = (int((x & ~y).sum()) for x, y in (right, right[::-1]))
    assert score.details["standard_error"] == pytest.approx(
        math.sqrt(lost + gained - (lost - gained) ** 2 / N) / N, abs=1e-12
    )


@pytest.mark.parametrize("base", [2, math.e, 10])
def test_jensen_shannon_divergence_is_scipys_distance_squared(data, base):
    a, b, _ = data
    distance: Any = jensenshannon  # its stub lacks axis
    expected = np.mean(distance(a.softmax(1).numpy(), b.softmax(1).numpy(), axis=1, base=base) ** 2)
    measure = functional.get("jensen_shannon_divergence", base=base)
    assert measure(a, b) == pytest.approx(expected, abs=1e-12)
    assert measure.range == (0, pytest.approx(math.log(2, base)))
    wrapped = [Outputs.from_probabilities(x.softmax(1)) for x in (a, b)]
    assert measure(*wrapped) == pytest.approx(expected, abs=1e-12)


def test_jensen_shannon_divergence_of_extreme_logits():
    f = functional.get("jensen_shannon_divergence")
    assert f([[1e4, -1e4]], [[-1e4, 1e4]]) == 1
    assert f([[744.4, 0.0]], [[1e4, 0.0]]) == pytest.approx(0, abs=1e-12)  # a subnormal probability beside 0
    assert f([[5.0, 1.0]], [[105.0, 101.0]]) == pytest.approx(0, abs=1e-12)  # softmax ignores a shift


@pytest.mark.parametrize("base", [1, 0.5, 0, -2, math.inf, math.nan, "2"])
def test_base_must_make_a_logarithm(base):
    with pytest.raises(ValueError, match="base of the logarithm"):
        functional.get("jensen_shannon_divergence", base=base)


# ---- outputs, scores, registry ----


@pytest.mark.parametrize("rows", [[[0.5, 0.6]], [[-0.1, 1.1]], [[3.0, -1.0]]])
def test_logits_are_not_probabilities(rows):
    with pytest.raises(ValueError, match="probabilities must be >= 0 and every row must sum to 1"):
        Outputs.from_probabilities(rows)


def test_outputs_know_both_forms(data):
    a, _, _ = data
    logits, probabilities = Outputs.from_logits(a), Outputs.from_probabilities(a.softmax(1))
    assert torch.equal(logits.classes, probabilities.classes)
    assert torch.allclose(logits.probabilities, probabilities.probabilities, atol=1e-12)
    assert torch.allclose(logits.log_probabilities, probabilities.log_probabilities, atol=1e-12)
    assert logits.shape == (N, C)


def test_half_precision_is_compared_in_float64(data):
    a, _, _ = data
    assert Outputs.from_logits(a.to(torch.bfloat16)).probabilities.dtype == torch.float64


def test_skipped_samples_are_counted_and_none_left_is_undefined():
    measure = functional.get("disagreement")
    score = measure.reduce(torch.tensor([1.0, math.nan, 0.0, 0.0]))
    assert (float(score), score.count, score.skipped) == (pytest.approx(1 / 3), 3, 1)
    nothing = measure.reduce(torch.full((5,), math.nan))
    assert not nothing.defined
    assert (nothing.count, nothing.skipped) == (0, 5)
    assert "every sample was skipped" in nothing.reason


def test_unknown_id_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean disagreement"):
        functional.get("disagrement")
    with pytest.raises(KeyError, match="known: accuracy_drop"):
        functional.get("zzz")


def test_unknown_hyperparameter_names_the_known_ones():
    with pytest.raises(ValueError, match="does not take bass; its hyperparameters: base"):
        functional.get("jensen_shannon_divergence", bass=2)
    with pytest.raises(ValueError, match="its hyperparameters: none"):
        functional.get("disagreement", base=2)


def test_an_id_is_given_once():
    with pytest.raises(ValueError, match="is taken by"):
        type("Other", (FunctionalMeasure,), {"id": "disagreement"})
