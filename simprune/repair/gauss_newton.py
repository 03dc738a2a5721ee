"""Fit all layers of a block together, so that its output comes near a target through its nonlinearities.

Layer by layer, only the layers that read a removed unit can make up for it. A block as a whole can also change what its
remaining units compute. Gauss-Newton: the block is linearised around its weights, the least-squares problem is solved
by conjugate gradients, and the step is taken if it brings held-out inputs nearer. No labels, no learning rate.

The preconditioner is the Kronecker-factored Gauss-Newton matrix (Martens and Grosse, 2015), its output factor diagonal.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from simprune.core.batches import copied, first_tensor
from simprune.core.copies import copy_of
from simprune.core.cost import Example
from simprune.core.holdout import Counting
from simprune.core.ties import TIE
from simprune.trace.axes import channels_last, like
from simprune.trace.bypass import put
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.layers import Transposed, joint_moments, matrix_of, patches, positions, weight_of
from simprune.trace.precision import to_single, widened

Pair = tuple[Example, Tensor, Tensor | float]  # arguments of a block, target of its output, factors of the output
JUDGING = 8  # one input in about this many is held out
STEPS = (1.0, 0.5, 0.25)  # shares of the step towards the solution; the first that improves is taken
# Relative to the mean square of a layer's inputs; the next when no share of a step improves. Smaller ones bring a
# segment nearer still, on inputs held out as well, but not the outputs of the network, and follow rounding further.
DAMPINGS = (1e-1, 1.0)
ENOUGH = 0.01  # share of the error: a round that improves by less is the last


def fit_block(
    block: nn.Module,
    layers: Mapping[str, str | None],
    pairs: Sequence[Pair],
    rounds: int = 3,
    iterations: int = 8,
    axis: int | None = None,
    batch: int = 0,
    held: Sequence[Tensor] | None = None,
) -> tuple[float, float]:
    """Change layers of a block, in place, so that its outputs come near targets.

    Cost: `rounds` x `iterations` x about five forward passes of the block; memory: the activations of all calls through
    the block.

    Args:
        block: the block; every layer in it runs once per call.
        layers: of the block, by name within it; the value is the BatchNorm right behind the layer, or None.
        pairs: (arguments of the block, target of its output, factors of the output) per batch. A factor is 0 where an
            output does not matter, such as padding.
        rounds: of linearising the block.
        iterations: of conjugate gradients per round.
        axis: along which the channels of the block's output lie (see `simprune.trace.axes`).
        batch: along which its inputs lie.
        held: per pair, true for the inputs that are held out; by default they are numbered as they come. Where none is,
            the errors are those of all inputs.

    Returns:
        The squared error relative to the targets' variance, before and after, on the inputs that are held out.

    >>> block, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(64, 3)
    >>> before, after = fit_block(block, {"0": None}, [(((x,), {}), x[:, :2], 1.0)])
    >>> after < 0.01 * before
    True
    """
    trial = to_single(_folded(block, layers))  # steps are smaller than the rounding of half precision
    pairs = [(call, _as_real(target), factors) for call, target, factors in map(widened, pairs)]
    judging, fitting = _split(pairs, held, batch)
    with eval_mode(trial), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        spread = _variation(judging) or 1.0
        before = best = _error(trial, judging)
        dampings, moments = list(DAMPINGS), None
        for _ in range(rounds):
            linear = _Linearised(trial, list(layers), fitting)
            moments = moments or linear.moments(axis)  # a preconditioner need not be up to date
            error = None
            while error is None and dampings:
                factors = {name: _Factor.of(*moment, dampings[0]) for name, moment in moments.items()}
                error = _walk(linear, _conjugate_gradients(linear, factors, iterations), judging, best)
                if error is None:  # too far for what the inputs can tell
                    del dampings[0]
            if error is None:
                break
            best, last = error, best
            if best > (1 - ENOUGH) * last:
                break
    _unfold(block, trial, layers)
    return before / spread, best / spread


def _split(pairs: Sequence[Pair], held: Sequence[Tensor] | None, batch: int) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """The pairs to judge by and those to fit, in which the factors of the others' inputs are 0."""
    judging: list[Pair] = []
    fitting: list[Pair] = []
    counting = Counting()
    for number, (call, target, factors) in enumerate(pairs):
        inputs = target.shape[batch]
        counting.begin(inputs)
        out = (counting.held_out(share=JUDGING) if held is None else held[number]).to(target.device)
        shape = [inputs if dim == batch else 1 for dim in range(target.ndim)]
        judged, fitted = (factors * rows.view(shape).to(target) for rows in (out, ~out))
        fitting.append((call, target, fitted))
        if out.any():
            judging.append((call, target, judged))
    return judging or fitting, fitting


def _variation(pairs: Sequence[Pair]) -> float:
    """The sum of squares of the targets about their mean, over entries whose factor is not 0."""
    values = [target[(factors != 0).expand_as(target)].double() for _, target, factors in pairs]  # type: ignore[union-attr]
    count, total = sum(map(len, values)), sum(float(part.sum()) for part in values)
    mean = total / max(count, 1)
    return sum(float((part - mean).square().sum()) for part in values)


def _walk(linear: "_Linearised", step: Mapping[str, Tensor], judging: Sequence[Pair], best: float) -> float | None:
    """Go along the step as far as makes the error less than `best`, by more than rounding, and return it; else None."""
    moves = linear.parts(step)
    for length in STEPS:
        moved = {name: parameter.detach() + length * moves[name] for name, parameter in linear.parameters.items()}
        error = _error(linear.trial, judging, moved)
        if error < (1 - TIE) * best:
            for name, parameter in linear.parameters.items():
                parameter.copy_(moved[name])
            return error
    return None


def can_be_folded(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm with running statistics that computes nothing else."""
    plain = isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward
    return plain and module.running_mean is not None


def _folded(block: nn.Module, layers: Mapping[str, str | None]) -> nn.Module:
    """A copy without the BatchNorms behind its layers: they are part of the weights."""
    trial = copy_of(block)
    for name, normaliser in layers.items():
        if normaliser is not None:
            layer, norm = trial.get_submodule(name).eval(), trial.get_submodule(normaliser).eval()
            if isinstance(layer, nn.Linear):
                fused = fuse_linear_bn_eval(layer, norm)  # type: ignore[arg-type]
            else:
                fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, Transposed))  # type: ignore[arg-type]
            put(trial, name, fused)
            put(trial, normaliser, nn.Identity())
    for parameter in trial.parameters():
        parameter.requires_grad_(False)
    return trial


def _unfold(block: nn.Module, trial: nn.Module, layers: Mapping[str, str | None]) -> None:
    """Write the copy's weights into the block; intercepts go into the layers' biases or the BatchNorms' means."""
    with torch.no_grad():
        for name, normaliser in layers.items():
            layer, fitted = block.get_submodule(name), trial.get_submodule(name)
            if normaliser is None:
                layer.load_state_dict(fitted.state_dict())
                continue
            bias = getattr(layer, "bias", None)
            norm = block.get_submodule(normaliser)
            mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            deviation = (variance + norm.eps).sqrt()  # type: ignore[operator]
            scale = (torch.ones_like(mean) if norm.weight is None else norm.get_parameter("weight")) / deviation  # type: ignore[operator]
            shift = torch.zeros_like(mean) if norm.bias is None else norm.get_parameter("bias")
            heard = scale.abs() > 1e-6 * scale.abs().max()  # a channel that BatchNorm silences stays as it is
            inverse = torch.where(heard, 1 / torch.where(heard, scale, 1), 0)  # type: ignore[arg-type]
            matrix = torch.where(heard[:, None], matrix_of(fitted) * inverse[:, None], matrix_of(layer))
            layer.get_parameter("weight").copy_(weight_of(layer, matrix))
            offset = (fitted.get_parameter("bias") - shift) * inverse  # scale (W x + bias - mean) + shift
            mean.copy_(torch.where(heard, (0 if bias is None else bias) - offset, mean))


@dataclass(frozen=True)
class _Factor:
    """Kronecker factors of one layer: Cholesky of its inputs' second moments, and the output's mean square gradient."""

    root: Tensor  # (inputs + 1)^2
    outputs: Tensor  # (outputs, 1)
    damping: float

    @classmethod
    def of(cls, moments: Tensor, squares: Tensor, damping: float) -> "_Factor":
        outputs = squares.clamp(min=1e-4 * float(squares.mean()) + 1e-30)[:, None]
        ridge = damping * float(moments.diagonal().mean()) + 1e-12
        eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
        return cls(torch.linalg.cholesky(moments + ridge * eye), outputs, ridge)

    def solve(self, matrix: Tensor) -> Tensor:
        """The factors' inverse applied to one layer's matrix."""
        return torch.cholesky_solve(matrix.T / self.outputs.T, self.root).T


class _Linearised:
    """The block around its present weights: its outputs with their graphs, its errors, products with its Jacobian."""

    def __init__(self, trial: nn.Module, names: Sequence[str], pairs: Sequence[Pair]) -> None:
        self.trial, self.pairs = trial, pairs
        self.layers = {name: trial.get_submodule(name) for name in names}
        self.parameters = {
            f"{name}.{key}": parameter
            for name, layer in self.layers.items()
            for key, parameter in layer.named_parameters()
            if key in ("weight", "bias")
        }
        self.outputs: list[Tensor] = []
        self.passes: list[dict[str, tuple[Tensor, Tensor]]] = []  # call by call, the input and output of every layer
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

        def see(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            x = first_tensor((args, kwargs))
            assert x is not None
            self.passes[-1][name] = (x.detach(), output)

        with torch.enable_grad(), hooks(after=[(layer, partial(see, name)) for name, layer in self.layers.items()]):
            for call, _, count in pairs:
                self.passes.append({})
                self.outputs.append(_output(trial, call) * count)
        outputs = zip(self.outputs, pairs, strict=True)
        self.errors = [output.detach() - target * count for output, (_, target, count) in outputs]

    def moments(self, axis: int | None) -> dict[str, tuple[Tensor, Tensor]]:
        """Per layer, summed over positions: products of inputs, the bias's among them, and squared gradients at the
        outputs, from one random direction at every output of the block."""
        generator = torch.Generator().manual_seed(0)
        sums: dict[str, list[Any]] = {}  # products of inputs, squared gradients, number of positions
        for output, layers, (_, _, factors) in zip(self.outputs, self.passes, self.pairs, strict=True):
            # drawn channel by channel, so that the same block in another layout gets the same signs
            drawn = 2 * torch.randint(2, channels_last(output, axis).mT.shape, generator=generator) - 1
            signs = like(drawn.mT, output, axis).to(output)
            gradients = _gradients(output, [y for _, y in layers.values()], signs)
            for (name, (x, _)), gradient in zip(layers.items(), gradients, strict=True):
                square = positions(self.layers[name], gradient).square().sum((0, 2), dtype=torch.float64)
                tokens = _tokens(x, factors)
                rows = (x, gradient) if tokens is None else (x[tokens], gradient[tokens])
                moment, count = _second_moments(self.layers[name], *rows)
                parts = [moment, square, count]
                sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts
        return {name: (sums[name][0], sums[name][1] / sums[name][2]) for name in self.layers}

    def pull(self, errors: Iterable[Tensor]) -> dict[str, Tensor]:
        """J^T e, per layer as a matrix whose last column is the bias."""
        total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in self.parameters.items()}
        for output, error in zip(self.outputs, errors, strict=True):
            gradients = _gradients(output, [*self.parameters.values()], error)
            for name, gradient in zip(total, gradients, strict=True):
                total[name] += gradient
        matrices = {name: matrix_of(layer, total[f"{name}.weight"]) for name, layer in self.layers.items()}
        for name, matrix in matrices.items():
            if f"{name}.bias" in total:
                matrices[name] = torch.cat([matrix, total[f"{name}.bias"][:, None]], 1)
        return matrices

    def parts(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Matrices per layer, as `pull` returns them, as tensors per parameter."""
        parts = {}
        for name, layer in self.layers.items():
            width = matrix_of(layer).shape[1]
            parts[f"{name}.weight"] = weight_of(layer, step[name][:, :width])
            if f"{name}.bias" in self.parameters:
                parts[f"{name}.bias"] = step[name][:, width].to(self.parameters[f"{name}.bias"])
        return parts

    def push(self, step: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """J v, call by call."""
        primals = {name: parameter.detach() for name, parameter in self.parameters.items()}
        parts = self.parts(step)
        tangents = {name: parts[name] for name in primals}  # in the same order
        for call, _, count in self.pairs:
            with warnings.catch_warnings():  # torch's own rules for forward derivatives use what torch deprecates
                warnings.filterwarnings("ignore", r".torch\.jit\.script. is deprecated", DeprecationWarning)
                moved = jvp(partial(_output, self.trial, call), (primals,), (tangents,))[1]
            yield moved * count


def _conjugate_gradients(linear: _Linearised, factors: Mapping[str, _Factor], iterations: int) -> dict[str, Tensor]:
    """Solve (J^T J + D) step = -J^T error, where D damps the step of a layer by its factors."""
    left = {name: -part for name, part in linear.pull(linear.errors).items()}
    step = {name: torch.zeros_like(part) for name, part in left.items()}
    solved = {name: factors[name].solve(part) for name, part in left.items()}
    direction, size = solved, _dot(left, solved)
    for _ in range(iterations):
        if size <= 0:
            break
        moved = linear.pull(linear.push(direction))
        for name, factor in factors.items():
            moved[name] += factor.damping * factor.outputs * direction[name]
        length = size / _dot(direction, moved)
        step = {name: part + length * direction[name] for name, part in step.items()}
        left = {name: part - length * moved[name] for name, part in left.items()}
        solved = {name: factors[name].solve(part) for name, part in left.items()}
        size, old = _dot(left, solved), size
        direction = {name: part + (size / old) * direction[name] for name, part in solved.items()}
    return step


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(sum((a[name] * b[name]).sum() for name in a))


def _output(block: nn.Module, call: Example, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    args, kwargs = copied(call)  # layers may work in place
    if parameters is None:
        output = block(*args, **kwargs)
    else:  # without ties: of a module that has two names, functional_call would not put back what it changed
        output = functional_call(block, dict(parameters), args, kwargs, tie_weights=False)
    tensor = first_tensor(output)
    assert tensor is not None
    return _as_real(tensor)


def _as_real(value: Tensor) -> Tensor:
    """Complex numbers as their two parts, next to each other."""
    return torch.view_as_real(value).flatten(-2) if value.is_complex() else value


def _gradients(output: Tensor, inputs: Sequence[Tensor], directions: Tensor) -> Sequence[Tensor]:
    """The gradients at inputs; 0 where an input reaches the output by comparisons alone, or not at all."""
    return torch.autograd.grad(output, inputs, directions, retain_graph=True, allow_unused=True, materialize_grads=True)


def _error(block: nn.Module, pairs: Sequence[Pair], parameters: Mapping[str, Tensor] | None = None) -> float:
    return sum(
        float(((_output(block, call, parameters) - targets) * count).square().sum(dtype=torch.float64))
        for call, targets, count in pairs
    )


def _tokens(value: Tensor, factors: Tensor | float) -> Tensor | None:
    """(N, T) where values (N, T, D) matter, by the factors of a block's output; None where all do."""
    if not isinstance(factors, Tensor) or value.ndim != 3 or value.shape[:2] != factors.shape[:2]:
        return None
    if factors.shape[1] == 1:  # a factor for every input
        return None
    return factors[..., 0] != 0


def _second_moments(layer: nn.Module, x: Tensor, output: Tensor) -> tuple[Tensor, int]:
    """Sum of u u^T over positions, where u ends with a constant one if there is a bias; and the number of positions."""
    columns, groups = patches(layer, x, output), getattr(layer, "groups", 1)
    moments = joint_moments(columns.unflatten(1, (groups, -1)).flatten(0, 1))  # channel groups: the mean over them
    count = moments.count // groups
    second, total = moments.about_origin().scatter / groups, (count * moments.mean)[:, None]
    if getattr(layer, "bias", None) is None:
        return second, count
    corner = torch.full_like(total[:1], count)
    return torch.cat([torch.cat([second, total], 1), torch.cat([total.T, corner], 1)]), count
