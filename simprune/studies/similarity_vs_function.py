"""Similarity against function: do networks whose representations are alike also answer alike."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import simprune as sp
from simprune.core.registry import register
from simprune.studies.checking import check_parts
from simprune.studies.frame import Figure, Findings, Run, Subject, Table
from simprune.studies.grounding import NEEDED, measures_of_rows
from simprune.studies.layers import balanced, layers_of, representations
from simprune.studies.networks import answers, steps_for
from simprune.studies.statistics import bootstrap, mean, spearman
from simprune.studies.tools.removals import calibration_of, names

# What two networks answer, compared: large is different for all of them after `_different`.
FUNCTIONAL = (
    "disagreement",
    "jensen_shannon_divergence",
    "prediction_norm_difference",
    "accuracy_drop",
    "error_consistency",
)
KINDS = ("other seed", "half the training", "half as wide", "pruned to 80 %", "pruned to 60 %", "pruned to 40 %")
PRUNED = {"pruned to 80 %": 0.8, "pruned to 60 %": 0.6, "pruned to 40 %": 0.4}
FEW = ("cka", "cka_debiased", "procrustes_size_shape", "linear_regression", "svcca", "pwcca", "mean_cca", "rsa", "gbs",
       "gulp", "mutual_knn", "distance_correlation", "soft_matching_distance", "orthogonal_procrustes",
       "relational_knowledge_loss", "rank_similarity", "normalized_bures", "permutation_procrustes")  # fmt: skip
Case = dict[str, Any]


@register(
    "study",
    "similarity_vs_function",
    source="Klabunde et al., arXiv:2305.06329 (survey); pairs at known distance after Ding et al., arXiv:2108.01661",
    least={"seeds": 2, "inputs": 2},
    quick={"architectures": ("vgg",), "seeds": 3, "measures": ("cka", "procrustes_size_shape", "linear_regression")},
)
def similarity_vs_function(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "vgg", "vit"),
    seeds: int = 4,
    measures: Sequence[str] = FEW,
    functional: Sequence[str] = FUNCTIONAL,
    inputs: int = 300,
) -> Findings:
    """Do networks with similar representations give similar answers?

    Protocol: every network is compared with others at a known distance: of other seeds, trained half as long from the
    same start, half as wide, and its own pruned and repaired versions. Representations are those of the last layer
    before the logits, pooled over positions, for test images; answers are those to all test images. For every network,
    a measure of representations and a functional measure are compared by Spearman's rank correlation over its pairs,
    once over all pairs and once over other seeds and pruned versions apart; 1 says that the less similar network is the
    one that answers more differently. Correlations are averaged over networks, with 95 % intervals by bootstrap.
    Controls: a network with itself, and images of one side in another order.

    Cost: about 15 minutes of one core with 12 networks and their 60 relatives; the quick version takes two.

    Args:
        architectures: of the networks; the study needs networks that it can train again, and refuses your own.
        seeds: networks of every architecture, at least 2.
        measures: of representations; none: all that need nothing but rows.
        functional: measures of answers.
        inputs: test images for representations.

    Raises:
        ValueError: for networks of your own, and for an unknown measure.
    """
    if run.models:
        raise ValueError("similarity_vs_function trains relatives of its networks; leave out models")
    check_parts("measure", measures)
    check_parts("functional", functional)
    if not functional:
        raise ValueError("functional: expected some measures of answers; got none")
    images, _ = balanced(run.images, inputs, run.seed_of("images"))
    wanted, cases, same = names(measures, measures_of_rows()), [], []
    for subject in run.progress(run.subjects(architectures, seeds), "compare relatives"):
        relatives = _relatives(run, subject, seeds)
        own = _seen(subject.model, images, run.images.test)
        for name, kind, make in relatives:
            key = ["pair", subject.key, name, inputs, sorted(wanted), sorted(functional)]
            values = run.step(
                key, lambda o=own, m=make: _compared(o, _seen(m(), images, run.images.test), run, wanted, functional)
            )
            cases.append({"network": subject.name, "other": name, "kind": kind, **values})
        shuffled = own[0][torch.randperm(len(images), generator=run.generator("order"))]
        key = ["control", subject.key, inputs, sorted(wanted), sorted(functional)]
        same.append(
            run.step(key, lambda o=own, s=shuffled: {
                "itself": _compared(o, o, run, wanted, functional)["measures"],
                "another order": _compared(o, (s, o[1]), run, wanted, functional)["measures"],
            })
        )  # fmt: skip
    return findings_of(cases, same, wanted, functional, run.seed)


def _relatives(run: Run, subject: Subject, seeds: int) -> list[tuple[str, str, Any]]:
    """(name, kind, function that makes it) of every network that one is compared with."""
    architecture, seed = subject.architecture, int(subject.name.rpartition(" ")[2])
    made: list[tuple[str, str, Any]] = [
        (f"seed {other}", "other seed", lambda other=other: run.network(architecture, other))
        for other in range(seeds)
        if other != seed
    ]
    whole = run.training or steps_for(run.images)
    made.append(("half trained", "half the training", lambda: run.network(
        architecture, seed, steps=max(whole // 2, 1), whole=whole)))  # fmt: skip
    made.append(("half wide", "half as wide", lambda: run.network(architecture, seed, width=0.5)))
    made += [(kind, kind, lambda share=share: _pruned(run, subject, share)) for kind, share in PRUNED.items()]
    return made


def _pruned(run: Run, subject: Subject, share: float) -> nn.Module:
    calibration = calibration_of(run.images, 256, run.seed_of("calibration"))
    redundancy = sp.analyze(subject.model, calibration, structures=("channels", "heads"), seed=run.seed)
    plan = sp.plan(redundancy, {"macs": share}, seed=run.seed)
    small = sp.apply(plan, subject.model)
    sp.reconstruct(small, plan, subject.model, calibration)
    return small


def _seen(model: nn.Module, images: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the last layer before the logits, and the answers to test images."""
    (layer,) = layers_of(model)[-1:]
    return representations(model, images, [layer])[layer], answers(model, test)


