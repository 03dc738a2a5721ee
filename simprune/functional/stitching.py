"""Can the lower layers of one model feed the upper layers of another through one linear map?"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from simprune.core.batches import device_of
from simprune.core.names import did_you_mean
from simprune.functional._base import Score, class_scores, finite
from simprune.functional._models import Batch, Batches, ModelMeasure, batches_of, truth, undisturbed

CHUNK = 4  # rows that the factorization takes at once, as a multiple of its width


@dataclass(frozen=True)
class StitchingScore(ModelMeasure):
    """Accuracy of a's lower and b's upper layers joined by a linear map, minus b's own, in [-1, 1]; 0 or more: fits.

    a runs up to the output of module `layer_a`, whose activation is mapped, with bias, to replace that of `layer_b`
    (None: the same name) in b: a 1x1 convolution for maps (N, C, H, W), token by token for (N, T, D), plainly
    for (N, D). Maps of another size are resized (bilinear) first. Both models are frozen. `method`:

    - "direct": the map is the least-squares match of the two activations (of least norm if there are several);
    - "task": it is trained by Adam on the labels, "soft_labels": on b's probabilities; `epochs` and `lr`, once for
      every one of `seeds`, whose scores are averaged.

    `f(a, b, inputs, labels=..., fit=batches)` fits on other data than it scores on, as a test should; without `fit`
    on the same (`details["fit_on_inputs"]`). `details`: "penalty" (-score), "accuracy_a", "accuracy_b", "accuracy"
    (stitched), "scores" per map, "identity" (score without a map; None where shapes differ), "agreement" (stitched
    and b predict alike), "gained" and "lost" inputs with the paired "standard_error" (of the first map), "resized",
    and for "direct" "rank", "rows" and "relative_error" of the match on the data fitted: |R W + c - R'| / |R' - mean|
    for activations R of a and R' of b. Its denominator is centred: b's activation less the mean of every channel, so
    that a map that only knows the means has error 1. Where b's input also
    reaches its output around `layer_b`, so that a is not all it sees, "bypassed" is True and the score has a reason.

    KeyError for an unknown module; ValueError for one that does not run exactly once, or activations that cannot be
    mapped by position.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> score = StitchingScore("1")(model, model, torch.randn(9, 3), labels=[0, 1, 0] * 3)
    >>> score, score.details["identity"]
    (0.0, 0.0)
    """

    layer_a: str
    layer_b: str | None = None
    method: Literal["direct", "task", "soft_labels"] = "direct"
    epochs: int = 10
    lr: float = 0.01
    seeds: tuple[int, ...] = (0, 1, 2)

    id = "stitching_score"
    range = (-1.0, 1.0)
    larger_is_more_similar = True
    needs_labels = True
    source = "Bansal et al. (2021), arXiv 2106.07682; direct matching: Csiszarik et al. (2021), arXiv 2110.14633"

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = f"epochs={self.epochs}, seeds={self.seeds}, lr={self.lr}"
        fits = self.epochs >= 1 and bool(self.seeds) and 0 < self.lr < math.inf
        self._require(fits, f"epochs and seeds must be at least one, lr positive; got {chosen}")

    def __call__(
        self, model_a: nn.Module, model_b: nn.Module, inputs: Any, labels: Any = None, fit: Iterable | None = None
    ) -> Score:
        return self.group([model_a, model_b], inputs, labels, fit)

    def group(self, models: Sequence[nn.Module], inputs: Any, labels: Any = None, fit: Iterable | None = None) -> Score:
        """Score of the two models; see the class."""
        a, b = self._checked(models)
        with undisturbed(models, self.id):
            joint = _Joint(_Cut(a, self.layer_a), _Cut(b, self.layer_b or self.layer_a))
            testing = partial(self._batches, inputs, labels)
            return self._score(joint, testing if fit is None else partial(self._fit_batches, fit), testing)

    def _fit_batches(self, fit: Any) -> Iterator[Batch]:
        for batch in batches_of(fit, None, f"{self.id}, fit"):
            if batch.labels is None and self.method == "task":
                raise ValueError(f"{self.id}: training on the task needs batches (inputs, labels) in fit")
            yield batch

    def _score(self, joint: "_Joint", fitting: Batches, testing: Batches) -> Score:
        details: dict[str, Any] = {"fit_on_inputs": fitting is testing}
        if self.method == "direct":
            adapter, match = _match(joint, fitting)
            adapters = [adapter]
            details |= match
        else:
            adapters = [self._train(joint, fitting, seed) for seed in self.seeds]
        answers = []  # labels, and the classes of a, of b, and of every stitched model
        with torch.no_grad():
            for batch in testing():
                own = [class_scores(batch.run(cut.model), "logits").argmax(1) for cut in (joint.a, joint.b)]
                below, _ = joint.both(batch)
                above = [joint.above(batch, adapter(below)) for adapter in adapters]
                if joint.same_shape:
                    above.append(joint.above(batch, below))
                stitched = [class_scores(output, "logits of the stitched model") for output in above]
                classes = [*own, *(scores.argmax(1) for scores in stitched)]
                answers.append(torch.stack([truth(batch, stitched[0]), *classes], 1))
        answer = torch.cat(answers)
        right = (answer[:, 1:] == answer[:, :1]).double()
        count = len(right)
        accuracy = right.mean(0).tolist()
        change = right[:, 2] - right[:, 1]
        trained = [share - accuracy[1] for share in accuracy[2 : 2 + len(adapters)]]
        score = sum(trained) / len(trained)
        variance = change.square().sum().item() - change.sum().item() ** 2 / count  # of the sum
        details |= {
            "penalty": -score,
            "accuracy_a": accuracy[0],
            "accuracy_b": accuracy[1],
            "accuracy": accuracy[1] + score,
            "scores": trained,
            "identity": accuracy[-1] - accuracy[1] if joint.same_shape else None,
            "agreement": (answer[:, 3] == answer[:, 2]).double().mean().item(),
            "gained": int((change > 0).sum()),
            "lost": int((change < 0).sum()),
            "standard_error": math.sqrt(max(0.0, variance)) / count,
            "resized": joint.resized,
            "bypassed": (bypassed := joint.is_bypassed(next(testing()))),
        }
        reason = f"{self.id}: b's input also reaches its output around {joint.b.name}" if bypassed else ""
        return Score(score, count, reason=reason, details=details)

    def _train(self, joint: "_Joint", fitting: Batches, seed: int) -> "_Adapter":
        """A map from a random start, trained on the task or on b's probabilities."""
        adapter, optimizer = None, None
        for _ in range(self.epochs):
            for batch in fitting():
                with torch.no_grad():
                    below, wanted = joint.both(batch)
                    output = batch.run(joint.b.model)
                if adapter is None or optimizer is None:
                    inputs, outputs = below.shape[-1], wanted.shape[-1]
                    weight = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))
                    adapter = _Adapter.fitting(below, weight / math.sqrt(inputs), torch.zeros(outputs))
                    optimizer = torch.optim.Adam([part.requires_grad_() for part in adapter], lr=self.lr)
                checked = class_scores(output, "logits of b")
                target = truth(batch, checked) if self.method == "task" else checked.softmax(1)
                stitched = joint.above(batch, adapter(below))
                target = target.to(stitched.device, None if self.method == "task" else stitched.dtype)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(stitched, target).backward()
                optimizer.step()
        assert adapter is not None  # batches_of refuses none
        return adapter


