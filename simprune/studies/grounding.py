"""Does redundancy predict damage: every score against what removals really cost."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import simprune as sp
from simprune.core.registry import parts, register
from simprune.studies._known_groups import TESTS, measures_by_name, rates
from simprune.studies._removals import (
    DEPTH,
    WIDTH,
    Bench,
    Removal,
    calibration_of,
    names,
    removals,
)
from simprune.studies.frame import Figure, Findings, Run, Subject, Table
from simprune.studies.statistics import bootstrap, mean, spearman

STAGES = {"removed": "after removal", "repaired": "after repair", "finetuned": "after fine-tuning"}
# Options of block scores and measures that have no default.
NEEDED: dict[str, dict[str, Any]] = {
    "trend": {"statistic": "magnitude"}, "cka_minibatch": {"batch_size": 64}, "cka_sparse": {"top": 16},
    "maximum_match": {"epsilon": 0.5}, "partial_whitening_shape_metric": {"alpha": 0.5},
    "riemannian_distance": {"reg": 0.1},
}  # fmt: skip
LEFT_OUT = ("contrasim", "geometry_score", "rtd")  # the first has to be trained; the others take 20 s a network
FEW = 16  # rows of a figure
WEIGHED_WIDTH = ("second_order", "predictability", "taylor", "magnitude")
WEIGHED_DEPTH = ("similarity", "leave_one_out")
COLUMNS = ("score", *STAGES.values())
CHOSEN = ("score", "damage after removal / random", "damage after repair / random")
NOTE = (
    "Mean over networks of Spearman's rank correlation within a network, with 95 % intervals by bootstrap over "
    "networks; the highest after repair first. A score is read by its redundancy (more redundant: less damage), or by "
    "the damage that it expects."
)
NOTE_TOGETHER = "Both kinds of scores expect damage in one unit, so that a plan can weigh depth against width."
TITLE_TESTS = "Measures by networks that are known to differ"
NOTE_CHOICES = (
    "Half of a layer's channels goes; geometric means over layers and networks of damage as a share of that by random "
    "numbers, the smallest after repair first, with 95 % intervals by bootstrap over networks."
)
LIMITS = (
    "The networks are small and trained in seconds; whether the same order of scores holds for large networks is not "
    "shown here.",
    "One structure goes at a time. Plans remove many, whose damages do not add up.",
    "Within a network there are few blocks, so that the intervals of scores of blocks are wide.",
)
# Baselines: what is known without looking at representations. "trial" is the removal itself on the calibration inputs.
BASELINES = ("random numbers", "cost alone", "trial removal")
UNKNOWN = (math.nan, math.nan, math.nan)
Case = dict[str, Any]  # one removal: network, architecture, kind, damages by stage, and what every score says of it


@register(
    "study",
    "grounding",
    source="design after Klabunde et al., ReSi (arXiv:2408.00531); removals are our own",
    quick={"architectures": ("residual", "vgg", "vit"), "seeds": 1, "channels": 5, "others": 4, "layers": 1,
           "measures": ("cka_debiased", "procrustes_size_shape", "linear_regression"), "finetune": 1, "groups": 2},
)  # fmt: skip
def grounding(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "vgg", "vit", "mobilenet", "convnext"),
    seeds: int = 3,
    channels: int = 10,
    others: int = 6,
    layers: int = 3,
    scores: Sequence[str] = (),
    block_scores: Sequence[str] = (),
    measures: Sequence[str] = (),
    inputs: int = 256,
    finetune: int = 2,
    groups: int = 3,
) -> Findings:
    """Does redundancy predict damage?

    Protocol: in every trained network some blocks, halves of blocks, single channels, quarters and halves of a layer's
    channels, and attention heads are removed, one removal at a time. Damage is the squared change of the outputs on
    test images as a share of their variance: after the removal, after the repair in closed form (least squares on the
    calibration images), and for every second removal after fine-tuning. Every registered score of channels and of
    blocks, and every measure that can compare the input of a block with its output, says from the calibration images
    how redundant the same structures are. Within every network, scores and damages are compared by Spearman's rank
    correlation, 1 for a score that orders removals as their damages do; the correlations are averaged over networks.
    Intervals (95 %) are by bootstrap over networks. Baselines: random numbers, the share of the multiply-adds that
    goes, and the damage of the same removal measured on the calibration images, the most that any score can know. Apart
    from that, every score of channels chooses the half of a layer's channels that goes, and what its choice costs is
    compared with the choice of random numbers.

    Measures are also tested by what they should see. Networks of the second architecture are trained in groups: with
    none, half or all of the labels at random; with and without a mark in the images that tells the label; with and
    without shifted images. A measure passes as often as two networks of one group are more alike at their last layer
    than one of them and one of another group; chance is 0.5. Along the layers of a network, it passes as often as of
    three layers the first and the last are the least alike; chance is 1/3. (Whether differences of predictions between
    seeds are seen is the question of similarity_vs_function.)

    Cost: about 20 minutes of one core with 15 small networks; the quick version takes about three.

    Args:
        architectures: of the networks that are trained; without meaning for networks of your own.
        seeds: networks of every architecture.
        channels: removals of one channel per network, and as many of several channels.
        others: removals of blocks, of halves, and of heads per network.
        layers: of a network, of which every score chooses half of the channels.
        scores, block_scores, measures: names; none: all that are registered and fit.
        inputs: calibration images.
        finetune: epochs of the fine-tuning; 0: none.
        groups: networks of every group; fewer than 2: no tests of measures by groups.
    """
    cases: list[Case] = []
    choices: list[dict[str, Any]] = []
    calibration = calibration_of(run.images, inputs, run.seed_of("calibration"))
    most = {"channel": channels, "channels": channels, "block": others, "half": others, "head": others}
    for subject in run.progress(run.subjects(architectures, seeds), "ground scores"):
        bench = Bench(run, subject, calibration)
        drawn = removals(bench.redundancy, most, np.random.default_rng(run.seed_of(subject.key, "removals")))
        said = _said(run, subject, calibration, inputs, drawn, scores, block_scores, measures)
        for number, removal in enumerate(drawn):
            epochs = finetune if number % 2 == 0 else 0
            cost = run.step(
                ["damage", subject.key, inputs, removal.key, epochs],
                lambda bench=bench, removal=removal, epochs=epochs: bench.outcome(removal, epochs),
            )
            scored = {score: values[number] for score, values in said.items()}
            scored["cost alone"], scored["trial removal"] = removal.share, cost["trial"]
            facts = {"network": subject.name, "architecture": subject.architecture, "kind": removal.kind}
            cases.append(facts | cost | {"said": scored})
        choices += _choices(bench, inputs, scores, layers)
    tested = {}
    if groups > 1 and not run.models:
        named = measures_by_name(names(measures, measures_of_rows()), NEEDED)
        tested = rates(run, [*architectures, *architectures][1], groups, inputs, named)
    return findings_of(cases, choices, run.seed, tested)


def _said(
    run: Run, subject: Subject, calibration: Any, inputs: int, drawn: Sequence[Removal],
    scores: Sequence[str], block_scores: Sequence[str], measures: Sequence[str],
) -> dict[str, list[float | None]]:  # fmt: skip
    """What every score says of every removal: the larger, the more damage it expects; None where it says nothing."""
    said: dict[str, list[float | None]] = {}
    asked = {
        "score": names(scores, [*parts("score")]),
        "block_score": names(block_scores, [*parts("block_score")]),
        "measure": names(measures, measures_of_rows()),
    }
    for kind, name in [(kind, name) for kind, listed in asked.items() for name in listed]:
        key = ["said", subject.key, inputs, kind, name, [removal.key for removal in drawn]]
        values = run.step(key, lambda k=kind, n=name: _ask(run, subject, calibration, drawn, k, n))
        said |= {f"{kind}: {name}{how}": numbers for how, numbers in values.items()}
    rng = np.random.default_rng(run.seed_of(subject.key, "random"))
    said["random numbers"] = [float(value) for value in rng.random(len(drawn))]
    return said


def measures_of_rows() -> list[str]:
    """Measures that compare what runs through blocks, and take no more than the rows of both sides."""
    fit = [
        name for name, part in parts("measure").items() if not getattr(part.make, "extras", ()) and name not in LEFT_OUT
    ]
    return [
        name for name in fit if name in NEEDED or dataclasses.MISSING not in parts("measure")[name].options.values()
    ]


def _ask(
    run: Run, subject: Subject, calibration: Any, drawn: Sequence[Removal], kind: str, name: str
) -> dict[str, list[float | None]]:
    """The values of one score, by redundancy and by the damage that it expects; of a measure by redundancy."""
    kinds = WIDTH if kind == "score" else DEPTH
    if not any(removal.kind in kinds for removal in drawn):
        return {}
    structures = ("channels", "heads") if kind == "score" else ("blocks", "sub_blocks")
    choice: Any = {kind: {"name": name, **NEEDED.get(name, {})}}
    found = sp.analyze(subject.model, calibration, structures=structures, seed=run.seed, **choice)
    blocks = {entry.name: entry for entry in found.blocks}
    groups = {(entry.group.kind, entry.name): entry for entry in found.channels}
    redundant: list[float | None] = []
    expected: list[float | None] = []
    for removal in drawn:
        block = blocks.get(removal.name) if removal.kind in DEPTH else None
        group = groups.get((removal.edit.remove, removal.name))
        if removal.kind not in kinds or (block is None and group is None):
            redundant.append(None)
            expected.append(None)
        elif block is not None:
            redundant.append(1 - block.redundancy)
            expected.append(block.damage)
        elif group is not None:
            redundant.append(sum(1 - group.redundancy[unit] for unit in removal.units))
            expected.append(sum(group.damage[unit] for unit in removal.units))
    return {"": redundant} if kind == "measure" else {"": redundant, ", expected damage": expected}


def _choices(bench: Bench, inputs: int, scores: Sequence[str], most: int) -> list[dict[str, Any]]:
    """What it costs to remove the half of a layer's channels that a score chooses."""
    run, subject = bench.run, bench.subject
    rng = np.random.default_rng(run.seed_of(subject.key, "choices"))
    layers = [entry.name for entry in bench.redundancy.channels if entry.group.kind == "channels"]
    layers = [layers[number] for number in sorted(rng.permutation(len(layers))[:most])]
    rows = []
    for name in dict.fromkeys([*names(scores, [*parts("score")]), "random"]):
        key = ["choice", subject.key, inputs, name, layers]
        costs = run.step(key, lambda name=name: _chosen(bench, name, layers))
        rows += [{"network": subject.name, "score": name, "layer": layer, **cost} for layer, cost in costs.items()]
    return rows


