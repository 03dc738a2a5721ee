"""What can be removed, and how it is found: one kind of structure per file."""

from simprune.structures.blocks import Block, find_blocks
from simprune.structures.channels import ChannelGroup, find_channel_groups

FINDERS = {"channels": find_channel_groups, "blocks": find_blocks}

__all__ = ["FINDERS", "Block", "ChannelGroup", "find_blocks", "find_channel_groups"]
