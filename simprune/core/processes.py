"""Several processes that work as one, as torchrun starts them: which one this is, and what they exchange.

All of them run the same program on the same model and the same batches, and decide alike. They share out what costs:
every process runs some of the batches, and looks after some of the layers. What a batch shows at a layer is mailed to
the process that looks after it, which adds it batch after batch, as a single process would. So every sum is the same to
the last bit, whatever the number of processes. This is the only file that speaks with `torch.distributed`; where nobody
has initialised it there is one process, and nothing here costs anything.
"""

import functools
import io
import os
import pickle
import re
import signal
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE = "SIMPRUNE_PATIENCE"  # seconds, in the environment, for which a process waits for another one
TOLD = "told_by_a_lower_rank"  # an attribute of errors that the other processes know of
TEXT = 512  # bytes of what a process that stops tells the others
MEETING = timedelta(minutes=5)  # for which processes wait for each other at the start of a call
LAST_WORDS = timedelta(seconds=20)  # for which a process that stops waits until the others listen
STARTED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


_inside: list[str] = []  # the function that all processes are in
_over: list[str] = []  # why the processes no longer work together


class ProcessLost(ConnectionError):
    """Another process has stopped, so that this one cannot go on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        _over.append(message)


def patience() -> timedelta:
    """For how long a process waits for another one before it says that this one is lost: half an hour by default.

    Raises:
        ValueError: where the environment says no number of seconds from 1 on.
    """
    said = os.environ.get(PATIENCE, "1800")
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"{PATIENCE}: expected a number of seconds from 1 on; got {said!r}")
    return timedelta(seconds=int(said))


def count() -> int:
    """How many processes work together; 1 unless `torch.distributed` was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def rounds(items: Iterable[T]) -> Iterator[list[T]]:
    """All items in their order, as many at a time as there are processes: item `rank()` of a round is this process's.

    >>> list(rounds(["a", "b"]))
    [['a'], ['b']]
    """
    rest = iter(items)
    while some := list(islice(rest, count())):
        yield some


def gather(value: T) -> list[T]:
    """The values of all processes, in order of rank.

    >>> gather("a")
    ['a']
    """
    if count() == 1:
        return [value]
    return [_unpacked(message) for message in _exchange([_packed(value)] * count())]


def once(function: Callable[[], T]) -> T:
    """What a function gives, which the first process alone calls; an OSError, ValueError or KeyError is that of all.

    >>> once(lambda: 3)
    3
    """
    if count() == 1:
        return function()
    result: Any = None
    failure: Exception | None = None
    if first():
        try:
            result = function()
        except (OSError, ValueError, KeyError) as error:
            failure = error
    result, failure = gather((result, failure))[0]
    if failure is not None:
        raise failure
    return result


def same(what: str, value: Hashable, advice: str) -> None:
    """Raise ValueError where a value is not the same in all processes.

    >>> same("the model's weights", "1f2e", "load the same ones")
    """
    for other, theirs in enumerate(values := gather(value)):
        if theirs != values[0]:
            raise ValueError(
                f"expected {what} to be the same in all processes; those of process {other} are others than "
                f"those of process 0; {advice}"
            )


def add_up(tensors: Sequence[Tensor]) -> None:
    """Every tensor becomes, in place, its sum over all processes; those of one process have the shapes of the others'.

    >>> add_up([torch.ones(2)])
    """
    if count() == 1:
        return
    _exchange([_packed(None)] * count())  # which tells of processes that have stopped
    for tensor in tensors:
        on_cpu = tensor.cpu() if tensor.device.type != "cpu" else tensor
        with _listening():
            dist.all_reduce(on_cpu, group=_group())
        if on_cpu is not tensor:
            tensor.copy_(on_cpu)


