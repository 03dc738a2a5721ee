"""The steps of a training: which weights decay, the learning rate of every step, averaged weights, BatchNorm."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simprune.core.batches import inputs_of
from simprune.core.example import rows_of
from simprune.settings import Finetune

RATES = {"sgd": 0.01, "adamw": 3e-4}  # learning rates where none is chosen
SMALL = 8  # inputs of a batch below which the statistics of a batch are too noisy to learn from
WARM = 10  # steps after which averaged weights are mostly those of the training, not those before it


def optimizer_of(model: nn.Module, how: Finetune) -> torch.optim.Optimizer:
    """SGD or AdamW on the parameters that require gradients; biases, and weights of norms, do not decay.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer_of(model, Finetune()).param_groups]
    [(1, 0.0005), (3, 0.0)]
    """
    norms = {id(own) for module in model.modules() if _is_norm(module) for own in module.parameters(recurse=False)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [parameter for parameter in trained if parameter.ndim > 1 and id(parameter) not in norms]
    chosen = {id(parameter) for parameter in decaying}
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": how.weight_decay},
        {"params": [parameter for parameter in trained if id(parameter) not in chosen], "weight_decay": 0.0},
    ]
    rate = RATES[how.optimizer] if how.lr is None else how.lr
    if how.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=how.momentum, nesterov=how.momentum > 0)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__  # also those that models define themselves, such as LlamaRMSNorm


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: it rises in a line during the warm-up, then falls as a cosine to zero.

    Args:
        step: its number, from 0.
        steps: of the whole training.
        warmup: share of the steps.

    >>> [round(share_of_rate(step, 4, 0.5), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warm = warmup * steps
    if step + 1 <= warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min((step - math.floor(warm)) / max(steps - math.floor(warm), 1), 1)))


class Average:
    """The exponential moving average of weights and statistics over the steps of a training.

    The average follows faster in the first steps, so that a short training does not end near where it began.

    Args:
        model: whose tensors are averaged; those of whole numbers are taken as they are.
        decay: how much of the average stays at every step, in the long run.

    >>> model = nn.Linear(2, 1)
    >>> average = Average(model, 0.9)
    >>> average.update(model, 0)
    >>> torch.equal(average.values["weight"], model.weight)
    True
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.values = decay, tensors_of(model)

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step, which are numbered from 0."""
        decay = min(self.decay, (1 + step) / (WARM + step))
        for name, value in _tensors(model).items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def used_in(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        own = tensors_of(model)
        restore(model, self.values)
        try:
            yield
        finally:
            restore(model, own)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and persistent buffers; tied ones are copied once for every name."""
    return {name: value.detach().clone() for name, value in _tensors(model).items()}


def restore(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give parameters and buffers the values of such a copy."""
    with torch.no_grad():
        for name, value in _tensors(model).items():
            value.copy_(tensors[name])


class BatchNorms:
    """The BatchNorms of a model in training: they normalise by a batch, or by their statistics, which stay.

    Args:
        model: that is trained.
        how: the settings.
        processes: by which every batch is shared out.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    >>> norms = BatchNorms(model, Finetune())
    >>> norms.begin()
    >>> norms.meet(torch.zeros(3, 4))  # so few inputs have no statistics of their own
    >>> model.training, model[1].training
    (True, False)
    """

    def __init__(self, model: nn.Module, how: Finetune, processes: int = 1) -> None:
        self.model, self.how, self.few = model, how.batchnorm, SMALL * processes
        self.norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def begin(self) -> None:
        """Training mode of the whole model."""
        self.model.train()

    def meet(self, batch: Any) -> None:
        """Their mode for a batch: that of the settings; where these leave it open, by how many inputs it has."""
        trains = rows_of(inputs_of(batch)) >= self.few if self.how == "auto" else self.how == "train"
        for norm in self.norms:
            norm.train(trains)
