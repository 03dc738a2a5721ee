"""The protocol of measures that run the models themselves: batches, their devices, and models left as they were."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from simprune.functional._base import FunctionalMeasure, Score, finite, integers

LABEL_KEYS = ("labels", "label")


@dataclass(frozen=True)
class Batch:
    """Arguments of a model for some samples, and their labels."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Tensor | None

    @classmethod
    def of(cls, batch: Any) -> "Batch":
        """From a tensor, (inputs, labels) or a dict; inputs may be a tensor, a tuple of tensors or a dict."""
        labels = None
        if isinstance(batch, tuple | list) and len(batch) == 2:
            batch, labels = batch
            labels = None if labels is None else torch.as_tensor(labels)
        elif isinstance(batch, Mapping):
            labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        if isinstance(batch, Mapping):
            return cls((), {key: value for key, value in batch.items() if key not in LABEL_KEYS}, labels)
        args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if not args or not all(isinstance(each, Tensor) for each in args):
            raise ValueError(f"a batch must be a tensor, (inputs, labels) or a dict; got {type(batch).__name__}")
        return cls(args, {}, labels)

    @property
    def inputs(self) -> Tensor:
        """The input that gradients are for: the only floating-point tensor of the batch."""
        found = [each for _, each in self._floating()]
        if len(found) != 1:
            raise ValueError(
                "gradients need batches with one floating-point input, such as images or embeddings; "
                f"got {len(found)} of them"
            )
        return found[0]

    def __len__(self) -> int:
        return len(next(each for each in (*self.args, *self.kwargs.values()) if isinstance(each, Tensor)))

    def _floating(self) -> list[tuple[int | str, Tensor]]:
        every = (*enumerate(self.args), *self.kwargs.items())
        return [(key, each) for key, each in every if isinstance(each, Tensor) and each.is_floating_point()]

    def run(self, model: nn.Module, inputs: Tensor | None = None) -> Tensor:
        """Output of the model as one tensor, on the model's device; with these `inputs`, if given, for the batch's."""
        device = device_of(model)
        replaced = None if inputs is None else self._floating()[0][0]

        def argument(key: int | str, value: Any) -> Any:
            if inputs is not None and key == replaced:
                return inputs.to(device, copy=True)
            # a copy, since modules may write into it
            return value.to(device, copy=True) if isinstance(value, Tensor) else value

        args = [argument(key, value) for key, value in enumerate(self.args)]
        output = model(*args, **{key: argument(key, value) for key, value in self.kwargs.items()})
        output = getattr(output, "logits", output)
        if isinstance(output, Mapping):
            output = next(iter(output.values()))
        if isinstance(output, tuple | list):
            output = output[0]
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(model).__name__} returned {type(output).__name__}; return logits, or a tuple of them"
            )
        return output


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer (CPU when there is none)."""
    tensor = next(iter([*model.parameters(), *model.buffers()][:1]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def batches_of(inputs: Any, labels: Any, what: str) -> Iterator[Batch]:
    """The batches with their labels: from `labels` (N,) in the order of the batches, or from the batches themselves.

    ValueError for what can be walked only once, no sample, or labels that are given twice or not one per sample.
    """
    if isinstance(inputs, Tensor | Mapping):
        inputs = [inputs]
    if isinstance(inputs, Iterator) or not isinstance(inputs, Iterable):
        raise ValueError(
            f"{what}: inputs must be a tensor, or batches that can be walked more than once (a list, a DataLoader); "
            f"got {type(inputs).__name__}"
        )
    labels = None if labels is None else torch.as_tensor(labels)
    done = 0
    for each in inputs:
        batch = Batch.of(each)
        if len(batch) == 0:
            raise ValueError(f"{what}: a batch holds no sample")
        if labels is not None:
            if batch.labels is not None:
                raise ValueError(f"{what}: labels are in the batches and in labels=; pass them once")
            batch = Batch(batch.args, batch.kwargs, labels[done : done + len(batch)])
        done += len(batch)
        yield batch
    if not done:
        raise ValueError(f"{what}: no batch of inputs was given")
    if labels is not None and len(labels) != done:
        raise ValueError(f"{what}: labels must be one per input, ({done},); got {tuple(labels.shape)}")


def class_scores(output: Tensor, what: str) -> Tensor:
    """An output checked to be finite class scores (N, C), C >= 2, in float64 on the CPU."""
    return finite(
        output, what, "(N, C) with N >= 1 samples and C >= 2 classes", lambda x: x.ndim == 2 and x.shape[1] > 1
    )


def truth(batch: Batch, scores: Tensor) -> Tensor:
    """Labels of a batch, checked against its class scores; on the CPU."""
    return integers(batch.labels, scores.shape[:1], scores.shape[1])


class ModelMeasure(FunctionalMeasure):
    """A measure that runs two models on inputs: `f(model_a, model_b, inputs, labels=...)`.

    `inputs` is one tensor, or batches (a tensor, (inputs, labels) or a dict each) that can be walked more than once;
    labels (N,) come with the batches or in their order. Every batch is run on each model's own device, in evaluation
    mode. Modes, `requires_grad`, `.grad` and hooks are afterwards as they were, also after an error.
    """

    form = "models"
    kind = "statistic"
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

    def _compare(self, models: Sequence[nn.Module], batches: Any) -> Score:
        """Score of models that are in evaluation mode and frozen; `batches()` walks the batches."""
        raise NotImplementedError

    def _checked(self, models: Sequence[nn.Module]) -> Sequence[nn.Module]:
        fewest, most = self.models
        if len(models) < fewest or (most is not None and len(models) > most):
            wanted = f"at least {fewest}" if most is None else f"{fewest}"
            raise ValueError(f"{self.id} takes {wanted} models; got {len(models)}")
        for each in models:
            if not isinstance(each, nn.Module):
                raise ValueError(f"{self.id} takes models (torch.nn.Module) and inputs; got {type(each).__name__}")
        return models

    def _batches(self, inputs: Any, labels: Any) -> Iterator[Batch]:
        for batch in batches_of(inputs, labels, self.id):
            if self.needs_labels and batch.labels is None:
                raise ValueError(f"{self.id} needs labels; pass labels=(N,), or batches of (inputs, labels)")
            yield batch

    def _validated(self, outputs: Sequence[Any], labels: Any) -> NoReturn:
        raise ValueError(
            f"{self.id} runs the models: call it on (model_a, model_b, inputs, labels=...), not on outputs"
        )

    def _rows(self, outputs: tuple[Any, ...], labels: Tensor | None) -> Tensor:
        self._validated(outputs, labels)


@contextmanager
def undisturbed(models: Sequence[nn.Module], what: str) -> Iterator[None]:
    """Evaluation mode and frozen parameters for a while, gradients enabled for what is not a parameter.

    Fused attention is off: it would run past hooks. ValueError for BatchNorm without running statistics, which mixes
    the inputs of a batch.
    """
    for model in models:
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                raise ValueError(f"{what}: {name} is BatchNorm without running statistics, which mixes inputs")
    modes = [(module, module.training) for model in models for module in model.modules()]
    frozen = [(each, each.requires_grad) for model in models for each in model.parameters()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        stack.callback(lambda: [setattr(module, "training", training) for module, training in modes])
        stack.callback(lambda: [each.requires_grad_(needed) for each, needed in frozen])
        torch.backends.mha.set_fastpath_enabled(False)
        for model in models:
            model.eval()
            model.requires_grad_(False)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield
