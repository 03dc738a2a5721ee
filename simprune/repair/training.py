"""Fine-tuning: a training loop with distillation from the original."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.batches import call, checked, device_of, labels_of
from simprune.core.progress import progress
from simprune.trace.context import eval_mode


def finetune(
    small: nn.Module,
    train: Iterable,
    teacher: nn.Module | None = None,
    epochs: int = 3,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    distill: float = 0.5,
    temperature: float = 2.0,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train `small` in place with SGD and a cosine schedule; returns the mean loss of every epoch.

    The loss is (1 - distill) x cross-entropy with the labels + distill x KL from the teacher's softened answers.
    Without labels the teacher alone is followed; without a teacher the labels alone. The last epoch counts: nothing is
    selected on test data. The training mode comes back as it was. Raises ValueError when there is nothing to learn
    from.
    """
    if epochs < 0 or lr <= 0 or not 0 <= distill <= 1 or temperature <= 0:
        raise ValueError(
            "finetune: expected epochs >= 0, lr > 0, distill in [0, 1], temperature > 0; got "
            f"epochs={epochs}, lr={lr}, distill={distill}, temperature={temperature}"
        )
    train = checked(train, "train")
    steps = max(sum(1 for _ in train) * epochs, 1)
    optimizer = torch.optim.SGD(small.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    )
    modes = [(module, module.training) for module in small.modules()]
    history = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            for epoch in progress(range(1, epochs + 1), "fine-tune"):
                small.train()
                total = count = 0.0
                for batch in train:
                    loss = _loss(small, batch, teacher, distill, temperature)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total, count = total + loss.item(), count + 1
                if not count:
                    raise ValueError("train has no batches; give at least one")
                history.append({"epoch": epoch, "loss": total / count})
        finally:
            for module, training in modes:
                module.training = training
    return history


def _loss(small: nn.Module, batch: object, teacher: nn.Module | None, distill: float, temperature: float) -> Tensor:
    labels = labels_of(batch)
    if labels is None and teacher is None:
        raise ValueError("finetune: batches have no labels and there is no teacher; give one of them")
    logits = call(small, batch)
    loss = logits.new_zeros(())
    if labels is not None and (teacher is None or distill < 1):
        labels = labels.to(device_of(small))
        loss = loss + (1 - distill if teacher is not None else 1) * F.cross_entropy(logits, labels)
    if teacher is not None and (labels is None or distill > 0):
        with eval_mode(teacher), torch.no_grad():
            target = F.log_softmax(call(teacher, batch).to(logits.device) / temperature, -1)
        answer = F.log_softmax(logits / temperature, -1)
        divergence = F.kl_div(answer, target, reduction="batchmean", log_target=True) * temperature**2
        loss = loss + (distill if labels is not None else 1) * divergence
    return loss
