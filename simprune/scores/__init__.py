"""How dispensable each channel of a group is: one way to score per file.

A score is a function (model, calibration, groups) -> {group name: Score}. To add one, write a file with such a function
and name it in `SCORES`.
"""

from simprune.names import did_you_mean
from simprune.scores._score import Score, Scorer
from simprune.scores.predictability import predictability
from simprune.scores.second_order import second_order

SCORES: dict[str, Scorer] = {"predictability": predictability, "second_order": second_order}


def scorer(name: str) -> Scorer:
    """A score by name; raises KeyError that names the nearest."""
    if name not in SCORES:
        raise KeyError(f"no score named {name!r}; {did_you_mean(name, SCORES)}")
    return SCORES[name]


__all__ = ["SCORES", "Score", "Scorer", "scorer"]
