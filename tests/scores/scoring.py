"""Scores of groups by name, as analysis asks for them."""

from simprune.core.registry import bound, parts
from simprune.scores.channels import ReaderMoments, by_prediction
from simprune.trace.capture import read
from simprune.trace.network import Network

SCORES = list(parts("score"))


def scores_of(score, model, batches, groups, **options):
    """Scores of all groups; a group that a score says nothing of is scored by predictability."""
    batches = list(batches)
    network = Network.trace(model, batches[0]) if batches else Network(model, ((), {}))
    scores = bound("score", {"name": score, **options})(network, batches, groups)
    left_out = [group for group in groups if group.name not in scores]
    correlations = correlations_of(model, batches, left_out)
    return scores | {name: by_prediction(values) for name, values in correlations.items()}


def correlations_of(model, batches, groups):
    """(readers, C, C) correlations of every group's C channels, by the group's name."""
    moments = ReaderMoments(groups, apart=True)
    read(model, batches, [moments])
    return dict(moments.correlations())
