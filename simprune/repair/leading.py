"""The ridge of layers that add to the stream of a language model: that of the last layer where an edit is made up for.

The error of the stream at one layer says well which ridge is best where something has just gone: before removed blocks,
and in layers that have lost inputs. Behind them it is a poor judge of what the answers lose: in SmolLM2-135M without 6
of 30 layers it asks for a ridge of 1 before the gaps and of 10 to 100 behind them, and the answers are best with 1 in
both. So layers where an edit is made up for choose by inputs held out, and those behind them follow.
"""

from collections.abc import Set
from dataclasses import dataclass

from simprune.repair.ridge import Ridge


@dataclass
class Leading:
    """The ridges of one repair, layer after layer.

    Args:
        leaders: the layers at which an edit is made up for.
        ridge: that the last of them has chosen; "auto" before any has.

    >>> leading = Leading({"a", "c"})
    >>> leading.follow("a", 0.1)
    >>> leading.of("b"), leading.of("c")
    (0.1, 'auto')
    """

    leaders: Set[str]
    ridge: Ridge = "auto"

    def of(self, layer: str) -> Ridge:
        """What a layer is fitted with."""
        return "auto" if layer in self.leaders else self.ridge

    def follow(self, layer: str, ridge: float | None) -> None:
        """A layer has been fitted with a ridge, or stays as it is: None. The layers behind a leader follow it."""
        if layer in self.leaders and ridge is not None:
            self.ridge = ridge
