"""Outputs, scores and the registry, and what each measure says where its formula says nothing."""

import math

import pytest
import torch

from simprune import functional, measures
from simprune.functional import FunctionalMeasure, Outputs

N, C = 60, 4


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(N, C, generator=generator, dtype=torch.float64) * 3
    b = a + torch.randn(N, C, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(C, (N,), generator=generator)
    return a, b, labels


def answers(*classes, of=3):
    """Logits whose largest is at these classes."""
    return 5 * torch.eye(of)[list(classes)]


def f(id, *outputs, labels=None, **hyper):
    return functional.get(id, **hyper).group(outputs, labels)


# ---- where the formula says nothing: NaN or infinity with the reason, never an exception ----

ZERO, ONE = answers(0, 0), answers(1, 1)


@pytest.mark.parametrize(
    ("id", "a", "b", "labels", "value", "reason"),
    [
        ("cohen_kappa", ZERO, ZERO, None, math.nan, "one and the same class everywhere; use disagreement"),
        ("cohen_kappa", ZERO, ONE, None, 0.0, ""),
        ("fleiss_kappa", ZERO, ZERO, None, math.nan, "one and the same class everywhere"),
        ("fleiss_kappa", ZERO, ONE, None, -1.0, ""),
        ("error_consistency", ZERO, ZERO, [0, 0], math.nan, "always right or always wrong"),
        ("error_consistency", ZERO, ZERO, [1, 2], math.nan, "always right or always wrong"),
        ("error_consistency", ZERO, ONE, [0, 0], 0.0, ""),
        ("error_corrected_disagreement", ZERO, ZERO, [0, 0], 0.0, "makes no error"),
        ("error_corrected_disagreement", ZERO, ONE, [0, 0], math.inf, "makes no error"),
        ("error_ratio", ZERO, ZERO, [0, 0], math.nan, "no sample is wrong in both"),
        ("error_ratio", ZERO, ONE, [2, 2], math.inf, "never share a wrong answer"),
        ("error_ratio", ZERO, ZERO, [2, 2], 0.0, ""),
        ("min_max_normalized_disagreement", ZERO, ZERO, [0, 0], math.nan, "use disagreement"),
        ("min_max_normalized_disagreement", ZERO, answers(0, 1), [0, 0], math.nan, "use disagreement"),
        ("min_max_normalized_disagreement", ZERO, ONE, [0, 0], math.nan, "use disagreement"),
        ("min_max_normalized_disagreement", ZERO, ONE, [2, 2], 1.0, ""),
        (
            "min_max_normalized_disagreement",
            answers(0, 0, of=2),
            answers(0, 1, of=2),
            [1, 1],
            math.nan,
            "use disagreement",
        ),
        ("disagreement_given_reference_correct", ZERO, ONE, [1, 1], math.nan, "never right"),
        ("combined_error_variance", ZERO, ONE, [0, 1], math.nan, "no false negative in class 0, 1"),
        ("symmetric_distance_error", ZERO, ONE, [0, 0], math.nan, "in class 0; use max_class_recall_drop"),
        ("mcnemar_exact_p", ZERO, ZERO, [0, 1], 1.0, ""),
        ("max_class_recall_drop", ZERO, ONE, [0, 0], 1.0, ""),
        ("max_class_recall_drop", ONE, ZERO, [0, 0], -1.0, ""),
        ("mean_centred_recall_change", ZERO, ONE, [0, 0], 0.0, ""),
        ("performance_difference", ZERO, ONE, [0, 0], 1.0, ""),
        ("cosine_agreement", 0 * ZERO, ZERO, None, math.nan, "zero vector"),
        ("neighbour_overlap", torch.zeros(11, 2), torch.ones(11, 2), None, math.nan, "zero vector"),
        ("relative_error", 0 * ZERO, 0 * ZERO, None, math.nan, "first model are zero"),
        ("relative_error", 0 * ZERO, ZERO, None, math.inf, "first model are zero"),
        ("token_kl_divergence", ZERO[None], ONE[None], [[-100, -100]], math.nan, "no token counts"),
        ("token_agreement", ZERO[None], ONE[None], [[-100, -100]], math.nan, "no token counts"),
        ("perplexity_change", ZERO[None], ONE[None], [[-100, -100]], math.nan, "no token counts"),
        ("perplexity_change", 1e5 * ZERO[None], 1e5 * ZERO[None], [[1, 1]], math.nan, "both perplexities are infinite"),
        ("perplexity_change", ZERO[None], 1e5 * ZERO[None], [[1, 1]], math.inf, ""),
    ],
)
def test_undefined_values_have_a_reason(id, a, b, labels, value, reason):
    score = f(id, a, b, labels=labels)
    assert score == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert score.defined != math.isnan(value)
    assert reason in score.reason
    assert bool(reason) == bool(score.reason)


def test_an_undefined_measure_of_representations_has_a_reason():
    score = f("representational_similarity", ZERO, ONE, measure=lambda A, B: math.nan)
    assert not score.defined
    assert "undefined for these outputs" in score.reason


@pytest.mark.parametrize("id", ["nll", "kl_divergence"])
def test_no_probability_at_all_is_infinite(id):
    sure, unsure = Outputs.from_probabilities([[0.0, 1.0]]), Outputs.from_probabilities([[0.5, 0.5]])
    measure = functional.get(id)
    if id == "kl_divergence":
        assert (measure(unsure, sure), measure(sure, sure)) == (math.inf, 0.0)
        return
    assert measure.describe(sure, [0]) == math.inf
    assert measure(unsure, sure, [0]) == math.inf
    score = measure(sure, sure, [0])
    assert not score.defined
    assert "infinite for both" in score.reason


@pytest.mark.parametrize("id, alone", [("ambiguity", 0), ("discrepancy", 0), ("stable_core", 1), ("label_entropy", 0)])
def test_a_model_alone_agrees_with_itself(id, alone, data):
    assert f(id, data[0]) == alone


def test_samples_with_a_zero_vector_are_skipped():
    score = f("cosine_agreement", [[0.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [-2.0, 0.0]])
    assert (float(score), score.count, score.skipped) == (-1.0, 1, 1)
    assert f("cosine_agreement", [[1e300, 0.0]], [[1e-300, 0.0]]) == 1.0  # neither overflow nor underflow


def test_outputs_of_any_shape_are_vectors():
    a, b = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    assert f("relative_error", a, b) == f("relative_error", a.flatten(1), b.flatten(1))
    assert f("relative_error", a[:, 0, 0], b[:, 0, 0]) == f("relative_error", a[:, 0, :1], b[:, 0, :1])


@pytest.mark.parametrize("confidence", [1 / 5, 1 / 3, 2 / 3, 1.0])
def test_a_confidence_on_an_edge_is_in_the_bin_below(confidence):
    """One sample on the edge is right, one just below is wrong: in one bin, their gaps cancel in part."""
    below = confidence - 0.01
    classes = 8
    rows = [[top, *[(1 - top) / (classes - 1)] * (classes - 1)] for top in (confidence, below)]
    score = functional.get("ece").describe(Outputs.from_probabilities(rows), [0, 1])
    assert score == pytest.approx(abs((1 - confidence) - below) / 2, abs=1e-12)
    above = [
        [min(confidence + 0.01, 1.0), *[(1 - min(confidence + 0.01, 1.0)) / (classes - 1)] * (classes - 1)],
        rows[1],
    ]
    apart = functional.get("ece").describe(Outputs.from_probabilities(above), [0, 1])
    if confidence < 1:
        assert apart == pytest.approx((1 - (confidence + 0.01) + below) / 2, abs=1e-12)


def test_confidences_of_tied_logits_are_on_the_edge():
    tied = torch.tensor([[1.0, 1.0, 1.0, -2000.0]])  # softmax is 1/3, the upper edge of the fifth of 15 bins
    below = Outputs.from_probabilities([[0.32, 0.3, 0.3, 0.08]])
    p = Outputs.from_probabilities(torch.cat([Outputs.of(tied).probabilities, below.probabilities]))
    assert functional.get("ece").describe(p, [0, 1]) == pytest.approx((1 - 1 / 3 - 0.32) / 2, abs=1e-12)


def test_aurc_of_tied_confidences_is_the_mean_over_orders():
    p = Outputs.from_probabilities([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2]])
    orders = [(0 + 1 / 2 + 1 / 3) / 3, (0 + 0 + 1 / 3) / 3]  # the error comes second or third
    assert functional.get("aurc").describe(p, [0, 1, 0]) == pytest.approx(sum(orders) / 2, abs=1e-12)


def test_equal_confidences_are_ties_whatever_the_last_bit_says():
    """The softmax of equal logits depends in its last bit on the order of the classes, and so would the ranking."""
    wrong = torch.arange(60) % 4 == 0
    rows = torch.tensor([2.1, 0.3, -0.7, 1.4, 0.9, -1.1]).double()
    for first, second in ((0, 1), (1, 0)):  # the wrong ones come first or last by the last bit
        logits = torch.where(wrong[:, None], rows.roll(first), rows.roll(second).flip(0))
        labels = logits.argmax(1)
        labels[wrong] = (labels[wrong] + 1) % 6
        assert functional.get("aurc").describe(logits, labels) == pytest.approx(0.25, abs=1e-12)
    for sign in (1, -1):
        p = torch.tensor([[0.7 + sign * 2e-16 * bool(w), 0.3] for w in wrong], dtype=torch.float64)
        outputs = Outputs.from_probabilities(p)
        assert functional.get("aurc").describe(outputs, wrong.long()) == pytest.approx(0.25, abs=1e-12)


def test_neighbours_of_equal_cosine_are_those_of_lower_index():
    """After a rotation the same cosines differ by rounding, and the neighbours stay the same."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-2, 3, (80, 3), generator=generator).double() + 0.5
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    assert f("neighbour_overlap", a, a @ turn) == 1
    assert f("neighbour_overlap", a, a.flip(1)) == 1
    b = torch.randint(-2, 3, (80, 3), generator=generator).double() + 0.5
    assert f("neighbour_overlap", a, b) == pytest.approx(measures.get("mutual_knn")(a, b), abs=1e-12)


def test_ties_of_exemplars_go_to_the_largest_class():
    assert f("pie_rate", answers(0), answers(2), answers(2), answers(2)) == 0
    assert f("pie_rate", answers(0), answers(2), answers(0), answers(0)) == 1


def test_an_absent_class_counts_zero_in_f1():
    score = f("performance_difference", answers(0, 1), answers(0, 0), labels=[0, 1], metric="f1_macro")
    assert score.details["scores"] == pytest.approx([2 / 3, (2 / 3) / 3])


@pytest.mark.parametrize("theta", [2 / 3, 0.6])
def test_a_stable_core_counts_models_exactly(theta):
    models = [answers(0)] * 2 + [answers(1)] if theta > 0.6 else [answers(0)] * 3 + [answers(1), answers(2)]
    assert f("stable_core", *models, theta=theta) == 1
    assert f("stable_core", *models, theta=theta + 1e-9) == 0


def test_prune_potential_keeps_what_is_just_allowed():
    right, wrong = answers(*[0] * 200), answers(*[0] * 199, 1)
    labels = [0] * 200
    assert f("prune_potential", right, wrong, labels=labels, ratios=[0.5]) == 0.5  # one of 200 is 0.5 points
    assert f("prune_potential", right, wrong, labels=labels, ratios=[0.5], delta=0.0049) == 0
    assert f("prune_potential", right, wrong, right, labels=labels, ratios=(0.3, 0.9), delta=0) == 0.9


def test_a_shift_per_row_does_not_matter_to_the_softmax(data):
    a, b, labels = data
    for id in ("prediction_norm_difference", "kl_divergence", "surrogate_churn", "rashomon_capacity", "nll"):
        assert f(id, a, b + 100, labels=labels) == pytest.approx(f(id, a, b, labels=labels), abs=1e-9)


# ---- groups of the right make ----


@pytest.mark.parametrize(
    ("id", "count", "hyper", "message"),
    [
        ("pie_rate", 3, {}, "K originals, then K pruned models; got 3"),
        ("noise_functional_distance", 3, {}, "a and b of each noise level in turn; got 3"),
        ("prune_potential", 3, {"ratios": (0.5,)}, "the dense model, then one for each of the 1 ratios; got 3"),
        ("excess_error_difference", 2, {}, "takes the outputs of 4 models; got 2"),
    ],
)
def test_a_group_of_the_wrong_make_is_refused(id, count, hyper, message, data):
    with pytest.raises(ValueError, match=message):
        f(id, *[data[0]] * count, labels=data[2], **hyper)


def test_four_outputs_are_asked_for_by_name(data):
    with pytest.raises(ValueError, match="dense, pruned, dense_shifted, pruned_shifted"):
        functional.get("excess_error_difference")(*data)


def test_neighbours_need_samples(data):
    with pytest.raises(ValueError, match="k=10 needs more than 10 samples; got 10"):
        f("neighbour_overlap", data[0][:10], data[1][:10])


# ---- hyperparameters ----


@pytest.mark.parametrize(
    ("id", "hyper", "message"),
    [
        *(("jensen_shannon_divergence", {"base": base}, "base of the log") for base in (1, 0.5, 0, -2, math.inf)),
        *(("jensen_shannon_divergence", {"base": base}, "base must be float") for base in ("2", math.nan, True, None)),
        ("performance_difference", {"metric": "f1"}, "metric must be 'accuracy' or 'f1_macro', got 'f1'"),
        ("stable_core", {"theta": 0}, r"theta is a share of the models in \(0, 1\]"),
        ("stable_core", {"theta": 1.1}, r"theta is a share of the models in \(0, 1\]"),
        ("prediction_norm_difference", {"p": 0.5}, "p of the norm must be >= 1"),
        ("prediction_difference", {"p": 0.5}, "p of the norm must be >= 1"),
        ("surrogate_churn", {"alpha": 0}, "alpha must be positive"),
        ("surrogate_churn", {"alpha": math.inf}, "alpha must be positive"),
        ("ece", {"bins": 0}, "at least one bin"),
        ("mce", {"bins": 2.5}, "bins must be int, got 2.5"),
        ("prune_potential", {}, "needs ratios"),
        ("prune_potential", {"ratios": ()}, "ratios must be shares removed"),
        ("prune_potential", {"ratios": [50]}, "ratios must be shares removed"),
        ("prune_potential", {"ratios": ["0.5"]}, "ratios must be tuple"),
        ("prune_potential", {"ratios": [0.5], "delta": 2}, "delta is a difference of error rates"),
        ("neighbour_overlap", {"k": 0}, "at least one neighbour"),
        ("labelwise_disagreement", {"threshold": 1}, "threshold is a probability"),
        ("representational_similarity", {"measure": "cka"}, "measure must be .*Callable.*, got 'cka'"),
        ("token_agreement", {"shift": 1}, "shift must be bool"),
    ],
)
def test_bad_hyperparameters_are_refused_when_made(id, hyper, message):
    with pytest.raises(ValueError, match=message):
        functional.get(id, **hyper)


def test_the_first_of_tied_classes_is_the_prediction():
    ties = Outputs.from_logits([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert ties.classes.tolist() == [0, 1, 0]


def test_accuracy_drop_has_the_paired_standard_error(data):
    a, b, labels = data
    right = [x.argmax(1) == labels for x in (a, b)]
    score = functional.get("accuracy_drop")(a, b, labels)
    difference = right[0].double() - right[1].double()
    assert score.details["standard_error"] == pytest.approx(difference.numpy().std() / math.sqrt(N), abs=1e-12)
    lost, gained = (int((x & ~y).sum()) for x, y in (right, right[::-1]))
    assert score.details["standard_error"] == pytest.approx(
        math.sqrt(lost + gained - (lost - gained) ** 2 / N) / N, abs=1e-12
    )


def test_jensen_shannon_divergence_of_extreme_logits():
    f = functional.get("jensen_shannon_divergence")
    assert f([[1e4, -1e4]], [[-1e4, 1e4]]) == 1
    assert f([[744.4, 0.0]], [[1e4, 0.0]]) == pytest.approx(0, abs=1e-12)  # a subnormal probability beside 0
    assert f([[5.0, 1.0]], [[105.0, 101.0]]) == pytest.approx(0, abs=1e-12)  # softmax ignores a shift


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
    with pytest.raises(KeyError, match="did you mean 'disagreement'"):
        functional.get("disagrement")
    with pytest.raises(KeyError, match="known: accuracy_drop"):
        functional.get("zzz")


def test_unknown_hyperparameter_names_the_known_ones():
    with pytest.raises(ValueError, match="takes no option 'bass'; did you mean 'base'"):
        functional.get("jensen_shannon_divergence", bass=2)
    with pytest.raises(ValueError, match="takes no option 'base'; known: none"):
        functional.get("disagreement", base=2)


def test_an_id_is_given_once():
    with pytest.raises(ValueError, match="is taken by"):
        type("Other", (FunctionalMeasure,), {"id": "disagreement"})
