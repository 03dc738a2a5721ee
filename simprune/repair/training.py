"""Fine-tuning: a training loop with distillation from the original."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.batches import call_all, checked, device_of, labels_of, main_name, output_mask_of, token_ids_of
from simprune.core.options import takes_options
from simprune.core.progress import progress
from simprune.repair.selection import Held
from simprune.settings import Finetune
from simprune.trace.context import eval_mode

IGNORE = -100  # the label of a token that does not count


@takes_options(Finetune)
def finetune(
    small: nn.Module, train: Iterable, teacher: nn.Module | None = None, *, seed: int = 0, **options: Any
) -> list[dict[str, Any]]:
    """Train a model in place with SGD and a cosine schedule.

    The loss is (1 - distill) x cross-entropy with the labels + distill x KL from the teacher's softened answers.
    Without labels the teacher alone is followed; without a teacher the labels alone. Labels and answers are those of
    the main output; of other outputs the squared change from the teacher's over their variance v, as log(1 + v), is
    added to the KL. With a teacher, about one training input in eight is held out, and the weights whose answers to
    these inputs are nearest to the teacher's are kept: of an epoch, or from before the training where it did not help.
    Without a teacher the last epoch counts. Nothing is selected on test data. The training mode comes back as it was.

    Args:
        small: the model.
        train: batches with labels, (inputs, labels) or a dict; without labels where there is a teacher.
        teacher: the original.
        seed: of what is random in the model, such as dropout.
        {options}

    Returns:
        The number and the mean loss of every epoch; with a teacher also `held_out`, the squared distance from its
        answers to held-out inputs as a share of their squares, `before`, the same before the training, and `kept`,
        whether the model has the weights of this epoch. Where no epoch is kept, the model is as it was.

    Raises:
        ValueError: for a wrong option, no batches, and when there is nothing to learn from.

    >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    >>> [epoch["epoch"] for epoch in finetune(nn.Linear(4, 3), batches, epochs=2)]
    [1, 2]
    """
    how = Finetune.of(options)
    train = checked(train, "train")
    held = None if teacher is None or not how.epochs else Held(train)
    steps = max(sum(1 for _ in train) * how.epochs, 1)
    optimizer = torch.optim.SGD(
        small.parameters(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay, nesterov=how.momentum > 0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    )
    modes = [(module, module.training) for module in small.modules()]
    history: list[dict[str, Any]] = []
    best = math.inf if held is None or teacher is None else held.value(small, teacher)
    before, weights = best, _copy(small) if held is not None else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            for epoch in progress(range(1, how.epochs + 1), "fine-tune"):
                small.train()
                total = count = 0.0
                for batch in train if held is None else held.training(train):
                    loss = _loss(small, batch, teacher, how)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total, count = total + loss.item(), count + 1
                if not count:
                    raise ValueError("train has no batches; give at least one")
                history.append({"epoch": epoch, "loss": total / count})
                if held is not None and teacher is not None:
                    value = held.value(small, teacher)
                    history[-1] |= {"held_out": value, "before": before, "kept": False}
                    if value < best:
                        best, weights = value, _copy(small)
            if held is not None:
                small.load_state_dict(weights)
                for row in history:
                    row["kept"] = best < before and row["held_out"] == best
        finally:
            for module, training in modes:
                module.training = training
    return history


def _copy(model: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(model.state_dict())


def undone(history: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say of training that did not help, or of which not all epochs were kept; None for any other."""
    if not history or "kept" not in history[0] or history[-1]["kept"]:
        return None
    kept = next((row for row in history if row["kept"]), None)
    before, least = history[0]["before"], min(row["held_out"] for row in history)
    if kept is None:
        return (
            f"training did not help and was undone: answers to held-out training inputs were {before:.3g} from the "
            f"original's before it, and {least:.3g} or more after its epochs (squared distance, share of the squares)"
        )
    return f"epoch {kept['epoch']} of {len(history)} was kept, after which held-out training inputs fared worse"


def _loss(small: nn.Module, batch: object, teacher: nn.Module | None, how: Finetune) -> Tensor:
    labels = labels_of(batch)
    if labels is None and teacher is None:
        raise ValueError("finetune: batches have no labels and there is no teacher; give one of them")
    outputs = call_all(small, batch)
    main = main_name(outputs)
    logits = outputs[main]
    mask = output_mask_of(batch)
    counts = mask is not None and logits.ndim == 3 and mask.shape == logits.shape[:2]
    real = mask.to(logits.device) if mask is not None and counts else None
    loss = logits.new_zeros(())
    if labels is not None and (teacher is None or how.distill < 1):
        labels = labels.to(device_of(small))
        share = 1 - how.distill if teacher is not None else 1
        loss = loss + share * _cross_entropy(logits, labels, real, token_ids_of(batch))
    if teacher is not None and (labels is None or how.distill > 0):
        with eval_mode(teacher), torch.no_grad():
            wanted = {name: value.to(logits.device) for name, value in call_all(teacher, batch).items()}
        expected = wanted.pop(main)
        pair = [value if real is None else value[real] for value in (logits, expected)]
        classes = 1 if logits.ndim > 3 else -1  # of maps as cross-entropy takes them, and of tokens
        answer, target = (F.log_softmax(value / how.temperature, classes) for value in pair)
        apart = F.kl_div(answer, target, reduction="none", log_target=True).sum(classes)
        divergence = apart.mean() * how.temperature**2 + _change(outputs, wanted)
        loss = loss + (how.distill if labels is not None else 1) * divergence
    return loss


def _change(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor | float:
    """Squared change of outputs as a share of the variance of the wanted ones in this batch, mean over these."""
    changes: list[Tensor] = []
    for name, target in wanted.items():
        variance = (target - target.mean(0)).square().sum()
        if variance > 0:
            changes.append(torch.log1p((outputs[name] - target).square().sum() / variance))  # steps stay bounded
    return torch.stack(changes).mean() if changes else 0.0


def _cross_entropy(logits: Tensor, labels: Tensor, real: Tensor | None, ids: Tensor | None) -> Tensor:
    """Cross-entropy of classes (N, C), or of tokens (N, T, C) without padding and labels -100.

    Labels that repeat the input tokens are those of the next token, as transformers takes them, and are shifted.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        return F.cross_entropy(logits, labels)
    labels = labels if real is None else labels.masked_fill(~real, IGNORE)
    told = labels != IGNORE
    if ids is not None and ids.shape == labels.shape and torch.equal(labels[told], ids.to(labels.device)[told]):
        labels = labels[:, 1:] if real is None else labels[:, 1:].masked_fill(~real[:, :-1], IGNORE)
        logits = logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
