"""Fine-tuning: a training loop with distillation from the original."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simprune.core.alone import one_at_a_time
from simprune.core.batches import checked
from simprune.core.options import takes_options
from simprune.core.progress import progress
from simprune.core.weights import digest
from simprune.repair.selection import Held
from simprune.repair.training import log as logs
from simprune.repair.training.adapters import adapted
from simprune.repair.training.objective import Objective
from simprune.repair.training.optimizer import (
    Average,
    optimizer_of,
    restore,
    share_of_rate,
    tensors_of,
    train_mode,
)
from simprune.repair.training.randomness import begin_epoch, own_randomness, set_random_states
from simprune.repair.training.state import Place, State
from simprune.settings import Finetune


@one_at_a_time
@takes_options(Finetune)
def finetune(
    small: nn.Module,
    train: Iterable,
    teacher: nn.Module | None = None,
    *,
    validation: Iterable | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train a model in place; the learning rate warms up and falls as a cosine.

    The loss is (1 - distill) x distance to the labels + distill x distance to the teacher's answers. Labels of whole
    numbers are classes of inputs, tokens or pixels: cross-entropy, and KL from the teacher's softened answers. Labels
    of floating point are values: squared errors. Without labels the teacher alone is followed; without a teacher the
    labels alone. Labels belong to the main output; other outputs, and embeddings, follow the teacher by the squared
    change as a share of its variance v, as log(1 + v). Labels of a language model are its tokens, and are shifted.

    With a teacher, about one training input in eight is held out unless there is a validation split, and the weights
    whose answers to these inputs are nearest to the teacher's are kept: of an epoch, or from before the training where
    it did not help. Without a teacher the loss on these inputs decides, where there is a validation split or
    `patience`; otherwise all inputs are trained on and the last epoch counts. Nothing is selected on test data. The
    training mode comes back as it was.

    A training with a folder goes on where it was interrupted, when it is called with the same arguments again, and
    ends with the weights of a training that was not. Data come in the same order then if they are a list, or a
    `Batches` or DataLoader of torch.

    Args:
        small: the model.
        train: batches with labels, (inputs, labels) or a dict; without labels where there is a teacher.
        teacher: the original.
        validation: batches on which epochs are judged; None: held out from `train`.
        folder: for the state of the training, a log in JSON lines, training.jsonl, and figures for TensorBoard.
        seed: of what is random in the model, such as dropout, and of the order of data.
        {options}

    Returns:
        The number and the mean loss of every epoch. Where epochs are judged also `held_out`, the squared distance from
        the teacher's answers to held-out inputs as a share of their squares, or the loss on them, `before`, the same
        before the training, and `kept`, whether the model has the weights of this epoch. Where no epoch is kept, the
        model is as it was.

    Raises:
        ValueError: for a wrong option, no batches, labels that do not fit, when there is nothing to learn from, and
            for a folder of a training with other arguments.
        ImportError: for `lora` or `tensorboard` where peft or tensorboard is not installed.

    >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    >>> [epoch["epoch"] for epoch in finetune(nn.Linear(4, 3), batches, epochs=2)]
    [1, 2]
    """
    how = Finetune.of(options)
    train = checked(train, "train")
    validation = None if validation is None else checked(validation, "validation")
    folder = None if folder is None else Path(folder)
    logs.check(folder, how.tensorboard)
    if not how.epochs:
        return []
    with own_randomness(), _modes(small):
        begin_epoch(train, seed, 0)
        first = next(iter(train), None)
        if first is None:
            raise ValueError("train has no batches; give at least one")
        objective = Objective.of(small, teacher, first, how)
        judged = teacher is not None or validation is not None or how.patience is not None
        begin_epoch(train, seed, 0)
        held = Held(train, validation) if judged else None
        count = sum(1 for _ in train) if held is None else held.count
        steps = math.ceil(count / how.accumulate) * how.epochs
        context = {"options": asdict(how), "seed": seed, "batches": count}
        if folder is not None:
            context |= {"model": digest(small), "teacher": None if teacher is None else digest(teacher)}
        state = State(None if folder is None else folder / "state", context)

        with adapted(small, how.lora), _watched(objective):
            optimizer = optimizer_of(small, how)
            rates = [group["lr"] for group in optimizer.param_groups]
            average = Average(small, how.ema) if how.ema else None
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

            place, best, states = state.load(small, optimizer, average) or (Place(), {}, {})
            log = logs.Log(folder, place.steps, how.tensorboard)
            if held is not None and place.before is None:
                place.before = place.best = _value(held, small, teacher, objective)
                best = tensors_of(small)

            epochs = range(place.epoch, 0 if place.finished else how.epochs + 1)
            for epoch in progress(epochs, "fine-tune"):
                begin_epoch(train, seed, epoch)
                train_mode(small, how.batchnorm)
                done = place.step
                walk = train if held is None else held.training(train)
                for number, batches in enumerate(_groups(walk, how.accumulate), 1):
                    if number <= done:
                        if number == done:
                            set_random_states(states)
                        continue
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * share_of_rate(place.steps, steps, how.warmup)
                    optimizer.zero_grad()
                    loss = _backward(objective, small, batches)
                    if how.clip is not None:
                        torch.nn.utils.clip_grad_norm_(parameters, how.clip)
                    optimizer.step()
                    if average is not None:
                        average.update(small, place.steps)
                    place.step, place.steps, place.total = number, place.steps + 1, place.total + loss
                    log.write(place.steps, {"loss": loss, "rate": optimizer.param_groups[0]["lr"]})
                    state.save(place, small, optimizer, average, best, always=False)
                if not place.step:
                    raise ValueError("train has no batches; give at least one")

                row: dict[str, Any] = {"epoch": epoch, "loss": place.total / place.step}
                if held is not None:
                    with nullcontext() if average is None else average.used_in(small):
                        value = _value(held, small, teacher, objective)
                        better = place.best is None or value < place.best
                        place.stale = 0 if better else place.stale + 1
                        if better:
                            place.best, best = value, tensors_of(small)
                    row |= {"held_out": value, "before": place.before, "kept": False}
                place.history.append(row)
                log.write(place.steps, row)
                place.finished = epoch == how.epochs or (how.patience is not None and place.stale > how.patience)
                place.epoch, place.step, place.total = epoch + 1, 0, 0.0
                state.save(place, small, optimizer, average, best, always=True)
                if place.finished:
                    break

            if held is not None:
                restore(small, best)
                helped = place.best is not None and place.before is not None and place.best < place.before
                for row in place.history:
                    row["kept"] = helped and row["held_out"] == place.best
            elif average is not None:
                restore(small, average.values)
            log.close()
    return place.history


def _groups(batches: Iterable, size: int) -> Iterator[list[Any]]:
    """The batches of every step; the last step may have fewer."""
    walk = iter(batches)
    while group := list(islice(walk, size)):
        yield group


def _backward(objective: Objective, small: nn.Module, batches: Sequence[Any]) -> float:
    """The gradient of the loss over all batches of a step, and the loss."""
    weights = [objective.weights(batch) for batch in batches]
    totals = {name: sum(own[name] for own in weights) for name in weights[0]}
    whole = 0.0
    for batch in batches:
        loss = objective.loss(small, batch, totals)
        loss.backward()
        whole += loss.item()
    return whole


def _value(held: Held, small: nn.Module, teacher: nn.Module | None, objective: Objective) -> float:
    """What a model is worth on held-out inputs, the less the better: distance from the teacher, or the loss."""
    return held.loss(small, objective) if teacher is None else held.value(small, teacher)


def _watched(objective: Objective) -> Any:
    return nullcontext() if objective.features is None else objective.features.watched()


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """After the block every module is in the mode from before it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
