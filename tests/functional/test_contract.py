"""What every functional measure promises, checked for every id; a new measure is covered as soon as it exists.

A measure with required hyperparameters, or for more than two models, gets an entry in `CASES_OF`. Measures that need
models rather than outputs, of the form "models", have their contract in `test_models.py`.
"""

import copy
import dataclasses
import math
import pickle
import weakref

import numpy as np
import pytest
import torch

from simprune import functional, measures
from simprune.functional import Score

N = 60
SHAPES = {"classes": (4,), "tokens": (5, 4), "maps": (4, 2, 3), "vectors": (6,), "multilabel": (4,)}  # of one sample
CASES_OF = {  # hyperparameters, number of outputs
    "excess_error_difference": [({}, 4)],
    "jensen_shannon_divergence": [({}, 2), ({"base": math.e}, 2)],
    "noise_functional_distance": [({}, 2), ({}, 6)],
    "performance_difference": [({}, 2), ({"metric": "f1_macro"}, 3)],
    "perplexity_change": [({}, 2), ({"shift": True}, 2)],
    "perplexity_increase": [({}, 2), ({"shift": True}, 2)],
    "pie_rate": [({}, 2), ({}, 6)],
    "prediction_norm_difference": [({}, 2), ({"p": 1}, 2), ({"p": math.inf}, 2)],
    "prune_potential": [({"ratios": (0.5,)}, 2), ({"ratios": (0.3, 0.5, 0.9), "delta": 0.2}, 4)],
    "representational_similarity": [({"measure": measures.get("cka")}, 2)],
    "stable_core": [({}, 2), ({"theta": 0.6}, 4)],
} | {
    id: [({}, 2), ({}, 5)]
    for id in (
        "ambiguity",
        "discrepancy",
        "fleiss_kappa",
        "label_entropy",
        "prediction_difference",
        "rashomon_capacity",
    )
}
CASES = [
    (id, hyper, count)
    for id, cls in functional.classes().items()
    if getattr(cls, "form", None) in SHAPES
    for hyper, count in CASES_OF.get(id, [({}, 2)])
]


@pytest.fixture(params=CASES, ids=[f"{id}-{count}-{hyper}" for id, hyper, count in CASES])
def case(request):
    """A measure, outputs of noisy copies of one model, and labels."""
    id, hyper, count = request.param
    measure = functional.get(id, **hyper)
    return measure, *data(measure.form, count)


