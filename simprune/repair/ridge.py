"""Ridge regression of one layer in closed form: the smallest change of its weights that gives target outputs.

The ridge pulls towards the weights that are there, not to zero: a layer whose calibration inputs are few, or alike,
stays near a function that works on all inputs. How strongly it pulls is decided by inputs that are held out of the fit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from simprune.core.holdout import Counting
from simprune.core.spaced import LEAST
from simprune.repair.problem import Errors, FewRows, Problem, Solve, Sums, Weights, merged
from simprune.trace.layers import matrix_of, pairs_of

Ridge = float | Literal["auto"]
RIDGES = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
ROWS = 64  # as many times the width of a layer in rows suffice; neighbours in a map say little more
UNJUDGED = 1e-3  # the ridge where no inputs can be held out


@dataclass(frozen=True)
class Fit:
    """Weights and intercept, with the relative squared error of the outputs before and after.

    `ridge` is None where no change of the weights helps inputs that are held out, so that they stay as they are.
    """

    matrix: Tensor
    intercept: Tensor
    before: float
    after: float
    ridge: float | None


def fit(
    layer: nn.Module,
    pairs: Iterable[tuple[Tensor, Tensor]],
    ridge: Ridge,
    intercept: bool = True,
    held: Iterable[Tensor] | None = None,
    shared: bool = False,
    inputs: int | None = None,
) -> Fit:
    """Least squares of target outputs on a layer's inputs, with a ridge on the change of the layer's weights.

    With width = inputs x kernel and one row per position, memory is O(width x min(width, rows) + width x outputs):
    products are summed up, or rows stored where there are fewer rows than inputs.

    Args:
        layer: a linear layer or convolution, as `simprune.trace.layers.can_be_fitted` accepts; it is not changed.
        pairs: (input, target output) of the layer, one pair per batch; walked once.
        ridge: relative to the mean variance of the inputs. "auto" tries `RIDGES`, from the largest to smaller ones
            while they predict the held-out inputs (`simprune.core.holdout`) better, and fits to all inputs with the
            best one; the weights stay as they are where none predicts better than they do.
        intercept: False for a fit through the origin, of a layer without bias.
        held: per pair, (N,) true for the rows of the input that are held out; by default a row is an input, and they
            are numbered as they come.
        shared: whether the pairs are those of this process, of several that take batches in turn; all processes get
            the fit to the pairs of all.
        inputs: how many there are in all pairs, of all processes; None where every position of a map is to be fitted,
            and not as many as give `ROWS` times the width.

    Returns:
        The weights and the errors on all inputs.

    >>> layer, x = nn.Linear(3, 2), torch.randn(64, 3)
    >>> target = x @ torch.randn(3, 2)
    >>> fit(layer, [(x, target)], 1e-9).after < 1e-6
    True
    """
    # A copy: where the present weights stay, the caller writes them into the layer.
    weight, bias = matrix_of(layer).to(torch.float64, copy=True), getattr(layer, "bias", None)
    present = weight, torch.zeros_like(weight[:, 0]) if bias is None else bias.detach().to(torch.float64, copy=True)
    fitting, judging = _problems(layer, pairs, ridge, intercept, held, shared, inputs)
    chosen, whole = UNJUDGED if ridge == "auto" else ridge, None
    if ridge == "auto" and fitting is not None and judging is not None:
        if isinstance(fitting, FewRows) and isinstance(judging, FewRows):
            whole = fitting.merge(judging)  # a quarter of them says little: every quarter is held out in turn
            chosen = _best_ridge(whole.in_turn(present))
        else:
            chosen = _best_ridge(_on(judging, fitting.solver(present), present))
    whole = whole or merged(fitting, judging)
    del fitting, judging  # those of a language model's head are as large as the head, in float64
    solved = present if chosen is None else whole.solver(present)(chosen)
    spread = whole.total.clamp(min=1e-30)
    before, after = (float(whole.errors(weights).sum() / spread) for weights in (present, solved))
    return Fit(*solved, before, after, chosen)


def _problems(
    layer: nn.Module,
    pairs: Iterable[tuple[Tensor, Tensor]],
    ridge: Ridge,
    intercept: bool,
    held: Iterable[Tensor] | None,
    shared: bool,
    inputs: int | None,
) -> list[Problem | None]:
    """The problems over the inputs that are not held out, and over those that are; None without any. As of `fit`."""
    sums = [Sums(intercept, matrix_of(layer)) for _ in range(2)]
    counting, masks = Counting(), None if held is None else iter(held)
    most = None if inputs is None else max(LEAST, -(-ROWS * matrix_of(layer).shape[1] // inputs))
    for number, (x, targets) in enumerate(pairs):
        counting.begin(len(x))
        out = counting.held_out() if masks is None else next(masks)
        if ridge != "auto" or len(x) != len(targets):
            out = torch.zeros_like(out)
        for some, part in zip(sums, (~out, out), strict=True):
            if part.any():
                rows = slice(None) if part.all() else part.to(x.device)
                some.add(number, *pairs_of(layer, x[rows], targets[rows], most))
    return [some.problem(shared) for some in sums]


def _on(judging: Problem, solve: Solve, present: Weights) -> Errors:
    """Errors, on the rows to judge by, of weights that were fitted to others."""
    return lambda ridge: judging.errors(present if ridge is None else solve(ridge))


def _best_ridge(errors: Errors) -> float | None:
    """The ridge whose weights predict held-out inputs best; None where the present weights do.

    Where rows are few, the others' error must also be larger by more than a standard error: otherwise the choice would
    follow the draw.
    """
    without = errors(None)
    best, least = None, without
    for ridge in RIDGES:
        error = errors(ridge)
        if error.sum() >= least.sum():  # a smaller ridge follows the inputs of the fit further away from the others
            break
        best, least = ridge, error
    gain = without - least
    certain = len(gain) < 2 or gain.mean() > gain.std() / len(gain) ** 0.5
    return best if certain else None
