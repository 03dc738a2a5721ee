"""What can be removed, and how it is found: one kind of structure per file."""

from simprune.core.structures import Block, ChannelGroup, HeadGroup, UnitGroup
from simprune.structures.blocks import find_blocks, find_sub_blocks
from simprune.structures.channels import find_channel_groups
from simprune.structures.heads import find_head_groups

FINDERS = {
    "channels": find_channel_groups,
    "heads": find_head_groups,
    "blocks": find_blocks,
    "sub_blocks": find_sub_blocks,
}

__all__ = [
    "FINDERS",
    "Block",
    "ChannelGroup",
    "HeadGroup",
    "UnitGroup",
    "find_blocks",
    "find_channel_groups",
    "find_head_groups",
    "find_sub_blocks",
]
