"""Blocks, whose input can take the place of their output, and sub-blocks inside them.

`_candidates.py` says which modules are candidates, `_bypass_proof.py` proves on a copy that they can be bypassed.
"""

from simprune.core.registry import register
from simprune.core.structures import Block
from simprune.structures._bypass_proof import prove_bypasses
from simprune.structures._candidates import branches_of, resolve
from simprune.structures._structure import Refusals, Structure
from simprune.trace.network import Network


@register("structure", "blocks")
class Blocks(Structure):
    """Blocks whose input can take the place of their output, in order of execution.

    A forward pass on a copy proves every bypass.
    """

    def find(self, network: Network) -> tuple[list[Block], Refusals]:
        return prove_bypasses(network, [Block(name) for name, _ in resolve(network.model, network.visits)])


@register("structure", "sub_blocks")
class SubBlocks(Structure):
    """Sub-blocks (attention, MLP) of blocks, where they are modules of their own, in order of execution.

    A forward pass on a copy proves every bypass.
    """

    def find(self, network: Network) -> tuple[list[Block], Refusals]:
        sub_blocks = []
        for name, inner in resolve(network.model, network.visits):
            branches = [] if len(inner) > 1 else branches_of(network.model, name, network.visits)
            if branches:
                sub_blocks += [Block(branch, "zero", inside=name) for branch in branches]
            else:
                sub_blocks += [Block(sub_block, inside=name) for sub_block in inner]
        return prove_bypasses(network, sub_blocks)
