"""What a network costs, term by term, and what is left of that when entries of tensors or whole modules go.

One multiply-add is one mac (FLOPs = 2 x macs), counted per input.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field

Example = tuple[tuple, dict]


Key = tuple[str, int]  # a tensor and one of its dimensions


KINDS = ("macs", "params", "bytes")


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one input, number of parameters, bytes of parameters and buffers."""

    macs: int
    params: int
    bytes: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def share_of(self, whole: "Cost") -> dict[str, float]:
        """Each kind as a fraction of another cost's."""
        return {kind: getattr(self, kind) / max(getattr(whole, kind), 1) for kind in KINDS}


@dataclass(frozen=True)
class TensorCost:
    """One parameter or buffer: its shape, bytes per element, and the macs each of its elements takes part in."""

    shape: tuple[int, ...]
    itemsize: int
    macs_per_element: float
    parameter: bool


@dataclass(frozen=True)
class StreamCost:
    """What runs through a module that returns what has its input's shape.

    `positions` per input; `reader` is the tensor and dimension, of a layer inside, along which the channels lie.
    """

    channels: int
    positions: float
    itemsize: int
    reader: Key | None


@dataclass(frozen=True)
class Term:
    """A product of lengths, any of which may lose entries, times the macs, params and bytes of one element.

    It goes with every module around `owner`. What stands in for the block `replaces` is there only when that is gone.
    """

    owner: str
    factors: tuple[tuple[int, Key | None], ...]
    each: tuple[float, int, int]
    replaces: str = ""

    def dropped(self, blocks: Collection[str]) -> bool:
        """Whether it is gone, or not yet there, when the modules `blocks` are gone whole."""
        around = any(f"{self.owner}.".startswith(f"{block}.") for block in blocks if block != self.replaces)
        return around or (self.replaces != "" and self.replaces not in blocks)


@dataclass(frozen=True)
class CostModel:
    """Exact cost of a model and of what is left after slices of tensors or whole modules are removed.

    The macs of a convolution or linear layer follow the number of elements of its weight, because every element
    is used once per output position; `fixed` macs (matrix products without a weight) go only with their module. The
    products of queries, keys and values follow the number of entries of the heads: `products` names, for each
    attention module, the tensor and dimension along which the heads lie, and the macs per entry. `streams` is what
    stand-ins of blocks have to carry.
    """

    tensors: Mapping[str, TensorCost]
    fixed: Mapping[str, int]
    products: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)
    streams: Mapping[str, StreamCost] = field(default_factory=dict)

    def total(self) -> Cost:
        return self.after()

    def after(
        self,
        cut: Mapping[Key, int] | None = None,
        dropped: Collection[str] = (),
        stand_ins: Mapping[str, str] | None = None,
    ) -> Cost:
        """Cost when `cut[tensor, dim]` entries are gone from tensors and the modules `dropped` are gone whole.

        `stand_ins`: what is put in place of a dropped module: "linear", "mean" or another, which costs nothing.
        """
        cut = cut or {}
        sums = [0.0, 0, 0]
        for term in self.terms(stand_ins or {}):
            if not term.dropped(dropped):
                elements = math.prod(length - cut.get(key, 0) if key else length for length, key in term.factors)
                sums = [old + elements * each for old, each in zip(sums, term.each, strict=True)]
        return Cost(round(sums[0]), int(sums[1]), int(sums[2]))

    def terms(self, stand_ins: Mapping[str, str]) -> Iterator[Term]:
        """All that costs something, for blocks that would be replaced as `stand_ins` says."""
        for name, tensor in self.tensors.items():
            factors = tuple((length, (name, dim)) for dim, length in enumerate(tensor.shape))
            yield Term(name, factors, (tensor.macs_per_element, int(tensor.parameter), tensor.itemsize))
        for name, macs in self.fixed.items():
            yield Term(name, (), (macs, 0, 0))
        for name, (tensor, dim, each) in self.products.items():
            yield Term(name, ((self.tensors[tensor].shape[dim], (tensor, dim)),), (each, 0, 0))
        for name, replace in stand_ins.items():
            if replace in ("linear", "mean"):
                if name not in self.streams:
                    raise ValueError(f"{name}: a {replace} replacement needs one input and output of the same shape")
                stream = self.streams[name]
                width = (stream.channels, stream.reader)
                yield Term(name, (width,), (0, 1, stream.itemsize), replaces=name)  # a bias, or the mean itself
                if replace == "linear":
                    yield Term(name, (width, width), (stream.positions, 1, stream.itemsize), replaces=name)
