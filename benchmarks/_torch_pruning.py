"""What torch-pruning's pruner selects, as a plan of simprune, so that all repairs can follow the same selection."""

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

import simprune as sp
from simprune.core.example import describe
from simprune.core.plan import Edit, Plan
from simprune.core.spilled import chunks
from simprune.core.structures import UnitGroup
from simprune.trace.answers import answer
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
        network: the original.
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


def best(
    network: Network,
    groups: Sequence[UnitGroup],
    share: float,
    calibration: Sequence[Any],
    judged: Sequence[Any],
    fixed: Sequence[str] = (),
) -> Plan:
    """The selection by the criterion that is best on calibration inputs after BatchNorm has been re-estimated.

    Args:
        judged: batches on which criteria are compared, by agreement with the original.

    Other arguments are as of `select`. A criterion that does not reach the share is left out.

    Raises:
        ValueError: when no criterion reaches the share.
    """
    wanted = _classes(network.model, judged)
    plan, most = None, -1.0
    for criterion in CRITERIA:
        try:
            tried = select(network, groups, criterion, share, calibration, fixed)
        except ValueError as error:
            print(error, file=sys.stderr)
            continue
        small = sp.reestimate_batchnorm(sp.apply(tried, network.model), judged)
        agreement = float((_classes(small, judged) == wanted).double().mean())
        print(f"torch-pruning, {criterion}: agreement {agreement:.1%} on calibration inputs", file=sys.stderr)
        if agreement > most:
            plan, most = replace(tried, planner={"criterion": criterion}), agreement
    if plan is None:
        raise ValueError(f"torch-pruning reaches no {share:.0%} of the multiply-adds with any criterion")
    return plan


def _classes(model: nn.Module, batches: Iterable) -> Tensor:
    """(inputs,) the class of the greatest score."""
    return torch.cat([rows.argmax(1) for rows in chunks(answer(model, batches).logits)])


def _remaining(
    network: Network, criterion: str, ratio: float, calibration: Iterable, fixed: Sequence[str]
) -> dict[str, set[int]]:
    """Which channels torch-pruning leaves, by the tensors in which channels carry their numbers."""
    model = copy.deepcopy(network.model)
    make, whole = CRITERIA[criterion]
    if isinstance(make(), tp.importance.TaylorImportance | tp.importance.GroupTaylorImportance):
        batch = next(iter(calibration))
        logits = model(batch[0])
        F.cross_entropy(logits, logits.argmax(1)).backward()  # no labels: the network's own answers
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    numbered = [name for name in tensors if _carries_numbers(model, name)]
    for name in numbered:
        tensors[name].data.copy_(torch.arange(len(tensors[name])))
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
    left = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: {round(number) for number in left[name].tolist()} for name in numbered}


def _carries_numbers(model: nn.Module, tensor: str) -> bool:
    """Whether channels can be numbered in a tensor, since no criterion looks there: means of BatchNorm, biases."""
    name, _, field = tensor.rpartition(".")
    module = model.get_submodule(name)
    if isinstance(module, nn.BatchNorm2d):
        return field == "running_mean"
    return field == "bias" and isinstance(module, nn.Conv2d | nn.Linear)


def _plan(network: Network, groups: Sequence[UnitGroup], remaining: dict[str, set[int]]) -> Plan:
    """The plan after which these channels are left, by tensor."""
    edits = []
    for group in groups:
        part = next(part for part in group.slices if part.tensor in remaining)
        left = remaining[part.tensor]
        gone = [unit for unit, entries in enumerate(part.indices) if not left.intersection(entries)]
        if gone:
            edits.append(Edit(group.kind, group.name, group.expand(gone), group.width, "torch-pruning"))
    return Plan(tuple(edits), network.fingerprint, describe(network.example))
