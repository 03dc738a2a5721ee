"""Accumulators for any number of inputs: update with batches, merge between workers, exact in the end."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from simprune.core.neighbours import directions
from simprune.core.similarity import SimilarityMatrix
from simprune.measures._base import Measure, Statistic, class_labels, require_finite
from simprune.measures._moments import FORMS, Joint

NORMED = ("cka_debiased",)  # measures that need squared lengths of rows besides second moments
LABELLED = ("tolerance",)  # sums of unit rows by class
SUMS_ONLY = ("magnitude", "tolerance")  # no second moments


class Streaming:
    """Moments of L representations of the same inputs, shared by all `measures` asked of it.

    One update of n rows costs one n x W x W product in float64, W the sum of all widths; the state holds W^2
    numbers of 8 bytes (`magnitude`, `tolerance`: W, and W per class), however many rows come. It lives on the
    device of the first batch. The first row seen is subtracted from all rows, so common offsets cost no digits;
    merging moves the other accumulator's moments to the same origin, exactly.
    """

    def __init__(self, measures: Iterable[Measure], names: Iterable[str], limit_bytes: int):
        self.measures, self.names, self.limit_bytes = tuple(measures), tuple(names), limit_bytes
        for measure in self.measures:
            if measure.id not in FORMS:
                raise ValueError(
                    f"{measure.id} has no streaming form: it needs all rows at once, use matrix(); "
                    f"streaming: {', '.join(sorted(FORMS))}"
                )
        if not self.measures or not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"expected measures and distinct names of representations, got names {list(self.names)}")
        ids = {measure.id for measure in self.measures}
        self.normed, self.needs_labels = bool(ids & set(NORMED)), bool(ids & set(LABELLED))
        self.products = not ids <= set(SUMS_ONLY)
        self.widths: tuple[int, ...] = ()
        self.origin = torch.empty(0)  # (W,), subtracted from every row
        # Sum over inputs of a a^T, a = (1, x, squared lengths of the L parts of x); its first row if that is enough.
        self.moments = torch.empty(0)
        self.classes: dict[int, Tensor] = {}  # class -> (W,), the sum of its rows scaled to length 1
        self._joint: Joint | None = None

    def __repr__(self) -> str:
        ids = ", ".join(measure.id for measure in self.measures)
        return f"Streaming({ids}: {self.count} rows of {len(self.names)} representations)"

    @property
    def count(self) -> int:
        """Rows seen."""
        return int(self.moments[0, 0]) if self.widths else 0

    @torch.inference_mode(False)  # a tensor that is created in inference mode cannot be updated outside of it
    def update(self, batch: Mapping[str, Any], labels: Any = None) -> "Streaming":
        """Add a batch of rows, in place.

        Args:
            batch: rows (n, D) of the same n inputs for every name.
            labels: (n,) integers, for a measure that needs them.

        Returns:
            This accumulator.

        Raises:
            ValueError: for names, widths, rows or labels that do not fit; nothing of the batch is added then.
        """
        if set(batch) != set(self.names):
            raise ValueError(f"expected rows of {', '.join(self.names)}, got {', '.join(batch) or 'none'}")
        first = self.measures[0]
        rows = [first._rows_of(name, batch[name]) for name in self.names]
        counts, widths = [len(part) for part in rows], tuple(part.shape[1] for part in rows)
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(f"expected the same inputs at every name, at least one; got {counts} rows")
        if self.widths and widths != self.widths:
            raise ValueError(f"expected widths {list(self.widths)} as before, got {list(widths)}")
        W, device = sum(widths), self.origin.device if self.widths else rows[0].device
        joined = torch.cat([part.to(device, torch.float64) for part in rows], 1)
        if not joined.sum().isfinite():
            require_finite("streaming", {name: {"X": part} for name, part in zip(self.names, rows, strict=True)})
        classes = class_labels("streaming", labels, joined) if self.needs_labels else None
        if not self.widths:
            self._start(widths, joined[0])
        if classes is not None:
            units = torch.cat([directions(part) for part in joined.split(widths, 1)], 1)
            names, index = classes.unique(return_inverse=True)
            self._add_classes(names.tolist(), units.new_zeros(len(names), W).index_add_(0, index, units))
        table = joined.new_ones(len(joined), self.moments.shape[1])
        torch.sub(joined, self.origin, out=table[:, 1 : 1 + W])
        if self.normed:
            for k, part in enumerate(table[:, 1 : 1 + W].split(widths, 1)):
                torch.linalg.vector_norm(part, dim=1, out=table[:, 1 + W + k])
            table[:, 1 + W :].square_()
        self.moments.addmm_(table[:, : len(self.moments)].T, table)
        self._joint = None
        return self

    @torch.inference_mode(False)
    def merge(self, other: "Streaming") -> "Streaming":
        """Add the rows of another accumulator of the same measures and names, in place, and return this one.

        Raises:
            ValueError: for other measures, names or widths.
        """
        if (self.measures, self.names) != (other.measures, other.names):
            raise ValueError(f"cannot merge {other} into {self}: expected the same measures and names")
        if not other.widths:
            return self
        if not self.widths:
            self.widths, self.origin, self.moments = other.widths, other.origin.clone(), other.moments.clone()
        elif self.widths != other.widths:
            raise ValueError(f"cannot merge: widths are {list(self.widths)} and {list(other.widths)}")
        else:
            device = self.origin.device
            shift = self.origin - other.origin.to(device)
            self.moments += moved(other.moments.to(device), shift, self.widths)
        self._add_classes(other.classes, other.classes.values())
        self._joint = None
        return self

    def matrix(self, measure: str | Measure | None = None) -> SimilarityMatrix:
        """The values of all pairs, as `measures.matrix` gives them; `measure` only if there are several here."""
        chosen = self._chosen(measure)
        values = FORMS[chosen.id](chosen, self._finished(chosen))
        if isinstance(chosen, Statistic):
            values = (values[:, None] - values).abs()
        result = values.cpu().numpy()
        chosen._warn_if_undefined(result, self.names)
        return SimilarityMatrix(self.names, result, chosen.id)

    def value(self, first: str, second: str, measure: str | Measure | None = None) -> float:
        """The value of one pair."""
        return float(self.matrix(measure).values[self.names.index(first), self.names.index(second)])

    def describe(self, measure: str | Measure | None = None) -> dict[str, float]:
        """A statistic of every representation."""
        chosen = self._chosen(measure)
        if not isinstance(chosen, Statistic):
            raise ValueError(f"{chosen.id} does not describe one representation; ask for matrix()")
        return dict(zip(self.names, FORMS[chosen.id](chosen, self._finished(chosen)).tolist(), strict=True))

    def _start(self, widths: tuple[int, ...], first: Tensor) -> None:
        side = 1 + sum(widths) + len(widths) * self.normed
        need = 8 * side * (side if self.products else 1)
        if need > self.limit_bytes:
            raise ValueError(
                f"the moments of {sum(widths)} units need {need / 2**30:.1f} GiB, more than limit_bytes allows "
                f"({self.limit_bytes / 2**30:.1f} GiB): pool the representations, or take fewer of them"
            )
        self.widths = widths
        self.origin = first.clone()
        self.moments = self.origin.new_zeros(side if self.products else 1, side)

    def _add_classes(self, labels: Iterable[int], sums: Iterable[Tensor]) -> None:
        for label, part in zip(labels, sums, strict=True):
            self.classes[label] = self.classes.get(label, 0) + part.to(self.origin.device)

    def _chosen(self, measure: str | Measure | None) -> Measure:
        fitting = [known for known in self.measures if measure is None or measure in (known, known.id)]
        if len(fitting) != 1:
            raise ValueError(
                f"expected one of {', '.join(map(repr, self.measures))}, got {measure!r}: name the one you want"
            )
        return fitting[0]

    def _finished(self, measure: Measure) -> Joint:
        n, W = self.count, sum(self.widths)
        if n < measure.minimum_rows:
            raise ValueError(f"{measure.id} needs at least {measure.minimum_rows} rows, got {n}")
        if self._joint is None:
            shift = self.moments[0, 1 : 1 + W] / n
            central = moved(self.moments, shift, self.widths)
            inner, norms = slice(1, 1 + W), slice(1 + W, None)
            extra = {"lengths": central[0, norms], "length_products": central[norms, norms]}
            if self.classes:
                extra["class_sums"] = torch.stack(list(self.classes.values()))
            self._joint = Joint(n, self.origin + shift, central[inner, inner], self.widths, **extra)
        return self._joint


def moved(moments: Tensor, shift: Tensor, widths: tuple[int, ...]) -> Tensor:
    """`moments` of a = (1, x, squared lengths) after `shift` (W,) is subtracted from every x.

    a' is linear in a: x' = x - shift, and each squared length changes by -2 shift.x + |shift|^2.
    """
    W = len(shift)

    def columns(table: Tensor) -> Tensor:
        ones, x, lengths = table[:, :1], table[:, 1 : 1 + W], table[:, 1 + W :]
        if lengths.numel():
            change = -2 * x * shift + ones * shift.square()
            lengths = lengths + torch.stack([part.sum(1) for part in change.split(widths, 1)], 1)
        return torch.cat([ones, x - ones * shift, lengths], 1)

    result = columns(moments)
    return columns(result.T.contiguous()).T if len(moments) > 1 else result
