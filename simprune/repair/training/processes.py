"""Where a training runs: in one process on the model's device, or by accelerate in several, or in mixed precision.

Every process walks over all batches and takes its share of the inputs of every batch, so that the steps are those of
one process. Gradients, and what epochs are judged by, are summed over all processes; the statistics of BatchNorm, which
normalises by the share of its process, are averaged after every step.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from simprune.core.pieces import dealt
from simprune.core.processes import ProcessLost, add_up, count, gather
from simprune.settings import Finetune


class Processes:
    """The process of this training, or one of several.

    Args:
        accelerator: of accelerate; None for one process in single precision, which does without.
    """

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.size = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self._step: Any = None

    @classmethod
    @contextmanager
    def of(cls, how: Finetune, device: torch.device) -> Iterator["Processes"]:
        """The processes of a training, which are those of the group of `torch.distributed`.

        Args:
            how: the settings.
            device: of the model.

        Raises:
            ValueError: for processes of torchrun that do not work together.
        """
        wanted = count()
        if wanted == 1 and how.precision == "fp32":
            yield cls()
            return
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState
        from accelerate.utils import GradientAccumulationPlugin

        foreign = bool(AcceleratorState._shared_state)  # of a program that uses accelerate itself
        accumulation = dict(GradientState().plugin_kwargs) if foreign else {}
        accelerator = Accelerator(  # all that `accelerate launch` may have said otherwise, since options of ours say it
            mixed_precision="no" if how.precision == "fp32" else how.precision,
            cpu=device.type == "cpu",
            device_placement=False,
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        )
        try:
            if accelerator.num_processes != wanted:
                raise ValueError(
                    f"finetune: torchrun has started {accelerator.num_processes} processes, of which {wanted} work "
                    "together; call torch.distributed.init_process_group in all of them first"
                )
            yield cls(accelerator)
        finally:
            if foreign:
                GradientState().plugin_kwargs = accumulation
            else:  # its settings are those of the whole program; the next training may have others
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()

    def prepare(
        self, step: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[Callable[..., Tensor], torch.optim.Optimizer]:
        """The step and the optimizer as they run here.

        Args:
            step: a module that holds the model, and returns the loss of a part of a step.
            optimizer: of its parameters.
        """
        self._step = step
        if self.accelerator is None:
            return step, optimizer
        with warnings.catch_warnings():  # accelerate has no word yet for what torch calls forward_sync_buffers now
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._step, prepared = self.accelerator.prepare(step, optimizer)
        return self._step, prepared

    def part(self, batch: Any) -> tuple[Any, bool]:
        """The inputs of a batch that are this process's, and whether they count (see `simprune.core.pieces.dealt`)."""
        return dealt(batch, self.rank, self.size)

    def joining(self, last: bool) -> AbstractContextManager:
        """Around the backward passes of a step: gradients are summed over the processes in the last one alone."""
        return nullcontext() if last or self.size == 1 else self.accelerator.no_sync(self._step)

    def backward(self, loss: Tensor) -> None:
        """The gradient of a loss, of which every process has a part.

        Raises:
            ProcessLost: where another process has ended.
        """
        if self.accelerator is None:
            loss.backward()
            return
        with self._together():
            self.accelerator.backward(loss * self.size)  # gradients of several processes are averaged

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around what all processes do at once: where one of them has ended, the others say so in one line."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(word in str(error).lower() for word in ("gloo", "nccl")):
                raise
            raise ProcessLost(f"lost one of {self.size} processes, so this one stops as well ({error})") from None

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Shorten the gradient of all parameters to a norm."""
        clip = nn.utils.clip_grad_norm_ if self.accelerator is None else self.accelerator.clip_grad_norm_
        clip(parameters, norm)

    def summed(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, by name; every process has the same names.

        Raises:
            ProcessLost: where another process has ended; the reason is in the message where it could be told.
        """
        if self.size == 1:
            return dict(sums)
        every = gather(dict(sums))
        return {name: sum(own[name] for own in every) for name in sums}

    def even(self, model: nn.Module) -> None:
        """Statistics that a step has changed become their mean over all processes."""
        if self.size == 1:
            return
        statistics = [
            value for module in model.modules() if isinstance(module, _NormBase) and module.training
            for value in module.buffers(recurse=False) if value.is_floating_point()
        ]  # fmt: skip
        if statistics:
            add_up(statistics)
            for value in statistics:
                value.div_(self.size)

    @property
    def scale(self) -> dict[str, Any]:
        """By what losses in fp16 are multiplied, with which an interrupted training goes on."""
        scaler = None if self.accelerator is None else self.accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    @scale.setter
    def scale(self, values: Mapping[str, Any]) -> None:
        if values:
            self.accelerator.scaler.load_state_dict(values)
