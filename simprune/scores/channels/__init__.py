"""How dispensable each channel of a group is: one way to score per file.

A score is a function (model, calibration, groups) -> {group name: Score}. To add one, write a file with such a function
and name it in `SCORES`.
"""

from simprune.core.names import did_you_mean
from simprune.scores.channels._score import Score, Scorer
from simprune.scores.channels.baselines import bn_scale, magnitude, random
from simprune.scores.channels.correlation import correlation
from simprune.scores.channels.geometric_median import geometric_median
from simprune.scores.channels.independence import independence
from simprune.scores.channels.leave_one_out_cka import leave_one_out_cka
from simprune.scores.channels.predictability import predictability
from simprune.scores.channels.second_order import second_order
from simprune.scores.channels.taylor import taylor
from simprune.scores.channels.weight_cosine import weight_cosine

SCORES: dict[str, Scorer] = {
    score.__name__: score
    for score in (
        second_order,
        predictability,
        correlation,
        leave_one_out_cka,
        independence,
        geometric_median,
        weight_cosine,
        magnitude,
        bn_scale,
        taylor,
        random,
    )
}


def scorer(name: str) -> Scorer:
    """A score by name; raises KeyError that names the nearest."""
    if name not in SCORES:
        raise KeyError(f"no score named {name!r}; {did_you_mean(name, SCORES)}")
    return SCORES[name]


__all__ = ["SCORES", "Score", "Scorer", "scorer"]
