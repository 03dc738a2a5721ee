"""Similarity of what goes into a block and what comes out, by any measure."""

from simprune.scores.blocks._view import View


def similarity(view: View) -> dict[str, float]:
    """1: the block changes nothing that the measure sees. Rows are pooled over positions."""
    return {name: view.similarity(*ends) for name, ends in view.stream.ends.items()}