def _compared(
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
    run: Run,
    measures: Sequence[str],
    functional: Sequence[str],
) -> dict[str, dict[str, float]]:
    """How different two networks are, by every measure: large is different."""
    labels = run.images.test_labels
    return {
        "measures": {
            name: _different(sp.measures.get(name, **NEEDED.get(name, {})), one[0], other[0]) for name in measures
        },
        "functional": {
            name: _different(sp.functional.get(name), one[1], other[1], labels=labels) for name in functional
        },
    }


def _different(measure: Any, one: Tensor, other: Tensor, **more: Any) -> float:
    value = float(measure(one, other, **more))
    return -value if measure.larger_is_more_similar else value


def findings_of(
    cases: Sequence[Case], same: Sequence[Mapping[str, Mapping[str, float]]], measures: Sequence[str],
    functional: Sequence[str], seed: int,
) -> Findings:  # fmt: skip
    """Tables, a map and sentences from pairs of networks.

    Args:
        cases: pairs, with `network`, `kind`, and how different they are by `measures` and by `functional`.
        same: of every network, `measures` of itself with itself, and with its rows in another order.
        measures, functional: names.
        seed: of intervals.
    """
    scopes = {
        "all pairs": [*KINDS], "other seeds": ["other seed"], "pruned versions": [*PRUNED],
    }  # fmt: skip
    rows = []
    for measure in measures:
        entry: list[Any] = [measure]
        for kinds in scopes.values():
            some = [case for case in cases if case["kind"] in kinds]
            entry.append(list(correlation(some, measure, functional, seed)))
        rows.append(entry)
    rows.sort(key=lambda row: -(row[1][0] if not math.isnan(row[1][0]) else -2))
    order = [row[0] for row in rows]
    pairs = [[measure, *(correlation(cases, measure, [name], seed)[0] for name in functional)] for measure in order]
    distances = [
        [kind, *(mean([case["functional"][name] for case in cases if case["kind"] == kind]) for name in functional)]
        for kind in KINDS
    ]
    names_of = {"rows": order, "columns": list(functional), "across": "functional measure"}
    values = [[None if math.isnan(value) else value for value in row[1:]] for row in pairs]
    data = {"values": values, "measure": "rank correlation", **names_of}
    tables = [
        Table("measures", "Measures against answers", ("measure", *scopes), rows, NOTE),
        Table("pairs", "Every pair of measures, all pairs of networks", ("measure", *functional), pairs),
        Table("distances", "How differently relatives answer", ("relative", *functional), distances, NOTE_DISTANCES),
    ]
    figures = [Figure("pairs", "similarity_map", data, CAPTION)]
    best, worst = rows[0], rows[-1]
    sentences = [
        f"Over all pairs {best[0]} follows the answers most closely ({_said(best[1])}), {worst[0]} least "
        f"({_said(worst[1])}).",
        *(
            f"Over {scope} alone the highest is {top[0]} ({_said(top[at])}), and the mean of all measures "
            f"{mean([row[at][0] for row in rows]):.2f}."
            for at, scope in ((2, "other seeds"), (3, "pruned versions"))
            for top in [max(rows, key=lambda row: -2 if math.isnan(row[at][0]) else row[at][0])]
        ),
    ]
    return Findings(sentences, tables, figures, _controls(cases, same, measures), LIMITS)


