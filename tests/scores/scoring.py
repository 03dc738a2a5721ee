"""Scores of groups by name, as analysis asks for them."""

from simprune.core.registry import bound, parts
from simprune.scores.channels import score_channels
from simprune.scores.channels._correlations import reader_correlations
from simprune.trace.network import Network

SCORES = list(parts("score"))


def scores_of(score, model, batches, groups, **options):
    """Scores of all groups; a group that a score says nothing of is scored by predictability."""
    batches = list(batches)
    if not batches:
        return bound("score", {"name": score, **options})(Network(model, ((), {})), batches, groups)
    network = Network.trace(model, batches[0])
    correlations = reader_correlations(network, batches, groups)
    return score_channels(network, batches, groups, {"name": score, **options}, 0, correlations)
