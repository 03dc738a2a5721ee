"""The ridge of layers that add to the stream of a language model, chosen by what the repaired network answers.

The error of the stream at one layer is a poor judge of what the answers lose. In SmolLM2-135M without 6 of 30 layers it
asks for a ridge of 0.3 before the gap and of 10 to 100 behind it; the answers are best with 1 in both. So the whole
repair is tried with several ridges, on three quarters of the inputs, and the last quarter says which answers are best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import call, output_mask_of, token_ids_of
from simprune.core.divergence import divergences
from simprune.core.holdout import split
from simprune.core.pieces import pieces
from simprune.core.tokens import speaks
from simprune.repair.refit import Repair
from simprune.trace.context import evaluation, uncached
from simprune.trace.network import Network

FIRST, LARGER, SMALLER = 1.0, (10.0, 100.0), (0.1, 0.01)
LEAST = 512  # tokens that judge; with fewer, the choice would follow the draw
ROUNDING = 1e-6  # nats per token


def divergence_by_ridge(
    repair: Repair, layers: Sequence[str], model: nn.Module, batches: Sequence[Any]
) -> dict[float | None, float]:
    """How far the answers are from the original's, on inputs that nothing was fitted to, by the ridge of the repair.

    1 is tried first, then larger ones or smaller ones for as long as they are better. Every trial costs a repair, and
    forward passes of both networks over a quarter of the inputs. Memory: the weights of the layers, once more.

    Args:
        repair: of the pruned network, whose weights are afterwards as they were before.
        layers: that are refitted.
        model: the original, whose one output is scores of the tokens that it takes.
        batches: calibration inputs, all of them.

    Returns:
        Nats per token by the ridge of the layers that add to the stream, None for no repair. It is empty where nothing
        was tried: where no layer adds to a stream, or inputs are few.
    """
    fitting, judging = split(batches)
    tokens = sum(_tokens(batch) for batch in judging)
    if not repair.halves.layers or not fitting or tokens < LEAST:
        return {}
    state = _weights(repair, layers)
    tried: dict[float | None, float] = {None: _divergence(model, repair.small, judging) - ROUNDING}

    def better(ridge: float, than: float | None) -> bool:
        replace(repair, stream=ridge, together=()).run(layers, fitting, f"try a ridge of {ridge:g}")
        tried[ridge] = _divergence(model, repair.small, judging)
        for name, value in state.items():
            _tensor(repair.small, name).copy_(value)
        return tried[ridge] < tried[than]

    with torch.no_grad():
        better(FIRST, None)
        for others in (LARGER, SMALLER):
            last = FIRST
            for ridge in others:
                if not better(ridge, last):
                    break
                last = ridge
            if last != FIRST:
                break
    return tried


def is_language_model(network: Network, batch: Any) -> bool:
    """Whether the network's one output is scores of the tokens that it takes."""
    ids, output = token_ids_of(batch), next(iter(network.outputs.values()))
    return ids is not None and len(network.outputs) == 1 and output.ndim == 3 and speaks(network.model, output.shape[2])


def _tokens(batch: Any) -> int:
    ids, mask = token_ids_of(batch), output_mask_of(batch)
    return int(mask.sum()) if mask is not None else 0 if ids is None else ids.numel()


def _divergence(model: nn.Module, small: nn.Module, batches: Sequence[Any]) -> float:
    """Nats per token, without padding; one input at a time, because scores of a large vocabulary are large."""
    total, count = 0.0, 0
    with evaluation(model, small), uncached(model), uncached(small):
        for batch in (piece for whole in batches for piece in pieces(whole, 1)):
            wanted, current = call(model, batch), call(small, batch)
            mask = output_mask_of(batch)
            at = ... if mask is None else mask.to(wanted.device)
            rows = divergences(wanted[at].flatten(0, -2), current[at].to(wanted.device).flatten(0, -2))
            total, count = total + float(rows.sum()), count + len(rows)
    return total / max(count, 1)


def _weights(repair: Repair, layers: Sequence[str]) -> Mapping[str, Tensor]:
    """Copies of all that a refit may change, by name."""
    owners = {*layers, *(repair.normalisers[layer] for layer in layers if layer in repair.normalisers)}
    tensors = [*repair.small.named_parameters(), *repair.small.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors if name.rpartition(".")[0] in owners}


def _tensor(small: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    return getattr(small.get_submodule(owner), key)
