"""The cost of a network, and of what remains of it when entries of tensors or whole modules are removed.

One multiply-add is one mac (FLOPs = 2 x macs). Macs are counted per input of the network.
"""

import math
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from simprune.core.names import around

Example = tuple[tuple, dict]  # positional and keyword arguments of a forward pass
Key = tuple[str, int]  # name of a tensor, and one of its dimensions
KINDS = ("macs", "params", "bytes")


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one input, number of parameters, bytes of parameters and buffers.

    >>> Cost(macs=50, params=10, bytes=40).share_of(Cost(macs=100, params=40, bytes=160))
    {'macs': 0.5, 'params': 0.25, 'bytes': 0.25}
    """

    macs: int
    params: int
    bytes: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def share_of(self, whole: "Cost") -> dict[str, float]:
        """Macs, params and bytes as shares of those of another cost."""
        return {kind: getattr(self, kind) / max(getattr(whole, kind), 1) for kind in KINDS}


@dataclass(frozen=True)
class TensorCost:
    """One parameter or buffer: its shape, the bytes and the macs per element, and whether it is a parameter."""

    shape: tuple[int, ...]
    itemsize: int
    macs_per_element: float
    parameter: bool


@dataclass(frozen=True)
class StreamCost:
    """The stream through a module whose output has the shape of its input: what a stand-in for the module works on.

    Args:
        channels: of the stream.
        positions: per input of the network.
        itemsize: bytes per element.
        reader: tensor and dimension, of a layer in the module, along which the channels lie; None where none is known.
    """

    channels: int
    positions: float
    itemsize: int
    reader: Key | None


@dataclass(frozen=True)
class Term:
    """One summand of a network's cost: a number of elements times the macs, params and bytes of one element.

    Args:
        owner: the tensor or module that costs this. The term is dropped when a module that contains it is removed.
        factors: lengths whose product is the number of elements, each with the tensor and dimension whose entries may
            be removed, or None for a fixed length.
        per_element: macs, params and bytes of one element.
        replaces: for the cost of a stand-in, the block that it replaces. Such a term counts only when that block is
            removed.
    """

    owner: str
    factors: tuple[tuple[int, Key | None], ...]
    per_element: tuple[float, int, int]
    replaces: str = ""

    def elements(self, cut: Mapping[Key, int]) -> int:
        """How many entries it has without those that are cut."""
        return math.prod(length - cut.get(key, 0) if key else length for length, key in self.factors)

    def dropped(self, blocks: Collection[str]) -> bool:
        """Whether the term does not count when the modules `blocks` are removed whole."""
        around = any(f"{self.owner}.".startswith(f"{block}.") for block in blocks if block != self.replaces)
        return around or (self.replaces != "" and self.replaces not in blocks)


@dataclass(frozen=True)
class CostModel:
    """Exact cost of a model, and of what remains of it when slices of tensors or whole modules are removed.

    Args:
        tensors: by name. The macs of a convolution or linear layer follow from the number of elements of its weight,
            because every element is used once per output position.
        fixed: macs of modules, by name, that do not depend on tensors, such as matrix products without a weight.
        products: of attention modules, by name: the tensor and dimension along which the heads lie, and the macs of the
            products of queries, keys and values per entry along it.
        streams: of modules that can be replaced, by name.
        mixers: of linear layers that mix positions, whose own positions are channels of the network, by the name of
            the weight: a tensor and dimension along which these channels lie. Their macs follow from both.
    """

    tensors: Mapping[str, TensorCost]
    fixed: Mapping[str, int]
    products: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)
    streams: Mapping[str, StreamCost] = field(default_factory=dict)
    mixers: Mapping[str, Key] = field(default_factory=dict)

    def total(self) -> Cost:
        """Cost of the whole model."""
        return self.after()

    def after(
        self,
        cut: Mapping[Key, int] | None = None,
        dropped: Collection[str] = (),
        stand_ins: Mapping[str, str] | None = None,
    ) -> Cost:
        """Cost of what remains after removals.

        Args:
            cut: numbers of entries that are removed, by tensor and dimension.
            dropped: names of modules that are removed whole.
            stand_ins: what replaces a module, by its name: "linear", "mean" or another, which costs nothing.

        Raises:
            ValueError: for a stand-in of a module whose stream is not known.
        """
        cut, touched = cut or {}, set[int]()
        for what in (*cut, *dropped):
            touched.update(self._touched.get(what, ()))
        changing = [self._terms[number] for number in touched]
        sums = list(self._sums)
        for sign, terms, taken in ((-1, changing, {}), (1, [*changing, *self._standing_in(stand_ins or {})], cut)):
            for term in terms:
                if sign < 0 or not term.dropped(dropped):
                    elements = sign * term.elements(taken)
                    sums = [total + elements * value for total, value in zip(sums, term.per_element, strict=True)]
        return Cost(round(sums[0]), int(sums[1]), int(sums[2]))

    def terms(self, stand_ins: Mapping[str, str]) -> Iterator[Term]:
        """All summands of the cost, those of the stand-ins included."""
        yield from self._terms
        yield from self._standing_in(stand_ins)

    @cached_property
    def _terms(self) -> list[Term]:
        """The summands of the cost of the whole model."""
        return list(self._whole())

    @cached_property
    def _sums(self) -> tuple[float, ...]:
        """Macs, params and bytes of the whole model."""
        elements = [term.elements({}) for term in self._terms]
        values = zip(*(term.per_element for term in self._terms), strict=True)
        return tuple(sum(map(operator.mul, elements, value)) for value in values) or (0.0, 0, 0)

    @cached_property
    def _touched(self) -> dict[Key | str, list[int]]:
        """The numbers of the summands that a cut of a tensor, or the removal of a module, can change."""
        touched: dict[Key | str, list[int]] = {}
        for number, term in enumerate(self._terms):
            owners = {term.owner, *around(term.owner)}
            for what in owners | {key for _, key in term.factors if key is not None}:
                touched.setdefault(what, []).append(number)
        return touched

    def _whole(self) -> Iterator[Term]:
        for name, tensor in self.tensors.items():
            factors = tuple((length, (name, dim)) for dim, length in enumerate(tensor.shape))
            macs = tensor.macs_per_element
            if name in self.mixers:
                other, dim = self.mixers[name]
                length = self.tensors[other].shape[dim]
                yield Term(name, (*factors, (length, (other, dim))), (macs / length, 0, 0))
                macs = 0.0
            yield Term(name, factors, (macs, int(tensor.parameter), tensor.itemsize))
        for name, macs in self.fixed.items():
            yield Term(name, (), (macs, 0, 0))
        for name, (tensor, dim, macs) in self.products.items():
            yield Term(name, ((self.tensors[tensor].shape[dim], (tensor, dim)),), (macs, 0, 0))

    def _standing_in(self, stand_ins: Mapping[str, str]) -> Iterator[Term]:
        for name, replace in stand_ins.items():
            if replace in ("linear", "mean"):
                if name not in self.streams:
                    raise ValueError(f"{name}: a {replace} replacement needs one input and output of the same shape")
                stream = self.streams[name]
                width = (stream.channels, stream.reader)
                yield Term(name, (width,), (0, 1, stream.itemsize), replaces=name)  # a bias, or the mean itself
                if replace == "linear":
                    yield Term(name, (width, width), (stream.positions, 1, stream.itemsize), replaces=name)