def data(form, count, samples=N, shape=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = samples, *(shape or SHAPES[form])

    def noise():
        return torch.randn(shape, generator=generator, dtype=dtype)

    first = noise() * 3
    outputs = [first, *(first + 2 * noise() for _ in range(count - 1))]
    of = {"tokens": shape[:2], "maps": (shape[0], *shape[2:])}.get(form, shape[:1])
    labels = torch.randint(shape[1] if form == "maps" else shape[-1], of, generator=generator)
    if form == "tokens":
        labels[::3, 1:] = -100
    if form == "maps":
        labels[::3, 1:] = 255
    return outputs, labels


def best(measure):
    return measure.range[1] if measure.larger_is_more_similar else max(0.0, measure.range[0])


# ---- values ----


def test_declares_what_callers_rely_on(case):
    measure = case[0]
    for owner in (measure, type(measure)):  # listings read the class
        low, high = owner.range
        assert low < high
        assert isinstance(owner.symmetric, bool)
        assert isinstance(owner.larger_is_more_similar, bool)
    assert measure.kind in ("rate", "mean", "difference", "worst_difference", "statistic")
    assert measure.source
    assert ">>>" in (type(measure).__doc__ or "")
    assert functional.classes()[measure.id] is type(measure)


def test_is_a_frozen_hashable_plain_dataclass(case):
    measure = case[0]
    fields = {each.name: getattr(measure, each.name) for each in dataclasses.fields(measure)}
    again = functional.get(measure.id, **fields)
    assert measure == again == copy.copy(measure) == pickle.loads(pickle.dumps(measure))
    assert hash(measure) == hash(again)
    assert again.range == pickle.loads(pickle.dumps(measure)).range == measure.range
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(measure, name, fields[name])
        with pytest.raises(ValueError, match=rf"{measure.id}: {name} must be"):
            functional.get(measure.id, **fields | {name: object()})


def test_a_model_is_like_itself(case):
    measure, outputs, labels = case
    assert measure.group([outputs[0].clone() for _ in outputs], labels) == pytest.approx(best(measure), abs=1e-12)


def test_score_is_in_range_and_carries_its_evidence(case):
    measure, outputs, labels = case
    low, high = measure.range
    score = measure.group(outputs, labels)
    assert isinstance(score, Score)
    assert score.defined
    assert not score.reason
    assert low <= score <= high
    assert score.count + score.skipped == N
    if measure.id != "prune_potential":  # not every model is safe, some may be
        assert score != pytest.approx(best(measure), abs=1e-9), "the models differ"


def test_symmetry_is_as_declared(case):
    measure, outputs, labels = case
    if len(outputs) > 2:
        half = len(outputs) // 2
        swaps = {
            "excess_error_difference": [1, 0, 3, 2],
            "noise_functional_distance": [1, 0, 3, 2, 5, 4],
            "pie_rate": [3, 4, 5, 0, 1, 2],
        }
        order = swaps.get(measure.id, [*range(half, len(outputs)), *range(half)])
    else:
        order = [1, 0]
    same = measure.group([outputs[i] for i in order], labels) == pytest.approx(measure.group(outputs, labels), abs=1e-9)
    coincide = ("prune_potential", "boundary_disagreement")  # few values; all pixels of a small map are near a boundary
    assert same == measure.symmetric or measure.id in coincide


def test_order_of_samples_does_not_matter(case):
    measure, outputs, labels = case
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    mixed = measure.group([each[order] for each in outputs], labels[order])
    assert mixed == pytest.approx(measure.group(outputs, labels), abs=1e-12)


def test_rows_fit_the_kind_of_bound(case):
    measure, outputs, labels = case
    rows = measure.per_sample(outputs, labels)
    assert len(rows) == N
    values = measure.values(rows)
    allowed = {"rate": {0.0, 1.0}, "difference": {-1.0, 0.0, 1.0}}.get(measure.kind)
    if allowed:
        assert set(values[~values.isnan()].tolist()) <= allowed
    if measure.kind not in ("statistic", "worst_difference"):
        assert values.shape == (N,)
        assert values.dtype == torch.float64
        assert values.nanmean().item() == pytest.approx(measure.group(outputs, labels), abs=1e-12)


# ---- streaming ----


def test_batches_give_the_same_as_all_at_once(case):
    measure, outputs, labels = case
    stream = measure.stream()
    for batch in zip(*(each.split(7) for each in [*outputs, labels]), strict=True):
        stream.update(batch[:-1], batch[-1])
    whole = measure.group(outputs, labels)
    assert torch.equal(stream.rows(), measure.per_sample(outputs, labels)) or measure.streams
    score = stream.score()
    assert score == pytest.approx(whole, abs=1e-12)
    assert (score.count, score.skipped) == (whole.count, whole.skipped)
    if measure.streams:
        parts = zip(*(each.split(7) for each in [*outputs, labels]), strict=True)
        rows = torch.cat([measure.per_sample(batch[:-1], batch[-1]) for batch in parts])
        assert measure.reduce(rows) == score


@pytest.mark.parametrize(
    "id", [id for id, cls in functional.classes().items() if getattr(cls, "form", "") == "classes"]
)
def test_rows_are_small_and_hold_no_logits(id):
    hyper, count = CASES_OF.get(id, [({}, 2)])[0]
    measure = functional.get(id, **hyper)
    outputs, labels = data("classes", count, samples=8, shape=(1000,))
    alive = [weakref.ref(each.untyped_storage()) for each in outputs]
    pointers = {each.untyped_storage().data_ptr() for each in outputs}
    stream = measure.stream()
    stream.update(outputs, labels)
    rows = stream.rows()
    assert rows.untyped_storage().nbytes() == rows.numel() * rows.element_size() <= 64 * len(rows)
    assert rows.untyped_storage().data_ptr() not in pointers
    del outputs
    assert not any(ref() is not None for ref in alive), "1,000,000 samples of 1000 classes must not need their logits"


def test_a_stream_keeps_one_buffer_and_no_rows_of_batches(monkeypatch):
    """Small tensors kept from every batch lie where its logits were, and the process grows as if it kept those."""
    measure, made = functional.get("ece"), []
    of_batch = type(measure)._rows
    monkeypatch.setattr(type(measure), "_rows", lambda *args: made.append(of_batch(*args)) or made[-1])
    outputs, labels = data("classes", 2)
    stream = measure.stream()
    for _ in range(9):
        stream.update(outputs, labels)
    alive = [weakref.ref(rows) for rows in made]
    made.clear()
    assert not any(ref() is not None for ref in alive)
    rows = stream.rows()
    assert rows.shape == (9 * N, 2, 2)
    assert rows.untyped_storage().nbytes() <= 2 * rows.nbytes


def test_a_stream_refuses_what_does_not_fit(case):
    measure, outputs, labels = case
    with pytest.raises(ValueError, match="no batch was added"):
        measure.stream().score()
    stream = measure.stream()
    stream.update(outputs, labels)
    with pytest.raises(ValueError, match="batches must be alike"):
        stream.update([torch.cat([each, each], 1 if measure.form == "maps" else -1) for each in outputs], labels)


# ---- input ----


def test_tensors_arrays_and_lists_agree(case):
    measure, outputs, labels = case
    arrays = [each.numpy().copy() for each in [*outputs, labels]]
    for array in arrays:
        array.flags.writeable = False
    value = measure.group(outputs, labels)
    assert measure.group(arrays[:-1], arrays[-1]) == value
    assert measure.group([each.tolist() for each in outputs], labels.tolist()) == value


def test_the_call_is_the_group_of_two(case):
    measure, outputs, labels = case
    if len(outputs) == 2:
        assert measure(*outputs, labels) == measure.group(outputs, labels)


def test_inputs_are_left_alone_and_gradients_ignored(case):
    measure, outputs, labels = case
    kept = [each.clone() for each in [*outputs, labels]]
    outputs[0].requires_grad_()
    measure.group(outputs, labels)
    assert all(torch.equal(x, y) for x, y in zip([*outputs, labels], kept, strict=True))


def test_bad_outputs_are_one_clear_error(case):
    measure, (first, second, *rest), labels = case
    bad = [
        (second.index_fill(0, torch.tensor([3]), math.nan), "model 2 must be finite; 1 of 60"),
        (second.index_fill(1, torch.tensor([0]), math.inf), "model 2 must be finite; 60 of 60"),
        (second[:-1], "one shape"),
        (second[..., :-1], "one shape"),
        (second[:0], "N >= 1|N, T >= 1"),
        (second > 0, "real numbers"),
        (second.numpy().astype(str), "real numbers"),
    ]
    for changed, message in bad:
        with pytest.raises(ValueError, match=message):
            measure.group([first, changed, *rest], labels)


def test_outputs_must_have_the_shape_of_the_form(case):
    measure, outputs, labels = case
    if measure.form in ("classes", "tokens"):
        for where in ((..., slice(1)), 0, None):
            with pytest.raises(ValueError, match=r"must be \(N, "):
                measure.group([each[where] for each in outputs], labels)


def test_bad_labels_are_one_clear_error(case):
    measure, outputs, labels = case
    bad = [
        (labels + 4, r"labels must lie in \[0, 4\)"),
        (labels - 5, r"labels must lie in \[0, 4\)"),
        (labels[:-1], r"labels must have shape \(60,"),
        (labels.double(), "integer class indices"),
        (labels.double().numpy(), "integer class indices"),
    ]
    for changed, message in bad:
        if measure.form in ("classes", "tokens", "maps"):
            with pytest.raises(ValueError, match=message):
                measure.group(outputs, changed)
        else:
            assert measure.group(outputs, changed) == measure.group(outputs), message


def test_labels_are_asked_for(case):
    measure, outputs, labels = case
    if measure.needs_labels:
        with pytest.raises(ValueError, match="needs labels"):
            measure.group(outputs)
    elif measure.form not in ("tokens", "maps"):  # there, labels tell which positions count
        assert measure.group(outputs) == measure.group(outputs, labels)


def test_number_of_models_is_checked(case):
    measure, outputs, labels = case
    fewest, most = measure.models
    with pytest.raises(ValueError, match="takes the outputs of"):
        measure.group(outputs[:1] * (fewest - 1), labels)
    if most is not None:
        with pytest.raises(ValueError, match="takes the outputs of"):
            measure.group(outputs[:1] * (most + 1), labels)


def test_one_sample_is_no_exception(case):
    measure, outputs, labels = case
    if measure.id in ("neighbour_overlap", "representational_similarity"):  # need several, and say so
        with pytest.raises(ValueError, match="needs"):
            measure.group([each[:1] for each in outputs], labels[:1])
        return
    score = measure.group([each[:1] for each in outputs], labels[:1])
    assert score.defined or score.reason
    assert score.count + score.skipped == 1


def test_extreme_logits_are_no_exception(case):
    measure, outputs, labels = case
    with np.errstate(all="raise"):
        score = measure.group([1e6 * each for each in outputs], labels)
    assert score.defined or score.reason
