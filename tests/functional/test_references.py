"""Every measure against scikit-learn, scipy or its formula written out, and the identities between measures."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import binomtest, entropy
from sklearn.neighbors import NearestNeighbors

from simprune import functional, measures
from simprune.functional import Outputs

N, C = 80, 5
VECTORS = ("cosine_agreement", "relative_error", "neighbour_overlap", "representational_similarity")
TOKENS = ("token_kl_divergence", "token_agreement", "perplexity_change", "perplexity_increase")
RATIOS = (0.2, 0.4, 0.9)


def top(outputs):
    return [np.argmax(each, 1) for each in outputs]


def errors(outputs, y):
    return [np.mean(each != y) for each in top(outputs)]


def disagreement(outputs):
    return sk.zero_one_loss(*top(outputs[:2]))


def correct(outputs, y):
    return [each == y for each in top(outputs)]


def probabilities(outputs):
    return [softmax(each, axis=1) for each in outputs]


def min_max(outputs, y):
    e, f = errors(outputs, y)
    most = min(e + f, 2 - e - f) if outputs[0].shape[1] == 2 else min(e + f, 1)
    return (disagreement(outputs) - abs(e - f)) / (most - abs(e - f))


def error_ratio(outputs, y):
    a, b = top(outputs)
    wrong = (a != y) & (b != y)
    return np.sum(wrong & (a != b)) / np.sum(wrong & (a == b))


def ballots(outputs):
    classes = np.stack(top(outputs), 1)
    return np.stack([(classes == c).sum(1) for c in range(outputs[0].shape[1])], 1)


def fleiss(outputs, y):
    n, m = ballots(outputs), len(outputs)
    observed = np.mean(((n**2).sum(1) - m) / (m * (m - 1)))
    chance = ((n.sum(0) / (len(y) * m)) ** 2).sum()
    return (observed - chance) / (1 - chance)


def pie(outputs, y):
    half = len(outputs) // 2
    # argmax of reversed counts: the largest of tied classes
    modes = [C - 1 - np.argmax(ballots(part)[:, ::-1], 1) for part in (outputs[:half], outputs[half:])]
    return np.mean(modes[0] != modes[1])


def recalls(outputs, y):
    return [sk.recall_score(y, each, labels=np.unique(y), average=None) for each in top(outputs)]


def centred_change(outputs, y):
    before, after = recalls(outputs, y)
    change = after - before
    return np.abs(change - change.mean()).max()


def error_shift(outputs, y):
    rates = []
    for each in top(outputs):
        matrix = sk.confusion_matrix(y, each, labels=np.arange(outputs[0].shape[1]))
        hits = np.diag(matrix)
        false_positive = (matrix.sum(0) - hits) / (len(y) - matrix.sum(1))
        false_negative = (matrix.sum(1) - hits) / matrix.sum(1)
        rates.append(np.stack([false_positive, false_negative], 1))
    return 100 * (rates[1] - rates[0]) / rates[0]


def variance_of_shift(outputs, y):
    v = error_shift(outputs, y)
    return np.mean(np.sum((v - v.mean(0)) ** 2, 1)) / 2


def given_correct(outputs, y):
    a, b = top(outputs)
    return np.sum((a != b) & (a == y)) / np.sum(a == y)


def calibration_errors(logits, y, bins=15):
    p = softmax(logits, axis=1)
    confidence, right = p.max(1), p.argmax(1) == y
    gaps, shares = [], []
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gaps.append(abs(right[inside].mean() - confidence[inside].mean()))
            shares.append(inside.mean())
    return np.array(gaps), np.array(shares)


def ece(logits, y):
    gaps, shares = calibration_errors(logits, y)
    return (gaps * shares).sum()


def mce(logits, y):
    return calibration_errors(logits, y)[0].max()


def brier(logits, y):
    return np.mean(np.sum((softmax(logits, axis=1) - np.eye(logits.shape[1])[y]) ** 2, 1))


def nll(logits, y):
    return sk.log_loss(y, softmax(logits, axis=1), labels=np.arange(logits.shape[1]))


def aurc(logits, y):
    p = softmax(logits, axis=1)
    order = np.argsort(-p.max(1))
    wrong = (p.argmax(1) != y)[order]
    return np.mean([wrong[:k].mean() for k in range(1, len(y) + 1)])


def change(figure):
    return lambda outputs, y: figure(outputs[1], y) - figure(outputs[0], y)


def norm_difference(p):
    def reference(outputs, y):
        a, b = probabilities(outputs)
        return np.mean(np.linalg.norm(a - b, ord=p, axis=1)) / 2

    return reference


def surrogate(alpha):
    def reference(outputs, y):
        a, b = ((p / p.max(1, keepdims=True)) ** alpha for p in probabilities(outputs))
        return np.mean(np.abs(a - b).sum(1)) / 2

    return reference


def to_mean(p):
    def reference(outputs, y):
        P = np.stack(probabilities(outputs))
        return np.mean(np.linalg.norm(P - P.mean(0), ord=p, axis=2))

    return reference


def jsd(base):
    return lambda outputs, y: np.mean(jensenshannon(*probabilities(outputs), axis=1, base=base) ** 2)  # type: ignore


def capacity_of_two(outputs, y):
    def information(w, p, q):
        m = w * p + (1 - w) * q
        return w * rel_entr(p, m).sum() + (1 - w) * rel_entr(q, m).sum()

    values = []
    for p, q in zip(*probabilities(outputs), strict=True):
        found = minimize_scalar(
            lambda w, p=p, q=q: -information(w, p, q), bounds=(0, 1), method="bounded", options={"xatol": 1e-10}
        )
        values.append(math.exp(-found.fun))
    return np.mean(values)


def capacity(outputs, y):
    """Maximized over weights by a general-purpose solver."""
    count = len(outputs)
    values = []
    for P in np.stack(probabilities(outputs), 1):
        found = minimize(
            lambda w, P=P: -w @ rel_entr(P, w @ P).sum(1),
            np.full(count, 1 / count),
            jac=lambda w, P=P: 1 - rel_entr(P, w @ P).sum(1),
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        values.append(math.exp(-found.fun))
    return np.mean(values)


def potential(outputs, y):
    dense, *pruned = (np.sum(each != y) for each in top(outputs))
    return max([r for r, wrong in zip(RATIOS, pruned, strict=True) if wrong - dense <= 0.1 * len(y)], default=0)


def excess(outputs, y):
    dense, pruned, dense_shifted, pruned_shifted = errors(outputs, y)
    return (pruned_shifted - pruned) - (dense_shifted - dense)


def noise_distance(outputs, y):
    pairs = itertools.batched(outputs, 2) if hasattr(itertools, "batched") else zip(outputs[::2], outputs[1::2])  # noqa: B905
    return np.mean([np.linalg.norm(p - q, axis=1) for p, q in map(probabilities, pairs)])


def overlap(outputs, y):
    found = []
    for each in outputs:
        search = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(each)
        found.append(search.kneighbors(return_distance=False)[:, :5])
    return np.mean([len(set(p[:5]) & set(q[:5])) / 5 for p, q in zip(*found, strict=True)])


def cka(outputs, y):
    X, Y = (each - each.mean(0) for each in outputs)
    return np.linalg.norm(X.T @ Y) ** 2 / (np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y))


def used(outputs, y):
    return [each[y != -100] for each in outputs], y[y != -100]


def token_kl(outputs, y):
    a, b = (softmax(each, axis=1) for each in used(outputs, y)[0])
    return np.mean(entropy(a, b, axis=1))


def perplexities(outputs, y):
    chosen, labels = used(outputs, y)
    return [math.exp(-log_softmax(each, axis=1)[np.arange(len(labels)), labels].mean()) for each in chosen]


def perplexity_change(outputs, y):
    a, b = perplexities(outputs, y)
    return b - a


def perplexity_increase(outputs, y):
    a, b = perplexities(outputs, y)
    return b / a - 1


def q(metric):
    return {
        "accuracy": sk.accuracy_score,
        "f1_macro": lambda y, p: sk.f1_score(y, p, labels=np.arange(C), average="macro", zero_division=0.0),
    }[metric]


def spread(metric):
    def reference(outputs, y):
        scores = [q(metric)(y, each) for each in top(outputs)]
        return max(scores) - min(scores)

    return reference


def exact_p(outputs, y):
    a, b = correct(outputs, y)
    return binomtest(int(np.sum(a & ~b)), int(np.sum(a != b))).pvalue


def pairs(outputs):
    return [disagreement(each) for each in itertools.combinations(outputs, 2)]


def rate(change):
    return lambda outputs, y: np.mean(change(*correct(outputs, y)))


REFERENCES = {  # id: (hyperparameters, number of outputs, reference)
    "accuracy_drop": [({}, 2, lambda o, y: np.subtract(*(sk.accuracy_score(y, each) for each in top(o))))],
    "ambiguity": [({}, 4, lambda o, y: np.mean(np.ptp(np.stack(top(o)), 0) > 0))],
    "aurc": [({}, 2, change(aurc))],
    "brier": [({}, 2, change(brier))],
    "cohen_kappa": [({}, 2, lambda o, y: sk.cohen_kappa_score(*top(o)))],
    "combined_error_variance": [({}, 2, variance_of_shift)],
    "cosine_agreement": [({}, 2, lambda o, y: 1 - np.mean(sk.pairwise.paired_cosine_distances(*o)))],
    "disagreement": [({}, 2, lambda o, y: disagreement(o))],
    "disagreement_given_reference_correct": [({}, 2, given_correct)],
    "discrepancy": [({}, 4, lambda o, y: max(pairs(o)))],
    "ece": [({}, 2, change(ece))],
    "error_consistency": [({}, 2, lambda o, y: sk.cohen_kappa_score(*correct(o, y)))],
    "error_corrected_disagreement": [({}, 2, lambda o, y: disagreement(o) / errors(o, y)[0])],
    "error_inconsistency": [({}, 2, lambda o, y: sk.zero_one_loss(*correct(o, y)))],
    "error_ratio": [({}, 2, error_ratio)],
    "excess_error_difference": [({}, 4, excess)],
    "fleiss_kappa": [({}, 2, fleiss), ({}, 5, fleiss)],
    "flip_rate": [({}, 2, rate(lambda a, b: a ^ b))],
    "jensen_shannon_divergence": [({"base": base}, 2, jsd(base)) for base in (2, math.e, 10)],
    "kl_divergence": [({}, 2, lambda o, y: np.mean(entropy(*probabilities(o), axis=1)))],
    "label_entropy": [({}, 4, lambda o, y: np.mean(entropy(ballots(o), axis=1)))],
    "labelwise_disagreement": [
        ({"threshold": t}, 2, lambda o, y, t=t: sk.hamming_loss(*(each > math.log(t / (1 - t)) for each in o)))
        for t in (0.5, 0.2)
    ],
    "max_class_recall_drop": [({}, 2, lambda o, y: np.subtract(*recalls(o, y)).max())],
    "mce": [({}, 2, change(mce))],
    "mcnemar_exact_p": [({}, 2, exact_p)],
    "mean_centred_recall_change": [({}, 2, centred_change)],
    "min_max_normalized_disagreement": [({}, 2, min_max)],
    "negative_flip_rate": [({}, 2, rate(lambda a, b: a & ~b))],
    "neighbour_overlap": [({"k": 5}, 2, overlap)],
    "nll": [({}, 2, change(nll))],
    "noise_functional_distance": [({}, 2, noise_distance), ({}, 6, noise_distance)],
    "performance_difference": [({"metric": m}, n, spread(m)) for m in ("accuracy", "f1_macro") for n in (2, 4)],
    "perplexity_change": [({}, 2, perplexity_change)],
    "perplexity_increase": [({}, 2, perplexity_increase)],
    "pie_rate": [({}, 2, pie), ({}, 6, pie), ({}, 8, pie)],
    "positive_flip_rate": [({}, 2, rate(lambda a, b: b & ~a))],
    "prediction_difference": [({"p": p}, 4, to_mean(p)) for p in (1, 2)],
    "prediction_norm_difference": [({"p": p}, 2, norm_difference(p)) for p in (1, 2, 3, math.inf)],
    "prune_potential": [({"ratios": RATIOS, "delta": 0.1}, 4, potential)],
    "rashomon_capacity": [({}, 2, capacity_of_two), ({}, 4, capacity)],
    "relative_error": [({}, 2, lambda o, y: np.linalg.norm(o[0] - o[1]) / np.linalg.norm(o[0]))],
    "representational_similarity": [({"measure": measures.get("cka")}, 2, cka)],
    "stable_core": [
        ({"theta": theta}, 5, lambda o, y, theta=theta: np.mean(ballots(o).max(1) >= theta * 5 - 1e-9))
        for theta in (1.0, 0.8, 0.6)
    ],
    "surrogate_churn": [({"alpha": alpha}, 2, surrogate(alpha)) for alpha in (1, 0.5, 4)],
    "symmetric_distance_error": [
        ({}, 2, lambda o, y: np.mean(np.abs(np.subtract(*error_shift(o, y).T))) / math.sqrt(2))
    ],
    "token_agreement": [({}, 2, lambda o, y: 1 - sk.zero_one_loss(*top(used(o, y)[0])))],
    "token_kl_divergence": [({}, 2, token_kl)],
    "wrong_to_wrong_rate": [
        ({}, 2, lambda o, y: np.mean([len({*three}) == 3 for three in zip(*top(o), y, strict=True)]))
    ],
}


def data(id, count, seed, classes=C):
    """Logits of models that err like trained ones, and labels."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=N)
    shared = 2 * random.normal(size=(N, classes)) + 2 * np.eye(classes)[y]
    outputs = [shared + random.normal(size=(N, classes)) for _ in range(count)]
    if id in TOKENS:
        y[random.random(N) < 0.3] = -100
    return outputs, y


