"""What removals change in the output, and how the changes of several add up.

With z the output, r a vector of random signs and g the gradient of r.z at an activation y, s = g.d, summed over all
entries of y, is the change of r.z for a small error d at y. For errors d and e of two structures E[s_d s_e] =
E[dz_d . dz_e]: the expected squared change of the output by one, and how far the changes by two point the same way.
Errors at different positions are taken as they are: where they agree, as in late layers of small maps, the output
changes many times more than errors that are independent from position to position would change it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core.redundancy import Interactions
from simprune.trace.sensitivity import backpropagate

Error = Callable[[Tensor, Tensor], Tensor]  # (a module's input, its output) -> what its output loses


@dataclass(frozen=True)
class OutputLoss:
    """What one module's output loses when a structure goes and the layers behind it are refitted."""

    module: str
    error: Error


def output_changes(
    model: nn.Module, calibration: Iterable, losses: Mapping[tuple[str, str], Sequence[OutputLoss]], seed: int = 0
) -> tuple[dict[tuple[str, str], float], Interactions]:
    """Expected squared change of the output by every structure, as a share of its variance, and their interactions.

    Changes that cancel are counted as independent: a repair would have to keep the balance. One forward and one
    backward pass; memory: the outputs of all modules that lose something, and one number per structure and input.
    """
    watched: dict[str, list[tuple[tuple[str, str], Error]]] = {}
    for key, parts in losses.items():
        for part in parts:
            watched.setdefault(part.module, []).append((key, part.error))
    if not watched:
        return {}, Interactions({}, np.zeros((0, 0)))
    batches: dict[tuple[str, str], list[Tensor]] = {key: [] for key in losses}
    pending: dict[tuple[str, str], Tensor] = {}

    def watch(name: str):
        def see(_: nn.Module, given: Tensor, made: Tensor) -> None:
            with torch.no_grad():
                errors = [(key, error(given, made.detach())) for key, error in watched[name]]
            made.register_hook(lambda gradient: add(gradient, errors))

        return see

    def add(gradient: Tensor, errors: Sequence[tuple[tuple[str, str], Tensor]]) -> None:
        for key, error in errors:
            change = (gradient * error).flatten(1).sum(1, dtype=torch.float64).cpu()
            known = pending.get(key, change[:0])
            if len(known) == len(change):
                pending[key] = known + change
            else:  # rows of another kind, such as windows of an image: counted as independent
                pending[key] = torch.cat([known, change])

    def close() -> None:
        for key, change in pending.items():
            batches[key].append(change)
        pending.clear()

    variance, count = backpropagate(model, calibration, {name: watch(name) for name in watched}, seed, close)
    changes = {key: torch.cat(parts) if parts else torch.zeros(1) for key, parts in batches.items()}
    damage = {key: float(change.square().sum()) / (count * max(variance, 1e-300)) for key, change in changes.items()}
    return damage, Interactions({key: row for row, key in enumerate(changes)}, _correlation([*changes.values()]))


def _correlation(changes: Sequence[Tensor]) -> np.ndarray:
    """Cosines between changes of the same inputs, at least 0."""
    found = torch.eye(len(changes), dtype=torch.float64)
    for length in {len(change) for change in changes}:
        rows = torch.tensor([row for row, change in enumerate(changes) if len(change) == length])
        unit = torch.nn.functional.normalize(torch.stack([changes[row].double() for row in rows.tolist()]), dim=1)
        found[rows[:, None], rows] = (unit @ unit.T).clamp(0, 1)
    return found.fill_diagonal_(1).numpy()
