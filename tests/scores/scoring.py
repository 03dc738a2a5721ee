"""Scores of groups by name, as analysis asks for them."""

from simprune.core.registry import bound, parts
from simprune.scores.channels import ReaderMoments, score_channels
from simprune.trace.capture import read
from simprune.trace.network import Network

SCORES = list(parts("score"))


def scores_of(score, model, batches, groups, **options):
    """Scores of all groups; a group that a score says nothing of is scored by predictability."""
    batches = list(batches)
    if not batches:
        return bound("score", {"name": score, **options})(Network(model, ((), {})), batches, groups)
    network = Network.trace(model, batches[0])
    correlations = correlations_of(model, batches, groups)
    return score_channels(network, batches, groups, {"name": score, **options}, 0, correlations)


def correlations_of(model, batches, groups):
    """(readers, C, C) correlations of every group's C channels, by the group's name."""
    moments = ReaderMoments(groups, apart=True)
    read(model, batches, [moments])
    return moments.correlations()