def deviation(id, hyper, count, reference, seed):
    outputs, y = data(id, count, seed)
    expected = float(reference(outputs, y))
    if id in TOKENS:  # sequences of 8
        outputs, y = [each.reshape(N // 8, 8, C) for each in outputs], y.reshape(N // 8, 8)
    return abs(functional.get(id, **hyper).group(outputs, y) - expected), expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "id, hyper, count, reference",
    [pytest.param(id, *case, id=f"{id}-{case[1]}-{case[0]}") for id, cases in REFERENCES.items() for case in cases],
)
def test_agrees_with_the_reference(id, hyper, count, reference, seed):
    difference, expected = deviation(id, hyper, count, reference, seed)
    assert difference <= 1e-9 * max(1, abs(expected))


def test_no_measure_is_without_a_reference():
    forms = ("classes", "tokens", "vectors", "multilabel")  # others, which need models, have tests of their own
    assert {id for id, cls in functional.classes().items() if getattr(cls, "form", None) in forms} == set(REFERENCES)


@pytest.mark.parametrize("id", ["min_max_normalized_disagreement", "cohen_kappa", "performance_difference", "brier"])
def test_two_classes_agree_with_the_reference(id):
    hyper, count, reference = REFERENCES[id][0]
    outputs, y = data(id, count, 0, classes=2)
    assert functional.get(id, **hyper).group(outputs, y) == pytest.approx(reference(outputs, y), abs=1e-12)


def test_brier_of_two_classes_is_twice_scikit_learns():
    (a, _), y = data("brier", 2, 0, classes=2)
    expected = 2 * sk.brier_score_loss(y, softmax(a, axis=1)[:, 1])
    assert functional.get("brier").describe(a, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("id, figure", [("ece", ece), ("mce", mce), ("brier", brier), ("nll", nll), ("aurc", aurc)])
def test_describe_is_the_figure_of_one_model(id, figure):
    (a, b), y = data(id, 2, 1)
    measure = functional.get(id)
    assert measure.describe(a, y) == pytest.approx(figure(a, y), abs=1e-12)
    assert measure(a, b, y) == pytest.approx(measure.describe(b, y) - measure.describe(a, y), abs=1e-12)
    details = measure(a, b, y).details
    assert (details["original"], details["pruned"]) == pytest.approx((figure(a, y), figure(b, y)), abs=1e-12)


# ---- identities ----


@pytest.mark.parametrize("seed", range(3))
def test_identities(seed):
    outputs, y = data("", 5, seed)
    pair = outputs[:2]

    def f(id, outputs=pair, **hyper):
        return float(functional.get(id, **hyper).group(outputs, y))

    same = {
        "disagreement": f("flip_rate") + f("wrong_to_wrong_rate"),
        "error_inconsistency": f("flip_rate"),
        "flip_rate": f("negative_flip_rate") + f("positive_flip_rate"),
        "accuracy_drop": f("negative_flip_rate") - f("positive_flip_rate"),
        "pie_rate": f("disagreement"),
        "ambiguity": f("disagreement"),
        "discrepancy": f("disagreement"),
        "label_entropy": f("disagreement") * math.log(2),
        "prediction_difference": f("prediction_norm_difference", p=1),
        "noise_functional_distance": 2 * f("prediction_norm_difference"),
        "performance_difference": abs(f("accuracy_drop")),
    }
    for id, expected in same.items():
        assert f(id) == pytest.approx(expected, abs=1e-12), id
    assert f("stable_core", outputs) == pytest.approx(1 - f("ambiguity", outputs), abs=1e-12)
    assert f("discrepancy", outputs) <= f("ambiguity", outputs)
    for more in range(2, 5):
        assert f("rashomon_capacity", outputs[:more]) <= f("rashomon_capacity", outputs[: more + 1]) + 1e-9
    wrapped = [Outputs.from_probabilities(each) for each in probabilities(pair)]
    total_variation = np.mean(np.abs(np.subtract(*probabilities(pair))).sum(1)) / 2
    assert f("prediction_difference", wrapped) == pytest.approx(total_variation, abs=1e-12)
    assert 1 <= f("rashomon_capacity") <= 1 + total_variation  # of two rows: 2^capacity is at most 1 + TV
    assert f("surrogate_churn", alpha=1e6) == pytest.approx(f("disagreement"), abs=1e-9)


@pytest.mark.parametrize("id", [id for id in REFERENCES if id not in (*VECTORS, *TOKENS, "labelwise_disagreement")])
def test_probabilities_wrapped_say_the_same_as_logits(id):
    hyper, count, _ = REFERENCES[id][0]
    outputs, y = data(id, count, 2)
    wrapped = [Outputs.from_probabilities(each) for each in probabilities(outputs)]
    measure = functional.get(id, **hyper)
    assert measure.group(wrapped, y) == pytest.approx(measure.group(outputs, y), abs=1e-9)


# ---- figures beside the score ----


def test_counts_per_class():
    (a, b), y = data("", 2, 0)
    y[y == 3] = 2  # class 3 has no samples
    details = functional.get("max_class_recall_drop")(a, b, y).details
    p, q = top([a, b])
    assert details["classes"] == [0, 1, 2, 4]
    for i, c in enumerate(details["classes"]):
        of = y == c
        expected = {
            "count": of.sum(),
            "right_a": (p[of] == c).sum(),
            "right_b": (q[of] == c).sum(),
            "lost": ((p == c) & (q != c) & of).sum(),
            "gained": ((p != c) & (q == c) & of).sum(),
            "claimed_a": ((p == c) & ~of).sum(),
            "claimed_b": ((q == c) & ~of).sum(),
        }
        assert {name: details[name][i] for name in expected} == expected


def test_pie_details():
    outputs, y = data("", 6, 0)
    score = functional.get("pie_rate").group(outputs, y)
    modes = [C - 1 - np.argmax(ballots(part)[:, ::-1], 1) for part in (outputs[:3], outputs[3:])]
    changed = modes[0] != modes[1]
    for name, mode in zip(("original", "pruned"), modes, strict=True):
        for where, chosen in (("", slice(None)), ("_exemplars", changed), ("_others", ~changed)):
            expected = np.mean((mode == y)[chosen])
            assert score.details[f"accuracy_{name}{where}"] == pytest.approx(expected, abs=1e-12)
    assert functional.get("pie_rate").group(outputs).details == {}


def test_kappas_and_mcnemar_say_what_went_in():
    (a, b), y = data("", 2, 0)
    score = functional.get("cohen_kappa")(a, b)
    assert score.details["observed"] == pytest.approx(1 - disagreement([a, b]))
    assert score == pytest.approx(1 - (1 - score.details["observed"]) / (1 - score.details["chance"]), abs=1e-12)
    p, q = correct([a, b], y)
    assert functional.get("mcnemar_exact_p")(a, b, y).details == {"lost": (p & ~q).sum(), "gained": (q & ~p).sum()}


def test_rashomon_capacity_states_its_gap():
    outputs, _ = data("", 8, 0)
    assert 0 <= functional.get("rashomon_capacity").group(outputs).details["gap"] < 1e-9


def test_labels_of_transformers_are_shifted():
    outputs, y = data("perplexity_change", 2, 0)
    outputs, y = [torch.tensor(each).reshape(N // 8, 8, C) for each in outputs], torch.tensor(y).reshape(N // 8, 8)
    for id in TOKENS:
        aligned = functional.get(id)(*(each[:, :-1] for each in outputs), y[:, 1:])
        assert functional.get(id, shift=True)(*outputs, y) == pytest.approx(aligned, abs=1e-12)


def test_tokens_count_alike_whatever_their_sequence():
    outputs, y = data("perplexity_change", 2, 0)
    for id in TOKENS:
        long = functional.get(id)(*(each[None] for each in outputs), y[None])
        short = functional.get(id)(*(each[:, None] for each in outputs), y[:, None])
        assert long == pytest.approx(short, abs=1e-12)
        assert long.details["tokens"] == short.details["tokens"] == np.sum(y != -100)