def _chosen(bench: Bench, score: str, layers: Sequence[str]) -> dict[str, Any]:
    found = sp.analyze(
        bench.subject.model, bench.calibration, structures=("channels",), score=score, seed=bench.run.seed
    )
    costs = {}
    for entry in found.channels:
        if entry.name in layers:
            units = tuple(sorted(entry.order[: entry.group.size // 2]))
            edit = sp.Edit(entry.group.kind, entry.name, entry.group.expand(units), entry.group.width)
            cost = bench.outcome(Removal("channels", entry.name, units, edit, entry.share / 2))
            costs[entry.name] = {"removed": cost["removed"], "repaired": cost["repaired"]}
    return costs


def findings_of(
    cases: Sequence[Case],
    choices: Sequence[Mapping[str, Any]],
    seed: int,
    tested: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Findings:
    """Tables, figures and sentences from what every score said of every removal, and what it cost.

    Args:
        cases: removals, with `network`, `architecture`, `kind`, a damage by every stage, and `said` by score.
        choices: damages of what scores of channels chose, by `network`, `layer` and `score`.
        seed: of intervals.
        tested: how often every measure passes a test by known groups.
    """
    depth = _rows(cases, DEPTH, ("block_score: ", "measure: "), seed)
    width = _rows(cases, WIDTH, ("score: ",), seed)
    together = _rows(cases, (*DEPTH, *WIDTH), (), seed, _pairs(cases))
    tables = [
        Table("width", "Scores of channels and heads", COLUMNS, width, NOTE),
        Table(
            "depth", "Scores of blocks and halves, and similarity of input and output by measure", COLUMNS, depth, NOTE
        ),
        Table("together", "Depth and width in one order, by expected damage", COLUMNS, together, NOTE_TOGETHER),
        Table("kinds", "By kind of removal, after repair", *_by(cases, "kind", seed)),
        Table("architectures", "By architecture, after repair", *_by(cases, "architecture", seed)),
        Table(
            "pooled",
            "All networks pooled, after repair",
            ("score", "removals", "rank correlation"),
            _pooled(cases, seed),
        ),
        Table("choices", "What a score of channels chooses", CHOSEN, _ratios(choices, seed), NOTE_CHOICES),
        Table("tests", TITLE_TESTS, ("measure", *TESTS, "mean"), _tests(tested or {})),
        Table(
            "removals", "Removals", ("kind", "networks", "removals", "median damage", "after repair"), _counts(cases)
        ),
    ]
    kept = [table for table in tables if table.rows]
    figures = [
        Figure(name, "dots", _dots(rows), caption)
        for name, rows, caption in (
            ("width", width, "Scores of channels and heads: rank correlation with damage; bars are 95 % intervals."),
            ("depth", depth[:FEW] + [row for row in depth[FEW:] if row[0] in BASELINES],
             "The best scores and measures of blocks, and baselines: rank correlation with damage, 95 % intervals."),
        )
        if rows
    ]  # fmt: skip
    return Findings(_conclusions(width, depth, together, kept), kept, figures, _controls(width, depth), LIMITS)


def _rows(
    cases: Sequence[Case], kinds: Sequence[str], prefixes: Sequence[str], seed: int, scores: Sequence[str] | None = None
) -> list[list[Any]]:
    """One row a score: its rank correlation with damage by stage, the highest after repair first."""
    some = [case for case in cases if case["kind"] in kinds]
    if scores is None:
        said = dict.fromkeys(score for case in some for score in case["said"])
        scores = [score for score in said if score.startswith(tuple(prefixes))]
    rows = []
    for score in [*scores, *BASELINES]:
        entries = [correlation(some, score, stage, seed) for stage in STAGES]
        if any(not math.isnan(entry[0]) for entry in entries):
            rows.append([score.removeprefix("score: ").removeprefix("block_score: "), *map(list, entries)])
    return sorted(rows, key=lambda row: -(row[2][0] if not math.isnan(row[2][0]) else -2))


def correlation(cases: Sequence[Case], score: str, stage: str, seed: int = 0) -> tuple[float, float, float]:
    """Mean over networks of the rank correlation of a score with a damage, and its interval."""
    values = [value for value in by_network(cases, score, stage).values() if not math.isnan(value)]
    return bootstrap(values, mean, seed) if values else UNKNOWN


def by_network(cases: Sequence[Case], score: str, stage: str) -> dict[str, float]:
    """The rank correlation of a score with a damage within every network."""
    return {
        network: spearman(*zip(*pairs, strict=True)) if pairs else math.nan
        for network, pairs in _pairs_of(cases, score, stage).items()
    }


def _pairs_of(cases: Sequence[Case], score: str, stage: str) -> dict[str, list[tuple[float, float]]]:
    """(score, damage) of the removals of every network for which both are known."""
    pairs: dict[str, list[tuple[float, float]]] = {case["network"]: [] for case in cases}
    for case in cases:
        if case["said"].get(score) is not None and case[stage] is not None:
            pairs[case["network"]].append((case["said"][score], case[stage]))
    return pairs


def _pairs(cases: Sequence[Case]) -> list[str]:
    """Adds what default scores expect of depth and width under one name, since they share a unit; returns the names."""
    made = []
    for width in WEIGHED_WIDTH:
        for depth in WEIGHED_DEPTH:
            name = f"{width} and {depth}"
            for case in cases:
                kind, score = ("score", width) if case["kind"] in WIDTH else ("block_score", depth)
                case["said"][name] = case["said"].get(f"{kind}: {score}, expected damage")
            made.append(name)
    return made


def _by(cases: Sequence[Case], fact: str, seed: int) -> tuple[tuple[str, ...], list[list[Any]], str]:
    """Columns and rows: rank correlation after repair for every kind or architecture."""
    groups = list(dict.fromkeys(case[fact] for case in cases))
    said = list(dict.fromkeys(score for case in cases for score in case["said"] if " and " not in score))
    rows = []
    for score in said:
        entries = [correlation([c for c in cases if c[fact] == group], score, "repaired", seed) for group in groups]
        if any(not math.isnan(entry[0]) for entry in entries):
            rows.append([score, *map(list, entries)])
    return ("score", *groups), rows, "Means over networks of rank correlations within a network."


def _pooled(cases: Sequence[Case], seed: int) -> list[list[Any]]:
    """Rank correlation over the removals of all networks at once; networks are drawn for the interval."""
    rows = []
    for score in dict.fromkeys(score for case in cases for score in case["said"]):
        groups = [pairs for pairs in _pairs_of(cases, score, "repaired").values() if pairs]

        def pooled(drawn: list[list[tuple[float, float]]]) -> float:
            return spearman(*zip(*(pair for pairs in drawn for pair in pairs), strict=True))

        if groups:
            rows.append([score, sum(map(len, groups)), list(bootstrap(groups, pooled, seed, draws=200))])
    return sorted(rows, key=lambda row: -(row[2][0] if not math.isnan(row[2][0]) else -2))


def _ratios(choices: Sequence[Mapping[str, Any]], seed: int) -> list[list[Any]]:
    """Damage by what a score chooses, as a share of that by random numbers: geometric means over layers."""
    costs = {(row["network"], row["layer"], row["score"]): row for row in choices}
    rows = []
    for score in dict.fromkeys(row["score"] for row in choices):
        entry: list[Any] = [score]
        for stage in ("removed", "repaired"):
            logs: dict[str, list[float]] = {}
            for (network, layer, name), row in costs.items():
                other = costs[network, layer, "random"][stage]
                if name == score and row[stage] > 0 and other > 0:
                    logs.setdefault(network, []).append(math.log(row[stage] / other))
            drawn = bootstrap([mean(values) for values in logs.values()], mean, seed) if logs else UNKNOWN
            entry.append([math.exp(value) for value in drawn])
        rows.append(entry)
    return sorted(rows, key=lambda row: row[2][0])


def _tests(tested: Mapping[str, Mapping[str, float | None]]) -> list[list[Any]]:
    """How often every measure passes, the best on average first."""
    rows = []
    for measure in dict.fromkeys(name for values in tested.values() for name in values):
        passed = [tested[test].get(measure) for test in TESTS]
        rows.append([measure, *passed, mean([value for value in passed if value is not None])])
    return sorted(rows, key=lambda row: -row[-1])


def _counts(cases: Sequence[Case]) -> list[list[Any]]:
    rows = []
    for kind in dict.fromkeys(case["kind"] for case in cases):
        some = [case for case in cases if case["kind"] == kind]
        damages = [float(np.median([case[stage] for case in some])) for stage in ("removed", "repaired")]
        rows.append([kind, len({case["network"] for case in some}), len(some), *damages])
    return rows


def _dots(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    series = {title: [row[number] for row in rows] for number, title in enumerate(STAGES.values(), 1)}
    return {"rows": [row[0] for row in rows], "series": series, "label": "rank correlation with damage", "chance": 0.0}


def _best(rows: Sequence[Sequence[Any]], stage: int) -> Sequence[Any]:
    return max((row for row in rows if row[0] not in BASELINES), key=lambda row: row[stage][0])


def _said_of(row: Sequence[Any], stage: int) -> str:
    value, low, high = row[stage]
    return f"{row[0]} {value:.2f}" + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})")


def _conclusions(
    width: Sequence[Sequence[Any]], depth: Sequence[Sequence[Any]], together: Sequence[Sequence[Any]], tables: Any
) -> list[str]:
    sentences = []
    for what, rows, default in (
        ("channels and heads", width, ("second_order, expected damage", "second_order")),
        ("blocks and halves", depth, ("similarity, expected damage", "similarity")),
        ("depth and width in one order", together, ("second_order and similarity",)),
    ):
        if not any(row[0] not in BASELINES for row in rows):
            continue
        known = {row[0]: row for row in rows}
        best = _best(rows, 2)
        stated = [_said_of(known[name], 2) for name in default if name in known]
        others = [_said_of(known[name], 2) for name in BASELINES if name in known]
        sentences.append(
            f"{what.capitalize()}, after repair: the highest rank correlation with damage has {_said_of(best, 2)}"
            + (f"; the default: {', '.join(stated)}" if stated else "")
            + f"; baselines: {', '.join(others)}."
        )
    chosen = next((table for table in tables if table.name == "choices"), None)
    if chosen is not None:
        known = {row[0]: row for row in chosen.rows}
        for score in dict.fromkeys((chosen.rows[0][0], "second_order")):
            if score in known:
                value, low, high = known[score][2]
                bounds = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
                sentences.append(
                    f"What {score} chooses costs, after repair, {value:.2f}{bounds} times what chance chooses."
                )
    return sentences


def _controls(width: Sequence[Sequence[Any]], depth: Sequence[Sequence[Any]]) -> list[str]:
    sentences = []
    for what, rows in (("channels and heads", width), ("blocks and halves", depth)):
        for row in rows:
            if row[0] in BASELINES:
                after = f"{_said_of(row, 1)} after removal, {_said_of(row, 2)} after repair"
                sentences.append(f"{what.capitalize()}: {after}.")
    return sentences
