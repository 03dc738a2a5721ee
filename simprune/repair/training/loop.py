"""Fine-tuning: a training loop with distillation from the original."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simprune.core.alone import one_at_a_time
from simprune.core.batches import device_of
from simprune.core.in_step import require_same, require_same_batch
from simprune.core.options import takes_options
from simprune.core.peekable import Peekable
from simprune.core.processes import first as first_process
from simprune.core.processes import together
from simprune.core.progress import progress, say
from simprune.core.weights import digest
from simprune.repair.training.adapters import adapted
from simprune.repair.training.held import Held
from simprune.repair.training.judge import Judge, better
from simprune.repair.training.log import Log
from simprune.repair.training.objective import Objective
from simprune.repair.training.optimizer import (
    Average,
    BatchNorms,
    optimizer_of,
    restore,
    share_of_rate,
    tensors_of,
)
from simprune.repair.training.processes import Processes
from simprune.repair.training.randomness import begin_epoch, own_randomness, set_random_states
from simprune.repair.training.requirements import check, check_call
from simprune.repair.training.state import Place, State
from simprune.settings import Finetune
from simprune.trace.first_run import check_runs
from simprune.trace.later_runs import names_failing_batches


@one_at_a_time
@together
@names_failing_batches
@takes_options(Finetune)
def finetune(
    small: nn.Module,
    train: Iterable,
    teacher: nn.Module | None = None,
    *,
    validation: Iterable | None = None,
    calibration: Iterable | None = None,
    passes: Callable[[nn.Module, Iterable], bool] | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train a model in place; the learning rate warms up and falls as a cosine.

    The loss is (1 - distill) x distance to the labels + distill x distance to the teacher's answers. Labels of whole
    numbers are classes of inputs, tokens or pixels: cross-entropy, and KL from the teacher's softened answers. Labels
    of floating point are values: squared errors. Without labels the teacher alone is followed; without a teacher the
    labels alone. Of several outputs, distances are the mean over outputs by `output_weights`: over those with labels,
    and over all where the teacher is followed. Embeddings, and further outputs without labels, follow the teacher by
    the squared change as a share of its variance v, as log(1 + v). Labels of a language model are its tokens, and are
    shifted; where it has neither labels nor a teacher, its own tokens are its labels.

    Epochs are judged on inputs that are not trained on: a validation split, or about one training input in eight, 512
    at most. The weights that are best on them stay: of an epoch, or from before the training where it did not help.
    Nor does an epoch stay after which the damage on held-out calibration inputs is larger than before the training,
    unless labels alone are followed, or `select` is loss or last, or the epoch passes. Nothing is selected on test
    data. Where fewer than 16 training inputs could be held out, all are trained on and judged on. The training mode
    comes back as it was.

    A training with a folder goes on where it was interrupted, when it is called with the same arguments again, and
    ends with the weights of a training that was not; until then the model has its weights from before. Data come in the
    same order then if they are a list, or a `Batches` or DataLoader of torch.

    Started by torchrun, all processes train the same model: every batch is shared out, and gradients are summed.

    Args:
        small: the model.
        train: batches with labels, (inputs, labels) or a dict; without labels where there is a teacher, and of a
            language model. Labels of several outputs are a dict or tuple like these.
        teacher: the original.
        validation: batches on which epochs are judged; None: held out from `train`.
        calibration: batches of the repair, of which about a quarter is held out, 512 inputs at most; None: none are.
        passes: for `until_passed`: called with the model and the held-out batches after every epoch; training ends, and
            this epoch stays, when it returns true, as `lambda model, held: sp.validate(teacher, model, held).passed`.
        folder: for the state of the training, a log in JSON lines, training.jsonl, and figures for TensorBoard; the log
            of an earlier training there becomes training-before.jsonl.
        seed: of what is random in the model, such as dropout, and of the order of data.
        {options}

    Returns:
        A row for every epoch: its number `epoch`; the mean `loss` of its steps; `held_out`, the damage on held-out
        inputs, or the loss, as `by` says; `before`, the same before the training; `judged_on`, where these inputs are
        from; their `accuracy` and `agreement`, where there are classes; `damage` on held-out calibration inputs, how
        many these are, and `damage_before`; `kept`, whether the model has the weights of this epoch; `drift`, where
        accuracy rose while agreement fell. Where no epoch is kept, the model is as it was.

    Raises:
        ValueError: for a wrong option, no batches, batches that the model cannot read, labels that do not fit, when
            there is nothing to learn from, and for a folder of a training with other arguments.
        ImportError: for `lora`, `tensorboard`, `precision` or several processes where peft, tensorboard or accelerate
            is not installed.

    >>> import torch
    >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    >>> [epoch["epoch"] for epoch in finetune(nn.Linear(4, 3), batches, epochs=2)]
    [1, 2]
    """
    how = Finetune.of(options)
    check_call(how, small, teacher, passes, seed)
    train = Peekable.of(train, "train")
    validation = None if validation is None else Peekable.of(validation, "validation")
    calibration = None if calibration is None else Peekable.of(calibration, "calibration")
    folder = None if folder is None else Path(folder)
    check(how, small, folder)
    if not how.epochs:
        return []
    with own_randomness(), _as_before(small, folder), Processes.of(how, device_of(small)) as processes:
        begin_epoch(train, seed, 0)
        first = next(iter(train), None)
        if first is None:
            raise ValueError("train has no batches; give at least one")
        require_same(small)
        require_same_batch("train", first)
        check_runs(small, first, "train", "smaller model")
        for batches in (validation, calibration):
            if batches is not None:
                check_runs(small, batches.first, batches.name, "smaller model")
        objective = Objective.of(small, teacher, first, how)
        begin_epoch(train, seed, 0)
        held = Held(train, validation, calibration, None if folder is None else first)
        judge = Judge(held, objective, processes)
        norms = BatchNorms(small, how, processes.size)
        steps = math.ceil(held.count / how.accumulate) * how.epochs
        context = {"options": asdict(how), "seed": seed, "batches": held.count, "processes": processes.size}
        if folder is not None:
            context |= {"model": digest(small), "teacher": None if teacher is None else digest(teacher)}
            context |= {"training inputs and labels": held.digest}
        state = State(folder, context)

        with adapted(small, how.lora), _watched(objective):
            optimizer = optimizer_of(small, how)
            rates = [group["lr"] for group in optimizer.param_groups]
            average = Average(small, how.ema) if how.ema else None
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

            stored = state.load(small, optimizer, average)
            place, best, states = stored or (Place(), {}, {})
            log = Log(folder if first_process() else None, place.steps if stored else None, how.tensorboard)
            step, stepper = processes.prepare(_Step(small, objective), optimizer)
            processes.scale = place.scale
            if not place.before:
                place.before = judge.before(small)
                place.best, best = place.before["held_out"], tensors_of(small)
                state.save(place, small, optimizer, average, best, always=True)

            epochs = range(place.epoch, 0 if place.finished else how.epochs + 1)
            for epoch in progress(epochs, "fine-tune"):
                begin_epoch(train, seed, epoch)
                norms.begin()
                done, diverged = place.step, False
                for number, batches in enumerate(_groups(held.training(train), how.accumulate), 1):
                    if number <= done:
                        if number == done:
                            set_random_states(states)
                        continue
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * share_of_rate(place.steps, steps, how.warmup)
                    stepper.zero_grad()
                    loss = _backward(step, objective, batches, processes, norms)
                    if not math.isfinite(loss):
                        diverged = True
                        break
                    if how.clip is not None:
                        processes.clip(parameters, how.clip)
                    stepper.step()
                    processes.even(small)
                    if average is not None:
                        average.update(small, place.steps)
                    place.step, place.steps, place.total = number, place.steps + 1, place.total + loss
                    place.scale = processes.scale
                    log.write(place.steps, {"loss": loss, "rate": optimizer.param_groups[0]["lr"]})
                    state.save(place, small, optimizer, average, best, always=False)
                if not place.step and not diverged:
                    raise ValueError("train has no batches; give at least one")

                with nullcontext() if average is None else average.used_in(small):
                    figures = judge.figures(small)
                    passed = how.until_passed and passes is not None and passes(small, held.batches)
                    place.stale += 1
                    stays = how.select == "last" and not diverged
                    if passed or stays or better(figures, place.best, place.before):
                        place.stays, place.stale = epoch, 0
                        place.best, best = figures["held_out"], tensors_of(small)
                row = {"epoch": epoch, "loss": place.total / max(place.step, 1)} | judge.row(figures, place.before)
                row |= {"passed": True} if passed else {}
                row |= {"loss": loss, "diverged": place.steps + 1} if diverged else {}
                if "drift" in row:
                    say(f"fine-tune: after epoch {epoch}, {row['drift']}")
                place.history.append(row)
                log.write(place.steps, row)
                tired = how.patience is not None and place.stale > how.patience
                place.finished = epoch == how.epochs or tired or passed or diverged
                place.epoch, place.step, place.total = epoch + 1, 0, 0.0
                state.save(place, small, optimizer, average, best, always=True)
                if place.finished:
                    break

            restore(small, best)
            for row in place.history:
                row["kept"] = row["epoch"] == place.stays
    return place.history


