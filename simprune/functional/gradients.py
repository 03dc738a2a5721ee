"""Do two models look at the same features of an input, and do they fall for the same attacks?"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import scipy
import torch
from torch import Tensor, nn

from simprune.core.batches import device_of
from simprune.functional._base import Score, class_scores, finite
from simprune.functional._models import Batch, Batches, ModelMeasure, truth, undisturbed

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class SaliencyCosineSimilarity(ModelMeasure):
    """Mean cosine of a's and b's absolute gradients of every output by the input, in [0, 1]; 1 means the same features.

    cos(|dO_ic/dx_i|, |dO'_ic/dx_i|) over inputs i and outputs c; several models by `.group([...], inputs)`, the mean
    over pairs. Outputs (N, C); labels are not used; C backward passes per batch and model. Pairs (i, c) where a
    gradient is zero are left out; an input is skipped where all are. `details`: "pairs", "zero_gradients" (how many
    were used and left out), "standard_error" over inputs. ValueError where an output does not depend on the input.

    >>> a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    >>> _ = a.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> _ = b.weight.data.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    >>> SaliencyCosineSimilarity()(a, b, torch.ones(3, 2))
    0.5
    """

    id = "saliency_cosine_similarity"
    larger_is_more_similar = True
    symmetric = True
    models = (2, None)
    skips = "every gradient is zero"
    source = "Klabunde et al., arXiv 2305.06329, section 5.4 (saliency maps, Jones et al. 2022)"

    def _compare(self, models: Sequence[nn.Module], batches: Batches) -> Score:
        rows = torch.cat([self._cosines(models, batch) for batch in batches()])
        used = ~rows.isnan()
        inputs = rows[used.any(1)]
        count, skipped = len(inputs), len(rows) - len(inputs)
        details: dict[str, Any] = {"pairs": int(used.sum()), "zero_gradients": int((~used).sum())}
        if not count:
            return Score(math.nan, 0, skipped, f"{self.id}: {self.skips}", details)
        if count > 1:
            details["standard_error"] = inputs.nanmean(1).std().item() / math.sqrt(count)
        return Score(rows.nanmean().item(), count, skipped, details=details)

    def _cosines(self, models: Sequence[nn.Module], batch: Batch) -> Tensor:
        """(N, C * pairs of models), NaN where a gradient is zero."""
        graphs = []
        for number, model in enumerate(models, start=1):
            leaf, output = _differentiable(model, batch, batch.inputs)
            finite(output, f"outputs of model {number}", "(N, C) with N >= 1 samples", lambda x: x.ndim == 2)
            graphs.append((leaf, output))
        if len({output.shape for _, output in graphs}) > 1:
            raise ValueError(f"{self.id} needs outputs of one shape; got {[tuple(out.shape) for _, out in graphs]}")
        cosines = []
        for c in range(graphs[0][1].shape[1]):
            maps = [_unit(torch.autograd.grad(out[:, c].sum(), x, retain_graph=True)[0]).abs() for x, out in graphs]
            cosines += [(a * b).sum(1) for a, b in itertools.combinations(maps, 2)]
        return torch.stack(cosines, 1).clamp_max(1)


def _unit(rows: Tensor) -> Tensor:
    """Rows as vectors of length 1 in float64 on the CPU; NaN for a zero row. ValueError for others not finite."""
    rows = finite(rows, "gradients and outputs", "one row per sample", lambda x: x.ndim > 1).flatten(1)
    rows = rows / rows.abs().amax(1, keepdim=True)  # so that squares neither overflow nor vanish; zero: NaN
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _differentiable(model: nn.Module, batch: Batch, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """These inputs on the model's device as a leaf, and the output; ValueError where no gradient leads back."""
    leaf = inputs.detach().to(device_of(model), copy=True).requires_grad_()
    output = batch.run(model, leaf)
    if not output.requires_grad:
        raise ValueError(f"the output of {type(model).__name__} does not depend on its inputs by differentiable steps")
    return leaf, output


@dataclass(frozen=True)
class _Attack:
    """Projected gradient ascent on the cross-entropy, with the options of `pgd`."""

    norm: Norm = "linf"
    radius: float = 8 / 255
    steps: int = 10
    step_size: float | None = None

    def _step(self) -> float:
        return 2.5 * self.radius / self.steps if self.step_size is None else self.step_size

    def attack(self, model: nn.Module, batch: Batch, labels: Tensor, start: Tensor | None) -> Tensor:
        """The batch's inputs after the attack, from the perturbation `start`."""
        inputs = batch.inputs.detach().to(device_of(model))
        change = torch.zeros_like(inputs) if start is None else start.to(inputs)
        step = self._step()
        for _ in range(self.steps):
            leaf, output = _differentiable(model, batch, inputs + change)
            # The gradient of the cross-entropy by the logits, divided by 1 - p_label: every input keeps its direction,
            # and it does not vanish where the model is certain.
            own = torch.nn.functional.one_hot(labels.cpu(), output.shape[1]).bool()
            direction = output.detach().cpu().double().masked_fill(own, -math.inf).softmax(1) - own.double()
            gradient = torch.autograd.grad(output, leaf, direction.to(output))[0]
            if self.norm == "linf":
                change = (change + step * gradient.sign()).clamp(-self.radius, self.radius)
            else:
                change = change + step * torch.nan_to_num(_unit(gradient).to(change).view_as(change), nan=0.0)
                length = torch.linalg.vector_norm(change.flatten(1), dim=1).view(-1, *[1] * (change.ndim - 1))
                change = change * (self.radius / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
        return inputs + change


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    norm: Norm = "linf",
    radius: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Inputs within `radius` of `inputs` that raise the cross-entropy, by projected gradient ascent.

    Inputs are not clipped to a range. FGSM is `steps=1, step_size=radius`. The model runs in evaluation mode and is
    afterwards as it was. Source: Madry et al., arXiv 1706.06083.

    Args:
        model: returns class scores (N, C).
        inputs: (N, ...), floating-point.
        labels: (N,), class indices.
        norm: of the perturbation of one input.
        radius: largest norm of a perturbation, in the units of the inputs.
        steps: gradient steps.
        step_size: norm of one step in the units of the inputs; None: 2.5 radius / steps.
        start: first perturbation, of the shape of `inputs`; None: zero.

    Returns:
        The perturbed inputs, (N, ...), on the model's device.

    Raises:
        ValueError: if the output does not depend on the inputs by differentiable steps, or gradients are not finite.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> pgd(model, torch.zeros(1, 2), torch.tensor([0]), radius=0.5, steps=1, step_size=0.5)
    tensor([[-0.5000,  0.0000]])
    """
    with undisturbed([model], "pgd"):
        return _Attack(norm, radius, steps, step_size).attack(model, Batch({0: inputs}, labels), labels, start)


@dataclass(frozen=True)
class _Attacking(_Attack, ModelMeasure):
    """A measure whose hyperparameters are those of the attack; they are in `details["attack"]` too."""

    random_start: bool = True
    seed: int = 0

    needs_labels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("radius", "step_size"):
            value = getattr(self, name)
            self._require(value is None or 0 < value < math.inf, f"{name} must be positive and finite; got {value!r}")
        self._require(self.steps >= 1, f"at least one step is needed; got steps={self.steps}")

    def _settings(self) -> dict[str, Any]:
        settings = {option.name: getattr(self, option.name) for option in dataclasses.fields(_Attacking)}
        return settings | {"step_size": self._step()}

    def _starts(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Uniform perturbations in the ball, drawn sample by sample so that batches do not matter."""
        if not self.random_start:
            return None
        return torch.stack([self._start(x.shape, generator) for x in batch.inputs]).to(batch.inputs.dtype)

    def _start(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if self.norm == "linf":
            return self.radius * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
        direction = torch.randn(shape, generator=generator, dtype=torch.float64)
        length = self.radius * torch.rand((), generator=generator, dtype=torch.float64) ** (1 / max(1, shape.numel()))
        return length * direction / torch.linalg.vector_norm(direction)


@torch.no_grad()
def _scores(model: nn.Module, batch: Batch, what: str, inputs: Tensor | None = None) -> Tensor:
    return class_scores(batch.run(model, inputs), what)


def _clean(models: Sequence[nn.Module], batch: Batch) -> list[Tensor]:
    """Every model's class scores for the inputs as they are."""
    return [_scores(model, batch, f"logits of model {i}") for i, model in enumerate(models, start=1)]


@dataclass(frozen=True)
class AdversarialTransferability(_Attacking):
    """Log of the percentage of attacks on one model that fool the other too; larger is more.

    From log epsilon to log 100:
    log max(epsilon, 100 (n_ab + n_ba) / 2n): of the n inputs that both models get right, n_ab are wrong for b after an
    attack on a, n_ba for a after one on b. Both attacks start at the same point. Inputs that a model gets wrong are
    skipped; undefined if none is left. `details`: "rate" in [0, 1], "a_to_b" and "b_to_a" (rates) with their 95 %
    Clopper-Pearson "intervals", "a_to_a" and "b_to_b" (does the attack work at all?), "attack".
    A model against itself reaches log 100 only where every attack works.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> f = AdversarialTransferability(radius=1.0)
    >>> round(f(model, model, torch.tensor([[1.0, 0.0], [0.0, 9.0]]), labels=[0, 1]).details["rate"], 4)
    0.5
    """

    epsilon: float = 1e-3

    id = "adversarial_transferability"
    range = (math.log(1e-3), math.log(100))
    larger_is_more_similar = True
    symmetric = True
    source = "Klabunde et al., arXiv 2305.06329, section 5.4 (Hwang et al. 2023); attack: arXiv 1706.06083"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.epsilon <= 1, f"epsilon must lie in (0, 1]; got {self.epsilon!r}")
        self._declare(range=(math.log(self.epsilon), math.log(100)))

    def _compare(self, models: Sequence[nn.Module], batches: Batches) -> Score:
        generator = torch.Generator().manual_seed(self.seed)
        fooled = torch.zeros(2, 2, dtype=torch.long)  # attacked model, judging model
        count = skipped = 0
        for batch in batches():
            clean = _clean(models, batch)
            if clean[0].shape != clean[1].shape:
                raise ValueError(
                    f"{self.id} needs outputs of one shape; got {[tuple(scores.shape) for scores in clean]}"
                )
            labels = truth(batch, clean[0])
            right = (clean[0].argmax(1) == labels) & (clean[1].argmax(1) == labels)
            start = self._starts(batch, generator)
            count, skipped = count + int(right.sum()), skipped + int((~right).sum())
            if not right.any():
                continue
            for i, attacked in enumerate(models):
                adversarial = self.attack(attacked, batch, labels, start)
                for j, judge in enumerate(models):
                    scores = _scores(judge, batch, f"logits of model {j + 1} after the attack", adversarial)
                    fooled[i, j] += ((scores.argmax(1) != labels) & right).sum()
        details: dict[str, Any] = {"attack": self._settings()}
        if not count:
            return Score(math.nan, 0, skipped, f"{self.id}: no input is right for both models", details)
        hits = dict(zip(("a_to_a", "a_to_b", "b_to_a", "b_to_b"), fooled.flatten().tolist(), strict=True))
        rate = (hits["a_to_b"] + hits["b_to_a"]) / (2 * count)
        details |= {"rate": rate} | {name: hit / count for name, hit in hits.items()}
        details["intervals"] = {name: _clopper_pearson(hits[name], count) for name in ("a_to_b", "b_to_a")}
        return Score(math.log(max(self.epsilon, 100 * rate)), count, skipped, details=details)


def _clopper_pearson(hits: int, count: int) -> list[float]:
    """The two-sided 95 % interval of the share of hits."""
    tail = (1 - 0.95) / 2
    lower = scipy.stats.beta.ppf(tail, hits, count - hits + 1) if hits else 0.0
    upper = scipy.stats.beta.ppf(1 - tail, hits + 1, count - hits) if hits < count else 1.0
    return [float(lower), float(upper)]


@dataclass(frozen=True)
class ModelDiff(_Attacking):
    """Cosine of how far an attack on a moves each model's outputs, in [-1, 1]; 1 means the same pattern over inputs.

    cos(v, v') with v_i = cos(O_i, O~_i) on a and v'_i the same on b: outputs (logits) for the input and for the
    adversarial input that attacks a. Values are mostly positive, so the score saturates near 1; `details`: "distance"
    (1 - score), "kept_a" and "kept_b" (means of v and v'), "attack". Inputs with a zero output are skipped.
    b may be a black box.

    >>> model = nn.Linear(3, 2)
    >>> score = ModelDiff(radius=0.1)(model, model, torch.randn(5, 3), labels=[0, 1, 0, 1, 0])
    >>> round(score, 6), sorted(score.details)
    (1.0, ['attack', 'distance', 'kept_a', 'kept_b'])
    """

    id = "modeldiff"
    range = (-1.0, 1.0)
    larger_is_more_similar = True
    source = "Li et al. (2021), ModelDiff, arXiv 2106.08890; attack: arXiv 1706.06083"

    def _compare(self, models: Sequence[nn.Module], batches: Batches) -> Score:
        generator = torch.Generator().manual_seed(self.seed)
        parts = []
        for batch in batches():
            clean = _clean(models, batch)
            labels = truth(batch, clean[0])
            adversarial = self.attack(models[0], batch, labels, self._starts(batch, generator))
            moved = [_scores(model, batch, "logits after the attack", adversarial) for model in models]
            cosines = [(_unit(old) * _unit(new)).sum(1) for old, new in zip(clean, moved, strict=True)]
            parts.append(torch.stack(cosines, 1).clamp(-1, 1))
        rows = torch.cat(parts)
        used = rows[~rows.isnan().any(1)]
        count, skipped = len(used), len(rows) - len(used)
        details: dict[str, Any] = {"attack": self._settings()}
        if not count:
            return Score(math.nan, 0, skipped, f"{self.id}: every input has a zero output", details)
        details["kept_a"], details["kept_b"] = used.mean(0).tolist()
        a, b = _unit(used.T)
        if a.isnan().any() or b.isnan().any():
            return Score(math.nan, count, skipped, f"{self.id}: outputs are orthogonal to those under attack", details)
        details["distance"] = (a - b).square().sum().item() / 2
        return Score((a * b).sum().clamp(-1, 1).item(), count, skipped, details=details)