class _Adapter(NamedTuple):
    """The linear map with bias, along the last dimension."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def fitting(cls, activation: Tensor, weight: Tensor, bias: Tensor) -> "_Adapter":
        """A map on the device of the activation, in its precision or single precision, whichever is higher."""
        dtype = torch.promote_types(activation.dtype, torch.float32)
        return cls(weight.to(activation.device, dtype), bias.to(activation.device, dtype))

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.to(self.weight) @ self.weight + self.bias


def _match(joint: "_Joint", batches: Batches) -> tuple[_Adapter, dict[str, Any]]:
    """The least-squares map, from a triangular factor of [1, R, R'] that is updated chunk by chunk in float64.

    Below its first row lies the factor of the centred activations, so the bias does not spoil the conditioning.
    """
    factor, rows, inputs, like = None, 0, 0, torch.empty(0)
    with torch.no_grad():
        for batch in batches():
            below, wanted = joint.both(batch)
            pair = torch.cat([activation.cpu().double().flatten(0, -2) for activation in (below, wanted)], 1)
            finite(pair, f"activations of {joint.a.name} and {joint.b.name}", "rows", lambda x: x.ndim == 2)
            pair = torch.cat([pair.new_ones(len(pair), 1), pair], 1)
            if factor is None:
                factor, inputs, like = pair.new_zeros(pair.shape[1], pair.shape[1]), below.shape[-1], below
            for chunk in pair.split(CHUNK * pair.shape[1]):
                factor = torch.linalg.qr(torch.cat([factor, chunk]), mode="r").R
            rows += len(pair)
    assert factor is not None  # batches_of refuses none
    mean = factor[0, 1:] / factor[0, 0]
    rounding = min(torch.finfo(like.dtype).eps, torch.finfo(torch.float32).eps)
    size = torch.linalg.vector_norm(factor[1:, 1:], dim=0)
    constant = size <= 10 * rounding * torch.linalg.vector_norm(factor[:, 1:], dim=0)
    centred = factor[1:, 1:].masked_fill(constant, 0)
    x, y = centred[:, :inputs], centred[:, inputs:]
    scale = size.masked_fill(constant, 1)[:inputs]
    cutoff = rounding * inputs  # of directions that rounding of the activations makes up
    solved = torch.linalg.lstsq(x / scale, y, rcond=cutoff, driver="gelsd")
    weight = solved.solution / scale[:, None]
    bias = mean[inputs:] - mean[:inputs] @ weight
    spread = torch.linalg.vector_norm(y).item()
    error = torch.linalg.vector_norm(x @ weight - y).item()
    details = {"relative_error": error / spread if spread else None, "rank": int(solved.rank), "rows": rows}
    return _Adapter.fitting(like, weight, bias), details


class _Cut:
    """A module of a model, and the activation that is its output, or the first of its outputs."""

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules or not name:
            raise KeyError(f"{type(model).__name__} has no module {name!r}; {did_you_mean(name, set(modules) - {''})}")
        self.model, self.name, self.module = model, name, modules[name]

    def swap(self, value: Tensor, source: int, destination: int) -> Tensor:
        """The value with its channels moved, where the module has maps with channels first, (N, C, H, W)."""
        last = isinstance(self.module, nn.Linear | nn.LayerNorm)  # their maps are (N, H, W, C)
        return value if last or value.ndim < 4 else value.movedim(source, destination)

    def seen(self, batch: Batch) -> Tensor:
        """The activation, copied since later modules may work in place."""
        seen: list[Tensor] = []
        with self.hooked(lambda value: seen.append(value.detach().clone())):
            batch.run(self.model)
        return seen[0]

    @contextmanager
    def hooked(self, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Within the block, `hook` sees the activation and may return another; ValueError unless there is one run."""
        calls = 0

        def counting(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ValueError(f"{self.name}: expected a floating-point activation, got {type(value).__name__}")
            new = hook(value)
            if new is None or isinstance(output, Tensor):
                return new
            return [new, *output[1:]] if isinstance(output, list) else (new, *output[1:])

        with self.module.register_forward_hook(counting):
            yield
        if calls != 1:
            raise ValueError(f"{self.name} ran {calls} times in one pass; stitch at a module that runs exactly once")


@dataclass
class _Joint:
    """The cuts where the two models are joined. Activations have their channels last here."""

    a: _Cut
    b: _Cut
    same_shape: bool = field(default=False, init=False)  # of one sample's activations
    resized: list[list[int]] | None = field(default=None, init=False)

    def both(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Activations of a, resized to b's positions and on b's device, and of b; sets `same_shape` and `resized`."""
        below, above = self.a.seen(batch), self.b.seen(batch)
        shapes = f"{self.a.name} gives {tuple(below.shape)}, {self.b.name} {tuple(above.shape)}"
        if below.ndim != above.ndim or below.ndim not in (2, 3, 4):
            raise ValueError(
                f"stitching needs two activations (N, D), tokens (N, T, D) or maps (N, C, H, W) of one kind; {shapes}"
            )
        below, above = self.a.swap(below, 1, -1).to(device_of(self.b.model)), self.b.swap(above, 1, -1)
        sizes = [list(activation.shape[1:-1]) for activation in (below, above)]
        self.same_shape = below.shape[1:] == above.shape[1:]
        if sizes[0] != sizes[1]:
            if below.ndim != 4:
                raise ValueError(f"stitching maps tokens one by one, so their number must agree; {shapes}")
            self.resized = sizes
            maps = nn.functional.interpolate(below.movedim(-1, 1), sizes[1], mode="bilinear", antialias=True)
            below = maps.movedim(1, -1)
        return below, above

    def above(self, batch: Batch, activation: Tensor, inputs: Tensor | None = None) -> Tensor:
        """b's output with this activation instead of its own."""
        with self.b.hooked(lambda old: self.b.swap(activation, -1, 1).to(old.dtype)):
            return batch.run(self.b.model, inputs)

    def is_bypassed(self, batch: Batch) -> bool | None:
        """Whether b's output depends on its input even with the layer replaced; None for inputs without gradient."""
        try:
            inputs = batch.inputs
        except ValueError:
            return None
        with torch.no_grad():
            own = self.b.swap(self.b.seen(batch), 1, -1)
        leaf = inputs.detach().to(device_of(self.b.model), copy=True).requires_grad_()
        return self.above(batch, own, leaf).requires_grad
