"""How dispensable each channel of a group is: one way to score per file.

A score is a function (model, calibration, groups) -> {group name: Score}. To add one, write a file with such a function
and name it in `SCORES`.
"""

from simprune.names import did_you_mean
from simprune.scores._score import Score, Scorer
from simprune.scores.baselines import bn_scale, magnitude, random
from simprune.scores.correlation import correlation
from simprune.scores.geometric_median import geometric_median
from simprune.scores.independence import independence
from simprune.scores.leave_one_out_cka import leave_one_out_cka
from simprune.scores.predictability import predictability
from simprune.scores.second_order import second_order
from simprune.scores.taylor import taylor
from simprune.scores.weight_cosine import weight_cosine

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