class Mail:
    """Brings what a batch shows to the process that looks after it, batch after batch.

    Args:
        act: what to do with a message: `act(key, *content)`.
        owner: the number of the process that a key belongs to; None for all of them, which is the default.

    >>> sums = {"a": 0}
    >>> mail = Mail(lambda key, value: sums.update({key: sums[key] + value}))
    >>> mail.send("a", 2)
    >>> mail.deliver()
    >>> sums
    {'a': 2}
    """

    def __init__(self, act: Callable[..., object], owner: Callable[[Any], int | None] = lambda _: None) -> None:
        self.act, self.owner = act, owner
        self._out: list[list[Tensor]] = [[] for _ in range(count())]

    def send(self, key: Any, *content: Any) -> None:
        """Send a message; with one process it is acted on at once. Later changes of its tensors change nothing."""
        if count() == 1:
            self.act(key, *content)
            return
        message, owner = _packed((key, content)), self.owner(key)
        for to in range(count()) if owner is None else [owner]:
            self._out[to].append(message)

    def deliver(self) -> None:
        """Exchange what was sent, and act on it in the order of the batches; all processes call it, round by round."""
        if count() == 1:
            return
        out, self._out = self._out, [[] for _ in range(count())]
        for letter in _exchange([_joined(messages) for messages in out]):
            for message in _parted(letter):
                key, content = _unpacked(message)
                self.act(key, *content)


def together(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: a function that all processes call, with the same arguments, and that shares out its work.

    It begins when all have called it, and where it fails in one process it tells the others.

    >>> together(max)(1, 2)
    2
    """

    @functools.wraps(function)
    def in_step(*args: P.args, **kwargs: P.kwargs) -> T:
        if count() == 1 or _inside:
            return function(*args, **kwargs)
        _meet(function.__name__)
        _inside.append(function.__name__)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            stop(error)
            raise
        finally:
            _inside.clear()

    return in_step


def _meet(function: str) -> None:
    """Wait until all processes call the same function; ValueError where they call different ones.

    Raises:
        ProcessLost: where one of them does not within five minutes.
    """
    with _listening(f"expected all {count()} processes to call simprune.{function} with the same arguments"):
        dist.monitored_barrier(_group(), timeout=MEETING, wait_all_ranks=True)
    names = gather(function)
    if len({*names}) > 1:
        raise ValueError(f"expected all processes to call the same function; they call {', '.join(names)}")


def stop(error: BaseException) -> bool:
    """Tell the others that this process stops, and why; whether one of lower rank stops for the same reason.

    >>> stop(ValueError("wrong"))
    False
    """
    if count() == 1 or isinstance(error, ProcessLost):
        return False
    if not hasattr(error, TOLD):
        setattr(error, TOLD, _tell(error))
    return getattr(error, TOLD)


def _tell(error: BaseException) -> bool:
    text = " ".join(str(error.args[0] if error.args else type(error).__name__).split())
    _over.append(text)
    try:
        said = _status(text, LAST_WORDS)
    except RuntimeError:  # the others have gone already
        return False
    return text.encode()[:TEXT].decode(errors="ignore") in said[: rank()]


@contextmanager
def started() -> Iterator[None]:
    """Within the block the processes that torchrun has started work together; without torchrun there is one.

    Raises:
        ProcessLost: within the block, when this process is asked to end because another one has.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or any(name not in os.environ for name in STARTED_BY):
        yield
        return

    def end(*_: Any) -> None:
        raise ProcessLost("this process was asked to end (SIGTERM), as torchrun does when another one has stopped")

    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    before = signal.signal(signal.SIGTERM, end)
    with _listening():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=patience())
    try:
        yield
        if not _over:
            gather(None)  # none ends while the first is still writing, since torchrun would end that one too
    finally:
        signal.signal(signal.SIGTERM, before)
        _own_group.cache_clear()
        dist.destroy_process_group()


def _group() -> Any:
    """The group that exchanges on the CPU, whatever the default group's backend is."""
    return _own_group(dist.group.WORLD)


