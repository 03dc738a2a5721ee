"""The protocol of measures that run the models themselves, batch by batch, and leave them as they were."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, copied, inputs_of
from simprune.core.labels import labels_of
from simprune.functional._base import FunctionalMeasure, Score, integers
from simprune.trace.context import eval_mode, requiring


@dataclass(frozen=True)
class Batch:
    """Arguments of a model for some samples, by position or by name, and the samples' labels."""

    arguments: dict[int | str, Any]
    labels: Tensor | None

    @classmethod
    def of(cls, batch: Any) -> "Batch":
        """From a tensor, (inputs, labels) or a dict; ValueError for anything else, or without a tensor."""
        args, kwargs = inputs_of(batch)
        arguments = {**dict(enumerate(args)), **kwargs}
        if not any(isinstance(value, Tensor) for value in arguments.values()):
            raise ValueError(f"a batch must be a tensor, (inputs, labels) or a dict of tensors; got {batch!r:.60}")
        return cls(arguments, labels_of(batch))

    @property
    def inputs(self) -> Tensor:
        """The input that gradients are for: the only floating-point tensor of the batch."""
        return self.arguments[self._differentiable()]

    def __len__(self) -> int:
        return len(next(value for value in self.arguments.values() if isinstance(value, Tensor)))

    def _differentiable(self) -> int | str:
        arguments = self.arguments.items()
        floating = [key for key, x in arguments if isinstance(x, Tensor) and x.is_floating_point()]
        if len(floating) != 1:
            raise ValueError(
                "gradients need batches with one floating-point input, such as images or embeddings; "
                f"got {len(floating)} of them"
            )
        return floating[0]

    def run(self, model: nn.Module, inputs: Tensor | None = None) -> Tensor:
        """Output of the model as one tensor, on the model's device; with `inputs` instead of the batch's own."""
        arguments = copied(self.arguments)  # modules may write into their arguments
        if inputs is not None:
            arguments[self._differentiable()] = inputs.clone()
        return call(model, (tuple(arguments.values()) if 0 in arguments else arguments, None))


Batches = Callable[[], Iterator[Batch]]  # a walk over the batches, from the start every time


def batches_of(inputs: Any, labels: Any, what: str) -> Iterator[Batch]:
    """The batches with their labels: from `labels` (N,) in the order of the batches, or from the batches themselves.

    ValueError for what can be walked only once, no sample, or labels that come from both or are not one per sample.
    """
    labels = None if labels is None else torch.as_tensor(labels)
    done = 0
    for value in checked(inputs, f"{what}: inputs"):
        batch = Batch.of(value)
        if len(batch) == 0:
            raise ValueError(f"{what}: a batch holds no sample")
        if labels is not None:
            if batch.labels is not None:
                raise ValueError(f"{what}: labels are in the batches and in labels=; pass them once")
            batch = Batch(batch.arguments, labels[done : done + len(batch)])
        done += len(batch)
        yield batch
    if not done:
        raise ValueError(f"{what}: no batch of inputs was given")
    if labels is not None and len(labels) != done:
        raise ValueError(f"{what}: labels must be one per input, ({done},); got {tuple(labels.shape)}")


def truth(batch: Batch, scores: Tensor) -> Tensor:
    """Labels of a batch, checked against its class scores; on the CPU."""
    return integers(batch.labels, scores.shape[:1], scores.shape[1])


class ModelMeasure(FunctionalMeasure):
    """A measure that runs two models on inputs: `f(model_a, model_b, inputs, labels=...)`.

    `inputs` is one tensor, or batches (each a tensor, (inputs, labels) or a dict) that can be walked more than once;
    labels (N,) come with the batches or in their order. Every batch is run on each model's own device, in evaluation
    mode. Modes, `requires_grad`, `.grad`, hooks and attributes of modules are afterwards as they were, also after an
    error.
    """

    form = "models"
    gate = False  # it has one score, and no rows from which a verdict could compute bounds
    streams = False

    def __call__(self, model_a: nn.Module, model_b: nn.Module, inputs: Any, labels: Any = None) -> Score:
        """Score of a, the original, and b, the pruned model, on inputs (N, ...), with labels (N,) where needed.

        ValueError for inputs, labels or outputs that do not fit or are not finite.
        """
        return self.group([model_a, model_b], inputs, labels)

    def group(self, models: Sequence[nn.Module], inputs: Any, labels: Any = None) -> Score:
        """Score of several models on the same inputs."""
        models = self._checked(models)
        with undisturbed(models, self.id):
            return self._compare(models, lambda: self._batches(inputs, labels))

    def _compare(self, models: Sequence[nn.Module], batches: Batches) -> Score:
        """Score of models that are in evaluation mode and frozen; `batches()` walks the batches."""
        raise NotImplementedError

    def _checked(self, models: Sequence[nn.Module]) -> Sequence[nn.Module]:
        """The models; ValueError for a number that the measure does not take, and for what is no module."""
        self._check_number(len(models))
        for model in models:
            if not isinstance(model, nn.Module):
                raise ValueError(f"{self.id} takes models (torch.nn.Module) and inputs; got {type(model).__name__}")
        return models

    def _batches(self, inputs: Any, labels: Any) -> Iterator[Batch]:
        for batch in batches_of(inputs, labels, self.id):
            if self.needs_labels and batch.labels is None:
                raise ValueError(f"{self.id} needs labels; pass labels=(N,), or batches of (inputs, labels)")
            yield batch

    def _validated(self, outputs: Sequence[Any], labels: Any) -> NoReturn:
        arguments = "(model_a, model_b, inputs, labels=...)"
        raise ValueError(f"{self.id} runs the models: call it on {arguments}, not on outputs")

    def _rows(self, outputs: tuple[Any, ...], labels: Tensor | None) -> Tensor:
        self._validated(outputs, labels)


class GatheredMeasure(ModelMeasure):
    """A measure of the original and the pruned model by the rows of `gather`, from which a verdict has its bounds."""

    gate = True

    def group(self, models: Sequence[nn.Module], inputs: Any = None, labels: Any = None) -> Score:
        """Score of the original and the pruned model on test batches; labels are not used."""
        model, small = self._checked(models)
        return self.reduce(self.gather(model, small, inputs).rows)


@contextmanager
def undisturbed(models: Sequence[nn.Module], what: str) -> Iterator[None]:
    """Within the block, evaluation mode and frozen parameters, with gradients enabled for what is not a parameter.

    Afterwards models are as they were, also without tensors that modules store during a pass. ValueError for BatchNorm
    without running statistics, which mixes the inputs of a batch.
    """
    for model in models:
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                raise ValueError(f"{what}: {name} is BatchNorm without running statistics, which mixes inputs")
    with eval_mode(*models), ExitStack() as frozen, torch.inference_mode(False), torch.enable_grad():
        for model in models:
            frozen.enter_context(requiring(model))
        yield
