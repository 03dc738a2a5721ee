"""One forward pass over all batches, paused at layer after layer, so that weights can change on the way.

Refitting L layers in order needs the activations at each with all earlier layers already refitted. Repeating the
forward pass for every layer costs O(L^2) layers; pausing every batch's pass at the layer costs one pass in all.
Each batch waits in a thread of its own, and one thread runs at a time, so the arithmetic stays deterministic.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from simprune.core.cost import Example
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks


class _Abandoned(BaseException):
    """Ends a paused forward pass that nobody waits for any more."""


class _Pass(threading.Thread):
    """The forward pass of one batch; it stops before each watched layer and waits."""

    def __init__(self, model: nn.Module, call: Example, names: dict[nn.Module, str]) -> None:
        super().__init__(daemon=True)
        self.model, self.call, self.names = model, call, names
        self.layer: str | None = None  # where the pass waits; None once it has finished
        self.arguments: Example = (), {}  # what that layer is about to get
        self.error: BaseException | None = None
        self.abandoned = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        self._go.acquire()
        try:
            with torch.no_grad():
                if not self.abandoned:
                    args, kwargs = self.call
                    self.model(*args, **kwargs)
        except _Abandoned:
            pass
        except BaseException as error:  # handed to the thread that waits, in `resume`
            self.error = error
        self.layer = None
        self._stopped.release()

    def pause(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.layer, self.arguments = self.names[module], (args, kwargs)
        self._stopped.release()
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned

    def resume(self) -> None:
        """Run to the next watched layer, or to the end."""
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        if self.is_alive():
            self.abandoned = True
            self._go.release()
            self.join()


class Lockstep:
    """All batches of one model, standing before the same layer."""

    def __init__(self, passes: Sequence[_Pass]) -> None:
        self._passes = passes

    def advance(self, layer: str) -> list[Example]:
        """Run every batch up to `layer` and return the arguments it is about to get."""
        for waiting in self._passes:
            waiting.resume()
            if waiting.layer != layer:
                raise ValueError(
                    f"expected every batch to reach {layer} next; one reached {waiting.layer or 'the end'}"
                )
        return [waiting.arguments for waiting in self._passes]


@contextmanager
def lockstep(model: nn.Module, calls: Iterable[Example], layers: Sequence[str]) -> Iterator[Lockstep]:
    """Pause `model` before each of `layers`, modules in order of execution that run once per batch.

    `calls`: arguments of the model, batch by batch. Memory: the live activations of every batch's pass at one layer.
    """
    names = {model.get_submodule(name): name for name in layers}
    by_thread: dict[int, _Pass] = {}

    def pause(module: nn.Module, args: tuple, kwargs: dict) -> None:
        current = by_thread.get(threading.get_ident())
        if current is not None:
            current.pause(module, args, kwargs)

    with eval_mode(model), hooks([(module, pause) for module in names]):
        passes = [_Pass(model, call, names) for call in calls]
        by_thread.update({waiting.ident: waiting for waiting in passes if waiting.ident is not None})
        try:
            yield Lockstep(passes)
        finally:
            for waiting in passes:
                waiting.abandon()
