"""How much an error inside the network changes its output, by gradients of the output in random directions.

Let z be the output, r a vector of random signs, and g the gradient of r.z at an activation y. Then E[g g^T] = E[J^T J]
for the Jacobian J of z at y. So tr(E[g g^T] E[d d^T]), summed over positions, estimates E|dz|^2 for a small error d at
y, if the errors at different positions are not correlated. A network may have several outputs: every one of them is
divided by the root of its variance first, so that z is all of them, and each counts as a share of its own variance.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import (
    call_all,
    device_of,
    first_tensor,
    inputs_of,
    move,
    output_mask_of,
    rows_at,
    tensors_in,
)
from simprune.core.example import example_of, rows_of
from simprune.core.holdout import held_out
from simprune.core.peekable import Peekable
from simprune.core.spread import Spread
from simprune.trace.caches import forgetting
from simprune.trace.context import eval_mode, requiring
from simprune.trace.hooks import hooks
from simprune.trace.outputs import Rows, add_rows, counted, rows_of_outputs, shares_of

Watch = Callable[[nn.Module, Tensor, Tensor], None]  # (module, its input, its output that carries gradients)
OVERWRITTEN = (
    "the model changes a tensor in place that its own backward pass needs, so that it has no gradients; write the "
    "operation without the underscore, such as x = x + y in place of x.add_(y)"
)


class Watcher:
    """Watches modules while directions of the output are propagated back (see `backpropagate`).

    Args:
        watches: module -> a function of (module, its input, its output), called in the forward pass. It sees the
            gradient if it registers a hook on the output.
    """

    def __init__(self, watches: Mapping[str, Watch]) -> None:
        self.watches = watches

    def begin(self, batch: Any) -> None:
        """A batch, or a later one of its round, runs next."""

    def close(self) -> None:
        """A round of batches is over."""

    def end(self, walk: "Walk") -> None:
        """All batches are over."""


@dataclass(frozen=True)
class Walk:
    """What a walk over all batches tells of the outputs.

    Args:
        variance: of the output, summed over its entries. Of several outputs, which are scaled, it is 1 in all.
        count: number of output rows, of several outputs of the first one. Padded tokens are no rows.
        inputs: number of inputs in all batches.
        scales: what every output is multiplied with, by name; empty for one output.
    """

    variance: float
    count: int
    inputs: int
    scales: Mapping[str, float]


def backpropagate(
    model: nn.Module,
    calibration: Iterable,
    watchers: Sequence[Watcher],
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    after: Walk | None = None,
) -> Walk:
    """Propagate random directions of the output back through watched modules: one forward and one backward pass.

    Several processes share out the batches, in rounds of as many batches as there are processes. With one process a
    round is a batch.

    Parameters, their gradients and `requires_grad`, and the training mode are afterwards as before.

    Args:
        model: the network.
        calibration: batches.
        watchers: whoever watches modules.
        seed: of the directions.
        weights: of outputs, by name; those that it does not name have the weight 1.
        after: an earlier walk over the same batches. Only inputs that are held out (`simprune.core.holdout`) run then,
            in the directions that they had in that walk, and each output counts as it did there.

    Returns:
        What the walk tells of the outputs; after an earlier walk, that one's variance, and the rows of this one.

    Raises:
        ValueError: when there are no batches, when no output depends on the inputs or varies with them, and for a model
            that overwrites what its backward pass needs.
    """
    batches = Peekable.of(calibration, "calibration")
    rows = rows_of_outputs(model, batches.first)
    scales = {} if after is None else after.scales
    if after is None and len(rows) > 1:
        scales = _scales(model, batches, rows, weights)
    spreads: dict[str, Spread] = {}
    mail = processes.Mail(partial(_merge, spreads))
    watched = [(name, watch) for watcher in watchers for name, watch in watcher.watches.items()]
    # Autograd computes only what leads to a target. All outputs get gradients on the way to the inputs, or else to a
    # parameter of every module, whose own gradients cost as much again.
    at_inputs = _all_follow(model, batches.first, dict.fromkeys(name for name, _ in watched))
    parameters = [] if at_inputs else [next(model.get_submodule(name).parameters()) for name, _ in watched]

    def run(batch: Any, numbers: Sequence[int]) -> None:
        """Run one batch, of whose inputs these are the numbers."""
        leading, leaves = _from_leaves(batch, device_of(model)) if at_inputs else (batch, parameters)
        mask = output_mask_of(batch)
        with forgetting(model):  # a tensor that the model stores would join the graphs of two batches
            outputs = call_all(model, leading)
        moving = {name: value for name, value in outputs.items() if name in (scales or outputs)}
        directions = _directions(moving, rows, mask, _Signs(seed, numbers))
        changing = [name for name, value in moving.items() if value.requires_grad]
        if not changing:
            raise ValueError("no output of the network depends on its parameters, or none is of floating point")
        try:
            torch.autograd.grad(
                [outputs[name] for name in changing],
                leaves,
                [directions[name] * scales.get(name, 1.0) for name in changing],
                allow_unused=True,
            )
        except RuntimeError as error:
            if "inplace operation" in str(error):
                raise ValueError(OVERWRITTEN) from error
            raise
        mail.send(*_spreads(outputs, rows, mask))

    number = 0
    seen = [(model.get_submodule(name), partial(_see, watch)) for name, watch in watched]
    with eval_mode(model), torch.enable_grad(), hooks(after=seen), requiring(model, *parameters):
        for some in processes.rounds(batches):
            for index, batch in enumerate(some):
                inputs = rows_of(inputs_of(batch))
                chosen = torch.ones(inputs, dtype=torch.bool) if after is None else held_out(number, inputs)
                for watcher in watchers:
                    watcher.begin(batch)
                if index == processes.rank() and chosen.any():
                    part = batch if chosen.all() else rows_at(batch, chosen)
                    run(part, (number + chosen.nonzero().flatten()).tolist())
                number += inputs
            for watcher in watchers:
                watcher.close()
            mail.deliver()
    counting = next(spread for name, spread in spreads.items() if name in scales or not scales)
    if after is not None:
        walk = Walk(after.variance, counting.count, number, scales)
    elif counting.varies:
        walk = Walk(1.0 if scales else counting.variance, counting.count, number, scales)
    else:
        raise ValueError(constant(batches, counting.count))
    for watcher in watchers:
        watcher.end(walk)
    return walk


def _from_leaves(batch: Any, device: torch.device) -> tuple[Any, list[Tensor]]:
    """A batch whose floating-point tensors were computed from others that require gradients, and these others."""
    leaves: list[Tensor] = []

    def led(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            leaves.append(value.detach().requires_grad_())
            return leaves[-1].clone()  # which the model may change in place
        if isinstance(value, dict):
            return {key: led(item) for key, item in value.items()}
        return type(value)(map(led, value)) if type(value) in (tuple, list) else value

    args, kwargs = move(inputs_of(batch), device)
    return (led(args or kwargs), None), leaves


def _all_follow(model: nn.Module, batch: Any, watches: Iterable[str]) -> bool:
    """Whether the outputs of all watched modules depend on floating-point inputs, in a way that has gradients."""
    following: dict[str, bool] = {}

    def see(name: str, _: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        result = first_tensor(output)
        following[name] = following.get(name, True) and result is not None and result.requires_grad

    watched = [(model.get_submodule(name), partial(see, name)) for name in watches]
    args, kwargs = example_of(batch)
    leading, leaves = _from_leaves((args or kwargs, None), device_of(model))
    if not leaves:
        return False
    with eval_mode(model), torch.enable_grad(), hooks(after=watched), requiring(model), forgetting(model):
        outputs = call_all(model, leading)
    return any(value.requires_grad for value in outputs.values()) and all(following.values())


def constant(batches: Iterable, rows: int) -> str:
    """What is the same for all calibration inputs where the outputs are: the inputs themselves, or the model's answers.

    >>> constant([torch.zeros(4, 2)], 4)
    'calibration: all inputs are equal, so that nothing can be seen of what they change; give inputs that differ'
    """
    first: list[Tensor] = []
    for batch in batches:
        values = [tensor for tensor in tensors_in(inputs_of(batch)) if tensor.ndim > 0]
        first = first or [tensor[:1] for tensor in values]
        if any(not torch.equal(tensor, one.expand_as(tensor)) for tensor, one in zip(values, first, strict=True)):
            return (
                f"the outputs of the network are the same for all calibration inputs ({rows} rows): nothing can be "
                "seen of what its layers change; give a trained network, and inputs that it tells apart"
            )
    return "calibration: all inputs are equal, so that nothing can be seen of what they change; give inputs that differ"


def _scales(
    model: nn.Module, batches: Iterable, rows: Mapping[str, Rows], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """What every output is multiplied with, by name, so that together they have the variance 1 per row of the first."""
    spreads: dict[str, Spread] = {}
    mail = processes.Mail(partial(_merge, spreads))
    with eval_mode(model), torch.no_grad():
        for some in processes.rounds(batches):
            for batch in some[processes.rank() :][:1]:
                mail.send(*_spreads(call_all(model, batch), rows, output_mask_of(batch)))
            mail.deliver()
    shares = shares_of(spreads, weights)
    if not shares:
        raise ValueError(constant(batches, next(iter(spreads.values())).count))
    count = next(spreads[name].count for name in shares)
    return {name: (count * share) ** 0.5 for name, share in shares.items()}


def _spreads(
    outputs: Mapping[str, Tensor], rows: Mapping[str, Rows], mask: Tensor | None
) -> tuple[str, dict[str, Spread]]:
    """What `_merge` takes: the variance of one batch's outputs, by name."""
    spreads: dict[str, Spread] = {}
    add_rows(spreads, outputs, rows, mask)
    return "outputs", spreads


