"""One forward pass over all batches, paused at layer after layer, so that weights can change on the way.

Refitting L layers in order needs a layer's activations with all earlier layers already refitted. Repeating the
forward pass for every layer costs O(L^2) layers; pausing every batch's pass at the layer costs one pass in all.
Each batch waits in a thread of its own, and one thread runs at a time, so the arithmetic stays deterministic.
"""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from simprune.core.cost import Example
from simprune.core.heap import give_back
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks

Advance = Callable[[str], list[Example]]


class _Abandoned(BaseException):
    """Ends a paused forward pass that nobody waits for any more."""


class _Threads:
    """Threads that run one pass after another, as many as there are passes at a time.

    A thread that ends leaves memory behind, of its allocator and of libraries of linear algebra, and a repair runs
    hundreds of passes for every batch.
    """

    def __init__(self) -> None:
        self.local = threading.local()  # `running` is the pass of a thread
        self.renew()
        os.register_at_fork(after_in_child=self.renew)  # a fork has none of the threads

    def renew(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=2**20, thread_name_prefix="lockstep")


_threads = _Threads()


class _Pass:
    """The forward pass of one batch, in a thread; it stops at every watched layer and waits."""

    def __init__(self, model: nn.Module, call: Example) -> None:
        self.model, self.call = model, call
        self.layer: str | None = None  # where the pass waits; None once it has finished
        self.arguments: Example = (), {}  # what that layer is about to get, or has given
        self.error: BaseException | None = None
        self.abandoned = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._done = _threads.pool.submit(self._run)

    def _run(self) -> None:
        self._go.acquire()
        _threads.local.running = self
        try:
            with torch.no_grad():
                if not self.abandoned:
                    args, kwargs = self.call
                    self.model(*args, **kwargs)
        except _Abandoned:
            pass
        except BaseException as error:  # handed to the thread that waits, in `resume`
            self.error = error
        _threads.local.running = self.layer = None
        self._stopped.release()

    def pause(self, layer: str, arguments: Example) -> None:
        """Wait at a layer until `resume`; runs in this pass's thread."""
        self.layer, self.arguments = layer, arguments
        self._stopped.release()
        self._go.acquire()
        self.arguments = (), {}
        if self.abandoned:
            raise _Abandoned

    def resume(self) -> None:
        """Run to the next watched layer, or to the end."""
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """End the pass where it waits."""
        if not self._done.done():
            self.abandoned = True
            self._go.release()
            self._done.result()


@contextmanager
def lockstep(
    model: nn.Module, calls: Iterable[Example], layers: Sequence[str], behind: Collection[str] = ()
) -> Iterator[Advance]:
    """Pause a model before one layer after another, or behind it, all batches side by side.

    Memory: the live activations of every batch's pass at one layer.

    Args:
        model: runs in evaluation mode, without gradients.
        calls: arguments of the model, batch by batch.
        layers: names of the modules to stop at, in order of execution; they run once per batch.
        behind: those of them to stop at once they have run.

    Returns:
        A function that runs every batch up to the layer of a name, and returns the arguments that the layer is about to
        get, or what it gave as the only argument, batch by batch. It raises ValueError where a batch reaches another
        layer first, and errors of the model.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with lockstep(model, [((torch.zeros(4, 2),), {})], ["0", "2"]) as advance:
    ...     [args[0].shape for args, _ in [*advance("0"), *advance("2")]]
    [torch.Size([4, 2]), torch.Size([4, 3])]
    >>> with lockstep(model, [((torch.zeros(4, 2),), {})], ["2"], behind=["2"]) as advance:
    ...     advance("2")[0][0][0].shape
    torch.Size([4, 1])
    """
    passes: list[_Pass] = []

    def pause(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        current = getattr(_threads.local, "running", None)
        if current in passes:  # not a pass of another lockstep through the same layer
            current.pause(name, (args, kwargs))

    def pause_behind(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        pause(name, module, (output,), {})

    def advance(layer: str) -> list[Example]:
        for waiting in passes:
            waiting.resume()
            if waiting.layer != layer:
                reached = waiting.layer or "the end"
                raise ValueError(f"expected every batch to reach {layer} next; one reached {reached}")
        give_back()  # what a thread has freed no other thread can use
        return [waiting.arguments for waiting in passes]

    before = [(model.get_submodule(name), partial(pause, name)) for name in layers if name not in behind]
    after = [(model.get_submodule(name), partial(pause_behind, name)) for name in layers if name in behind]
    with eval_mode(model), hooks(before, after):
        passes += [_Pass(model, call) for call in calls]
        try:
            yield advance
        finally:
            for waiting in passes:
                waiting.abandon()
