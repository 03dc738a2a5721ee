"""Does redundancy predict damage: every score against what removals really cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simprune.core.registry import register
from simprune.studies.checking import check_parts
from simprune.studies.frame import Findings, Run
from simprune.studies.summaries.grounding import findings_of
from simprune.studies.tools.chosen import costs_of_choices
from simprune.studies.tools.correlations import Case
from simprune.studies.tools.known_groups import measures_by_name, rates
from simprune.studies.tools.removals import Bench, calibration_of, names, removals
from simprune.studies.tools.said import NEEDED, measures_of_rows, said_of


@register(
    "study",
    "grounding",
    source="design after Klabunde et al., ReSi (arXiv:2408.00531); removals are our own",
    least={"seeds": 1, "channels": 0, "others": 0, "layers": 0, "inputs": 2, "finetune": 0, "groups": 0},
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

    Cost: about 20 minutes of one core with 15 small networks on digits, 40 on CIFAR-10 at 8 pixels; the quick version
    takes about three.

    Args:
        architectures: of the networks that are trained; without meaning for networks of your own.
        seeds: networks of every architecture.
        channels: removals of one channel per network, and as many of several channels.
        others: removals of blocks, of halves, and of heads per network.
        layers: of a network, of which every score chooses half of the channels.
        scores, block_scores, measures: names; none: all that are registered and fit.
        inputs: calibration images.
        finetune: epochs of the fine-tuning; 0: none.
        groups: networks of every group; fewer than 2: no tests of measures by groups. With channels=0 others=0 layers=0
            these tests are all that is done.
    """
    for kind, wanted in (("score", scores), ("block_score", block_scores), ("measure", measures)):
        check_parts(kind, wanted)
    cases: list[Case] = []
    choices: list[dict[str, Any]] = []
    calibration = calibration_of(run.images, inputs, run.seed_of("calibration"))
    most = {"channel": channels, "channels": channels, "block": others, "half": others, "head": others}
    for subject in run.progress(run.subjects(architectures, seeds), "ground scores"):
        bench = Bench(run, subject, calibration)
        drawn = removals(bench.redundancy, most, np.random.default_rng(run.seed_of(subject.key, "removals")))
        said = said_of(run, subject, calibration, inputs, drawn, scores, block_scores, measures)
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
        choices += costs_of_choices(bench, inputs, scores, layers)
    tested = {}
    if groups > 1 and not run.models:
        named = measures_by_name(names(measures, measures_of_rows()), NEEDED)
        tested = rates(run, [*architectures, *architectures][1], groups, inputs, named)
    return findings_of(cases, choices, run.seed, tested)