def _merge(spreads: dict[str, Spread], _: str, others: Mapping[str, Spread]) -> None:
    for name, other in others.items():
        spread = spreads.setdefault(name, Spread())
        if spread.count and other.count and spread.mean.shape != other.mean.shape:
            raise ValueError(
                f"output {name!r}: the network returns rows of {len(spread.mean)} entries for one batch and of "
                f"{len(other.mean)} for another, as where it selects by its inputs; give a module that returns the "
                "tensors before it"
            )
        spread.merge(other)


class _Signs:
    """Random signs for the inputs of one batch: an input's follow from its number, whatever batch it is in.

    Args:
        seed: of all signs.
        numbers: of the inputs.
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        self._seed, self._numbers = seed % 2**63, numbers

    def of(self, output: int, rows: int, width: int, tokens: Tensor | None = None) -> Tensor:
        """(rows, width) of -1 and 1 for an output.

        Args:
            output: its number.
            rows: of all inputs, as many of every input; or of the tokens alone.
            width: entries of a row.
            tokens: which positions of every input are tokens, one input after another.
        """
        inputs = len(self._numbers)
        counts = [rows // inputs] * inputs
        if tokens is not None and len(tokens) % inputs == 0:
            counts = tokens.view(inputs, -1).sum(1).tolist()
        if sum(counts) != rows:  # they belong to no input
            counts = [rows]
        parts = []
        for number, some in zip(self._numbers, counts, strict=False):
            drawn = np.random.default_rng((self._seed, output, number)).integers(0, 2, (some, width), dtype=np.int8)
            parts.append(torch.from_numpy(drawn))
        return 2 * torch.cat(parts) - 1


def _directions(
    outputs: Mapping[str, Tensor], rows: Mapping[str, Rows], mask: Tensor | None, signs: _Signs
) -> dict[str, Tensor]:
    """Random signs of every output's shape, 0 for padding; outputs side by side get those of one tensor of them all."""
    whole = {name: rows[name].of(torch.empty_like(value, device="meta")).shape for name, value in outputs.items()}
    tokens = {name: counted(value, mask) for name, value in outputs.items()}  # signs are drawn for these rows alone
    counts = {name: whole[name][0] if real is None else int(real.sum()) for name, real in tokens.items()}
    shapes = {name: (counts[name], whole[name][1]) for name in outputs}
    if len(set(counts.values())) == 1:
        widths = [shape[1] for shape in shapes.values()]
        name = next(iter(outputs))
        drawn = dict(zip(shapes, signs.of(0, counts[name], sum(widths), tokens[name]).split(widths, 1), strict=True))
    else:
        numbered = enumerate(shapes.items(), 1)
        drawn = {name: signs.of(number, *shape, tokens[name]) for number, (name, shape) in numbered}
    directions = {}
    for name, value in outputs.items():
        direction, real = drawn[name].to(value), tokens[name]
        if real is not None:
            padded = value.new_zeros(whole[name])
            padded[real] = direction
            direction = padded
        directions[name] = rows[name].back(direction, value.shape)
    return directions


def _see(watch: Watch, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    value, result = first_tensor((args, kwargs)), first_tensor(output)
    if value is not None and result is not None:
        watch(module, value.detach(), result)
