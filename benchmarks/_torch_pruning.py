"""What torch-pruning's pruner selects, as a plan of simprune, so that all repairs can follow the same selection."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

import simprune as sp
from simprune.core.example import describe
from simprune.core.plan import Edit, Plan
from simprune.core.structures import UnitGroup
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network

# name -> (criterion, whether layers compete with each other)
CRITERIA: dict[str, tuple[Callable[[], Any], bool]] = {
    "magnitude L2, local": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
    "magnitude L2, global": (lambda: tp.importance.GroupMagnitudeImportance(p=2), True),
    "BN scale, local": (tp.importance.BNScaleImportance, False),
    "FPGM, local": (tp.importance.FPGMImportance, False),
    "Taylor, global": (tp.importance.GroupTaylorImportance, True),
}
STEPS = 8  # of the bisection


def select(
    network: Network,
    groups: Sequence[UnitGroup],
    criterion: str,
    share: float,
    calibration: Iterable,
    fixed: Sequence[str] = (),
) -> Plan:
    """The plan of torch-pruning's mildest pruning ratio that reaches a share of the multiply-adds.

    Args:
        network: the original; a BatchNorm follows every layer that loses channels.
        groups: of channels that simprune knows.
        criterion: a name in `CRITERIA`.
        share: of the multiply-adds that may stay.
        calibration: batches, of which the first gives the gradients of Taylor's criterion.
        fixed: names of layers whose outputs stay.

    Raises:
        ValueError: when no ratio reaches the share.
    """
    whole = measure_cost(network.model, network.example).macs
    low, high, best = 0.0, 0.95, None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        plan = _plan(network, groups, _remaining(network, criterion, ratio, calibration, fixed))
        if measure_cost(sp.apply(plan, network.model), network.example).macs <= share * whole:
            high, best = ratio, plan
        else:
            low = ratio
    if best is None:
        raise ValueError(f"torch-pruning reaches no {share:.0%} of the multiply-adds with {criterion}")
    return best


def _remaining(
    network: Network, criterion: str, ratio: float, calibration: Iterable, fixed: Sequence[str]
) -> dict[str, set[int]]:
    """Which channels of every BatchNorm torch-pruning leaves, by its name."""
    model = copy.deepcopy(network.model)
    make, whole = CRITERIA[criterion]
    if isinstance(make(), tp.importance.TaylorImportance | tp.importance.GroupTaylorImportance):
        batch = next(iter(calibration))
        logits = model(batch[0])
        F.cross_entropy(logits, logits.argmax(1)).backward()  # no labels: the network's own answers
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in norms.values():  # the numbers of the channels go where no criterion looks
        assert norm.running_mean is not None
        norm.running_mean.copy_(torch.arange(len(norm.running_mean)))
    tp.pruner.BasePruner(
        model,
        network.example[0],  # type: ignore[arg-type] - a tuple is what it takes
        importance=make(),
        global_pruning=whole,
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        ignored_layers=[model.get_submodule(name) for name in fixed],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    ).step()
    left = {name: norm.running_mean for name, norm in norms.items()}
    return {name: {round(number) for number in mean.tolist()} for name, mean in left.items() if mean is not None}


def _plan(network: Network, groups: Sequence[UnitGroup], remaining: dict[str, set[int]]) -> Plan:
    """The plan after which every BatchNorm has these channels."""
    edits = []
    for group in groups:
        part = next(part for part in group.slices if part.side == "out" and part.module in network.normalisers)
        left = remaining[network.normalisers[part.module]]
        gone = [unit for unit, entries in enumerate(part.indices) if not left.intersection(entries)]
        if gone:
            edits.append(Edit(group.kind, group.name, group.expand(gone), group.width, "torch-pruning"))
    return Plan(tuple(edits), network.fingerprint, describe(network.example))