class _Step(nn.Module):
    """The loss of a part of a step as a module, which several processes wrap as a whole."""

    def __init__(self, small: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.small, self.objective = small, objective

    def forward(self, batch: Any, totals: dict[str, float]) -> Tensor:
        return self.objective.loss(self.small, batch, totals)


def _groups(batches: Iterable, size: int) -> Iterator[list[Any]]:
    """The batches of every step; the last step may have fewer."""
    walk = iter(batches)
    while group := list(islice(walk, size)):
        yield group


def _backward(
    step: Callable[..., Tensor],
    objective: Objective,
    batches: Sequence[Any],
    processes: Processes,
    norms: BatchNorms,
) -> float:
    """The gradient of the loss over all batches of a step and all processes, and the loss."""
    weights = [objective.weights(batch) for batch in batches]
    totals = {name: sum(own[name] for own in weights) for name in weights[0]}
    whole = 0.0
    for number, batch in enumerate(batches, 1):
        norms.meet(batch)
        part, counts = processes.part(batch)
        last = number == len(batches)
        with processes.joining(last):
            loss = step(part, totals) * float(counts)
            whole += loss.item()
            if last:  # first the losses are summed, which tells of a process that has stopped on the way here
                whole = processes.summed({"loss": whole})["loss"]
            processes.backward(loss)
    return whole


def _watched(objective: Objective) -> Any:
    return nullcontext() if objective.features is None else objective.features.watched()


@contextmanager
def _as_before(model: nn.Module, folder: Path | None) -> Iterator[None]:
    """After the block every module is in the mode from before it.

    After an error a model whose training is stored in a folder has its weights from before as well, so that the same
    call with the same model goes on with what is stored.
    """
    modes = [(module, module.training) for module in model.modules()]
    weights = None if folder is None else tensors_of(model)
    try:
        yield
    except BaseException:
        if weights is not None:
            restore(model, weights)
        raise
    finally:
        for module, training in modes:
            module.training = training