@functools.cache
def _own_group(world: Any) -> Any:
    return dist.new_group(backend="gloo", timeout=patience())


@contextmanager
def _listening(expected: str = "") -> Iterator[None]:
    """Errors of the exchange become `ProcessLost`, in one line."""
    try:
        yield
    except RuntimeError as error:
        text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip())  # without the place in torch's code
        reason = text.partition(". ")[0].splitlines()[0][:160] if text else type(error).__name__
        what = expected or "lost another process, so this one stops as well"
        raise ProcessLost(f"{what} ({reason})") from None


def _status(failure: str = "", wait: timedelta | None = None) -> list[str]:
    """Why every process stops, in order of rank; empty for those that go on. RuntimeError where one is gone."""
    words = torch.zeros(TEXT, dtype=torch.uint8)
    encoded = failure.encode()[:TEXT]
    words[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else words[:0]
    heard = [torch.empty_like(words) for _ in range(count())]
    work = dist.all_gather(heard, words, group=_group(), async_op=True)
    assert work is not None
    work.wait(wait) if wait is not None else work.wait()
    return [bytes(text.tolist()).rstrip(b"\0").decode(errors="ignore") for text in heard]


def _exchange(out: Sequence[Tensor]) -> list[Tensor]:
    """Send bytes to every process, and get theirs, in order of rank.

    Raises:
        ProcessLost: where another process has stopped.
    """
    here, group = rank(), _group()
    with _listening():
        stopped = [(other, text) for other, text in enumerate(_status()) if text]
        if stopped:
            other, text = stopped[0]
            raise ProcessLost(f"process {other} of {count()} has stopped, so this one stops as well: {text}")
        sizes = [torch.empty(count(), dtype=torch.int64) for _ in range(count())]
        dist.all_gather(sizes, torch.tensor([len(message) for message in out]), group=group)
        received = [torch.empty(int(row[here]), dtype=torch.uint8) for row in sizes]
        received[here] = out[here]
        works = []
        for other in range(count()):
            if other != here and len(out[other]):
                works.append(dist.isend(out[other], dist.get_global_rank(group, other), group))
            if other != here and len(received[other]):
                works.append(dist.irecv(received[other], dist.get_global_rank(group, other), group))
        for work in works:
            work.wait()
    return received


class _Pickler(pickle.Pickler):
    """Sets tensors apart; only processes of one run read what another one of them has written."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not Tensor:
            return None
        self.tensors.append(obj)
        return obj.dtype, tuple(obj.shape), obj.device.type


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, content: Tensor) -> None:
        super().__init__(file)
        self.content = content

    def persistent_load(self, pid: Any) -> Tensor:
        dtype, shape, device = pid
        size = dtype.itemsize * torch.Size(shape).numel()
        part, self.content = self.content[:size], self.content[size:]
        return part.clone().view(dtype).reshape(shape).to(device)


def _packed(value: Any) -> Tensor:
    """A value as bytes: the length of what is pickled, this, and the content of its tensors."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    tensors = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in pickler.tensors]
    head = file.getvalue()
    return torch.cat([_length(len(head)), torch.frombuffer(bytearray(head), dtype=torch.uint8), *tensors])


def _unpacked(message: Tensor) -> Any:
    size = int(message[:8].clone().view(torch.int64))
    return _Unpickler(io.BytesIO(message[8 : 8 + size].numpy().tobytes()), message[8 + size :]).load()


def _joined(messages: Sequence[Tensor]) -> Tensor:
    parts = [part for message in messages for part in (_length(len(message)), message)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def _parted(letter: Tensor) -> Iterator[Tensor]:
    while len(letter):
        size = int(letter[:8].clone().view(torch.int64))
        yield letter[8 : 8 + size]
        letter = letter[8 + size :]


def _length(size: int) -> Tensor:
    return torch.tensor([size]).view(torch.uint8)
