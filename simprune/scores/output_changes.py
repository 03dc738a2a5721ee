"""How far removals change the output of a network, and how the changes by several removals add up.

Let z be the output, r a vector of random signs, and g the gradient of r.z at an activation y. A small error d at y
changes r.z by s = g.d, summed over all entries of y. For errors d and e by two structures, E[s_d s_e] = E[dz_d . dz_e].
So s tells the expected squared change of the output by a structure (d = e), and how far the changes by two structures
point the same way. Errors at different positions are summed before they are squared, because they may agree, as in late
layers with small maps. The output changes many times more then than by errors that are independent between positions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core.redundancy import Interactions
from simprune.trace.sensitivity import backpropagate

Error = Callable[[Tensor, Tensor], Tensor]  # (input, output) of a module -> the loss, of the output's shape


@dataclass(frozen=True)
class OutputLoss:
    """What the output of a module loses when a structure is removed and the layers after it are refitted.

    Args:
        module: name of the module.
        error: (input, output) of the module -> what is lost of the output, of its shape.
    """

    module: str
    error: Error


def output_changes(
    model: nn.Module, calibration: Iterable, losses: Mapping[tuple[str, str], Sequence[OutputLoss]], seed: int = 0
) -> tuple[dict[tuple[str, str], float], Interactions]:
    """Damage of every structure, and the interactions of structures.

    The damage is the expected squared change of the output, as a share of the output's variance. Two changes that would
    cancel each other count as independent, because a repair need not preserve the balance between them. One forward and
    one backward pass; memory: the outputs of all modules with losses, and one number per structure and input.

    Args:
        model: the original.
        calibration: batches that can be walked more than once.
        losses: what modules lose without a structure, by the structure's kind and name.
        seed: of the random signs.

    Returns:
        Damages by kind and name, and the interactions.
    """
    watched: dict[str, list[tuple[tuple[str, str], Error]]] = {}
    for key, parts in losses.items():
        for part in parts:
            watched.setdefault(part.module, []).append((key, part.error))
    if not watched:
        return {}, Interactions({}, np.zeros((0, 0)))
    batches: dict[tuple[str, str], list[Tensor]] = {key: [] for key in losses}
    pending: dict[tuple[str, str], Tensor] = {}

    def see(parts: Sequence[tuple[tuple[str, str], Error]], _: nn.Module, value: Tensor, output: Tensor) -> None:
        with torch.no_grad():
            errors = [(key, error(value, output.detach())) for key, error in parts]
        output.register_hook(partial(add, errors))

    def add(errors: Sequence[tuple[tuple[str, str], Tensor]], gradient: Tensor) -> None:
        for key, error in errors:
            change = (gradient * error).flatten(1).sum(1, dtype=torch.float64).cpu()
            known = pending.get(key, change[:0])
            if len(known) == len(change):
                pending[key] = known + change
            else:  # another number of rows, such as windows of images in place of images: they count as independent
                pending[key] = torch.cat([known, change])

    def close() -> None:
        for key, change in pending.items():
            batches[key].append(change)
        pending.clear()

    watches = {name: partial(see, parts) for name, parts in watched.items()}
    variance, count = backpropagate(model, calibration, watches, seed, close)
    changes = {key: torch.cat(parts) if parts else torch.zeros(1) for key, parts in batches.items()}
    damage = {key: float(change.square().sum()) / (count * max(variance, 1e-300)) for key, change in changes.items()}
    return damage, Interactions({key: row for row, key in enumerate(changes)}, _correlation([*changes.values()]))


def _correlation(changes: Sequence[Tensor]) -> np.ndarray:
    """(structures, structures) cosines of the changes, at least 0; 0 where two have different numbers of rows."""
    cosines = torch.eye(len(changes), dtype=torch.float64)
    for length in {len(change) for change in changes}:
        rows = torch.tensor([row for row, change in enumerate(changes) if len(change) == length])
        unit = torch.nn.functional.normalize(torch.stack([changes[row].double() for row in rows.tolist()]), dim=1)
        cosines[rows[:, None], rows] = (unit @ unit.T).clamp(0, 1)
    return cosines.fill_diagonal_(1).numpy()
