"""Whether fits of whole segments are worth it, as the outputs of the network say.

A segment is fitted to what the original's gives at its end. That brings the segment nearer, but seldom, as where a
network has concatenated branches, the outputs of the network come out further away than by layers alone. So both are
tried, and the nearer one stays.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import inputs_of
from simprune.core.example import rows_of
from simprune.core.holdout import split
from simprune.repair.gauss_newton import JUDGING
from simprune.repair.in_order import refit_in_order
from simprune.repair.refit import Refit, Repair
from simprune.trace.answers import Answers, answer, errors_of_inputs
from simprune.trace.network import Network

LEAST = 4  # inputs that judge; with fewer, the choice would follow the draw


def with_segments_if_nearer(
    repair: Repair, layers: Sequence[str], network: Network, batches: Sequence[Any]
) -> list[Refit]:
    """Refit layers alone, then layers and segments, and keep what is nearer to the outputs of the original.

    Inputs that no segment is fitted to judge. Layers alone stay where they are nearer by more than a standard error.
    It costs one repair of layers, forward passes over an eighth of the inputs, and the weights of the network twice.

    Args:
        repair: of the pruned network, with segments.
        layers: that are refitted.
        network: the original.
        batches: calibration inputs, all of them.

    Returns:
        The errors before and after, of the repair that stays.
    """
    _, judging = split(batches, JUDGING)
    if sum(rows_of(inputs_of(batch)) for batch in judging) < LEAST:
        return refit_in_order(repair, layers, batches, "reconstruct")
    wanted = answer(network.model, judging, network.weights)
    start = _state(repair.small)
    alone = refit_in_order(replace(repair, together=()), layers, batches, "reconstruct layers")
    errors_alone, end = _errors(repair.small, judging, wanted), _state(repair.small)
    _restore(repair.small, start)
    refits = refit_in_order(repair, layers, batches, "reconstruct segments")
    lost = _errors(repair.small, judging, wanted) - errors_alone
    if float(lost.mean()) <= float(lost.std(correction=0)) / len(lost) ** 0.5:
        return refits
    _restore(repair.small, end)
    repair.notes.append(
        f"no segment was fitted as a whole: on inputs held out, damage would be {float(lost.mean()):.3g} larger than "
        f"the {float(errors_alone.mean()):.3g} of layers refitted one by one"
    )
    return alone


def _errors(small: nn.Module, judging: Sequence[Any], wanted: Answers) -> Tensor:
    """(inputs,) squared changes of the outputs, as shares of their variance."""
    return errors_of_inputs(answer(small, judging), wanted)


def _state(small: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in small.state_dict().items()}


def _restore(small: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in small.state_dict().items():
            tensor.copy_(state[name])