NOTE = (
    "Mean over networks of Spearman's rank correlation over the pairs of a network, averaged over functional measures, "
    "with 95 % intervals by bootstrap over networks."
)
NOTE_DISTANCES = "Means over networks; large is different, so that measures of agreement have the other sign."
CAPTION = "Rank correlation of measures of representations (downwards) with functional measures, in order of the table."
LIMITS = (
    "Pairs differ by what is known to change answers. Whether a measure sees more than that, such as which inputs "
    "change, is not asked.",
    "Representations are read at one layer, the last before the logits.",
    "Accuracy hardly differs between seeds, so that ranks by it are mostly noise.",
)


def correlation(
    cases: Sequence[Case], measure: str, functional: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean over networks of the rank correlation of a measure with functional measures, and its interval."""
    values = []
    for network in dict.fromkeys(case["network"] for case in cases):
        some = [case for case in cases if case["network"] == network and case["measures"][measure] is not None]
        within = [
            spearman([case["measures"][measure] for case in some], [case["functional"][name] for case in some])
            for name in functional
        ]
        values.append(mean(within))
    known = [value for value in values if not math.isnan(value)]
    return bootstrap(known, mean, seed) if known else (math.nan, math.nan, math.nan)


def _said(entry: Sequence[float]) -> str:
    return f"{entry[0]:.2f}" + ("" if math.isnan(entry[1]) else f", {entry[1]:.2f} to {entry[2]:.2f}")


def _controls(
    cases: Sequence[Case], same: Sequence[Mapping[str, Mapping[str, float]]], measures: Sequence[str]
) -> list[str]:
    """Whether a network is nearer to itself than to any other, and farther with its images in another order."""
    nearest, farther = [], []
    for measure in measures:
        others = [case["measures"][measure] for case in cases if case["measures"][measure] is not None]
        itself = [control["itself"][measure] for control in same if control["itself"][measure] is not None]
        order = [control["another order"][measure] for control in same if control["another order"][measure] is not None]
        if others and itself and max(itself) > min(others) + 1e-6:
            nearest.append(measure)
        if others and order and mean(order) < mean(others):
            farther.append(measure)
    said = [
        "Every network is nearest to itself by every measure." if not nearest
        else f"A network is not nearest to itself by {', '.join(nearest)}."
    ]  # fmt: skip
    if farther:
        said.append(f"With its images in another order a network is nearer than its relatives by {', '.join(farther)}.")
    else:
        said.append("With its images in another order a network is farther than its relatives by every measure.")
    return said
