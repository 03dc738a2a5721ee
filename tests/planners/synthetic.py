"""Redundancy without a network: chains of layers of which everything is known."""

import numpy as np

from simprune.core.cost import CostModel, TensorCost
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Interactions, Redundancy
from simprune.core.structures import Block, Slice, UnitGroup


def chain(
    layers: int,
    width: int,
    *,
    coupled: bool = True,
    blocks: bool = False,
    interacting: bool = False,
    seed: int = 0,
    scale: int = 60,
) -> Redundancy:
    """Groups of `width` channels, produced by one layer and read by the next one; random integer macs per weight.

    `coupled`: the reader produces the next group, so that savings depend on those of other groups; otherwise the reader
    produces channels that stay.
    `blocks`: every group lies, with its two layers, in a block that can go. `interacting`: damages add up to more.
    """
    generator = np.random.default_rng(seed)
    count = layers + 1 if coupled and not blocks else 2 * layers
    names = [f"block{index // 2}.layer{index % 2}" if blocks else f"layer{index}" for index in range(count)]
    tensors = {}
    for name in names:
        tensors[f"{name}.weight"] = TensorCost((width, width, 3, 3), 4, float(generator.integers(1, scale)), True)
        tensors[f"{name}.bias"] = TensorCost((width,), 4, 0.0, True)
    costs = CostModel(tensors, {})
    entries = tuple((unit,) for unit in range(width))
    channels = []
    for index in range(layers):
        first = index if coupled and not blocks else 2 * index
        producer, reader = names[first], names[first + 1]
        slices = (
            Slice(f"{producer}.weight", 0, entries, "out"),
            Slice(f"{producer}.bias", 0, entries, "out"),
            Slice(f"{reader}.weight", 1, entries, "in"),
        )
        order, damage = generator.permutation(width), np.zeros(width)
        damage[order] = np.sort(generator.exponential(size=width) * generator.exponential() * 1e-2)
        nearest = tuple(int(unit) for unit in (np.arange(width) + generator.integers(1, width, width)) % width)
        redundancy = tuple(float(share) for share in 1 - damage / damage.max())
        channels.append(
            ChannelRedundancy(
                UnitGroup(producer, width, slices),
                redundancy,
                tuple(int(unit) for unit in order),
                tuple(float(lost) for lost in damage),
                nearest,
                0.0,
            )
        )
    removable = []
    for number in range(layers if blocks else 0):
        name = f"block{number}"
        share = 1 - costs.after(dropped=[name]).macs / costs.total().macs
        removable.append(
            BlockRedundancy(
                Block(name), float(generator.random()), share, float(generator.exponential() * width * 5e-3)
            )
        )
    keys = [("block", entry.name) for entry in removable] + [("channels", entry.name) for entry in channels]
    shared = np.abs(generator.normal(size=(len(keys), 3)))
    shared /= np.linalg.norm(shared, axis=1, keepdims=True)
    interactions = Interactions({key: row for row, key in enumerate(keys)}, shared @ shared.T) if interacting else None
    return Redundancy(
        tuple(removable), tuple(channels), (), None, "cka", costs, "synthetic", {}, interactions=interactions
    )
