"""What is wrong with a model, or with its batches, in one line before any work: which argument, and what to do."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from simprune.core.batches import all_tensors, device_of, inputs_of, move, rows_at, tensors_in
from simprune.core.blame import with_line
from simprune.core.cost import Example
from simprune.core.example import example_of, mapped, rows_of
from simprune.core.labels import check_labels
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.offload import offloaded

# layers that also run on one input without a batch dimension
TAKE_ONE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
LOADER = "give torch.utils.data.DataLoader(dataset, batch_size=64)"
TOLERANCE = 1e-3  # by which two answers to the same inputs may differ, as a share of the largest entry


def check_module(model: Any, name: str = "model") -> None:
    """Raise ValueError, with what to give instead, for what is no module whose layers can be edited.

    Args:
        model: what was given as a model.
        name: of the argument.

    >>> check_module({"weight": torch.zeros(2, 2)})
    Traceback (most recent call last):
    ValueError: model: expected a torch.nn.Module; got a state dict; build the network, call load_state_dict...
    """
    expected = f"{name}: expected a torch.nn.Module"
    if isinstance(model, type):
        raise ValueError(f"{expected}; got the class {model.__name__}; give an object of it, {model.__name__}(...)")
    if isinstance(model, Mapping):
        raise ValueError(f"{expected}; got a state dict; build the network, call load_state_dict, and give the network")
    if isinstance(model, torch.export.ExportedProgram):
        raise ValueError(f"{expected} with layers; got a program of torch.export; give the module that was exported")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{expected}; got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{expected} with layers; got a TorchScript module; give the module that was scripted")
    if hasattr(model, "_orig_mod"):
        raise ValueError(f"{expected} as it was written; got one from torch.compile; give {name}._orig_mod")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"{expected} as it was before {type(model).__name__}; give {name}.module")
    for key, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(f"{name}: {key} is a TorchScript module; put the module that was scripted in its place")
    if _unlayered(model):
        raise ValueError(f"{expected} with layers; got a graph of torch.export; give the module that was exported")
    stored = offloaded(model)
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            advice = "run the model on one batch first, or delete what no batch uses"
            raise ValueError(f"{name}: {key} is lazy and has no shape yet; {advice}")
        if tensor.is_meta and id(tensor) not in stored:
            raise ValueError(f"{name}: {key} is on the meta device and has no values; load the weights first")
        if tensor.device.type == "mps":
            raise ValueError(f"{name}: {key} is on mps, where nothing can be summed in float64; give {name}.cpu()")


def _unlayered(model: nn.Module) -> bool:
    """Whether a graph computes with weights itself, as those of torch.export do, and no layer holds them."""
    if not isinstance(model, torch.fx.GraphModule):
        return False
    own = dict(model.named_parameters())
    calls = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    read = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    return bool(own) and bool(read & own.keys()) and not any(key.rpartition(".")[0] in calls for key in own)


def check_runs(model: nn.Module, batch: Any, name: str, model_name: str = "model") -> None:
    """Raise ValueError unless the model runs on the first inputs of a batch.

    Args:
        model: a module that `check_module` accepts.
        batch: the first one.
        name: of the batches, such as "calibration".
        model_name: of the model, in errors.

    >>> check_runs(nn.Linear(4, 3), torch.zeros(2, 5), "calibration")
    Traceback (most recent call last):
    ValueError: the model does not run on the first calibration batch: RuntimeError: mat1 and mat2 shapes cannot be...
    """
    if _item(batch):
        raise ValueError(
            f"{name}: expected batches of several inputs; got single inputs with a label each, as of a dataset; "
            f"{LOADER}"
        )
    args, kwargs = move(example_of(batch), device_of(model))
    which = f"the first {name} batch"
    result, again = check_answers(model, batch, (args, kwargs), name, which, model_name, first=True)
    outputs = all_tensors(result)
    check_labels(batch, outputs)
    for output, value in outputs.items():
        if output in again and not _same(value, again[output]):
            which = _first_to_differ(model, args, kwargs)
            raise ValueError(
                f"the {model_name} answers the same {name} batch differently twice in evaluation mode{which}: nothing "
                "can be compared; switch off what is random in it, or what counts its calls"
            )


def check_answers(
    model: nn.Module,
    batch: Any,
    example: Example,
    name: str,
    which: str,
    model_name: str = "model",
    *,
    first: bool = False,
) -> tuple[Any, dict[str, Tensor]]:
    """Raise ValueError unless the model gives outputs that can be compared, one or more entries per input.

    Args:
        model: as of `check_runs`.
        batch: from which the example is.
        example: arguments of the model.
        name: of the batches.
        which: the batch in words, such as "the first calibration batch".
        model_name: of the model, in errors.
        first: whether it is the first batch, which may turn out to be a single input.

    Returns:
        What the model returns, and all outputs of a second run.
    """
    what = f"the {model_name} does not run on {which}"
    args, kwargs = example
    own = next((tensor.ndim for tensor in tensors_in(example)), 0)
    unbatched: list[nn.Module] = []

    def see(module: nn.Module, taken: tuple, named: dict) -> None:
        dimensions = len(cast(Tensor, module.weight).shape) - 1  # of one input
        if any(tensor.ndim == own == dimensions for tensor in islice(tensors_in((taken, named)), 1)):
            unbatched.append(module)

    try:
        with eval_mode(model), torch.no_grad():
            with hooks(before=[(module, see) for module in model.modules() if isinstance(module, TAKE_ONE)]):
                result = model(*args, **kwargs)
            again = all_tensors(model(*args, **kwargs))
            one_for_each = _one_for_each(model, result, args, kwargs)
    except Exception as error:  # the model is the user's and may raise anything
        if first:
            _refuse_single(model, batch, name)
        raise ValueError(f"{what}: {with_line(error)}{_advice(model, batch)}") from error
    if unbatched and first:
        _refuse_single(model, batch, name)
    if one_for_each:
        raise ValueError(
            f"{name}: the {model_name} returned a list with one item per input, as detectors do after non-maximum "
            "suppression; give a module that returns the tensors before it, whose first dimension counts inputs"
        )
    outputs = all_tensors(result)
    if not outputs:
        raise ValueError(f"{what}: it returned no tensor; return logits, a tuple or a dict with them")
    if all(value.ndim == 0 for value in outputs.values()):
        raise ValueError(f"{what}: it returned a number for {rows_of((args, kwargs))} inputs; return one row per input")
    return result, again


def _refuse_single(model: nn.Module, batch: Any, name: str) -> None:
    """Raise ValueError where a batch is one input without a batch dimension: where the model runs on two of it."""
    args, kwargs = move(inputs_of(batch), device_of(model))
    first = next(tensors_in((args, kwargs)), None)
    if first is None:
        return
    two = mapped(lambda value: torch.stack([value, value]) if isinstance(value, Tensor) else value, args, kwargs)
    try:
        with eval_mode(model), torch.no_grad():
            outputs = all_tensors(model(*two[0], **two[1]))
    except Exception:  # it is another fault, which the caller says
        return
    if any(value.ndim and len(value) == 2 for value in outputs.values()):
        raise ValueError(
            f"{name}: expected batches of several inputs; got a single input, {tuple(first.shape)}, without a "
            f"dimension that counts inputs; {LOADER}, or for one input x[None]"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two answers are equal up to rounding, which may differ on a GPU."""
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return one.shape == other.shape and bool(torch.equal(one, other))
    scale = float(one.abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
    return bool(torch.isclose(one, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True).all())


def _first_to_differ(model: nn.Module, args: tuple, kwargs: dict) -> str:
    """The first module that gives two outputs for the same input, in words; empty where no module inside does."""
    runs: list[dict[str, list[Any]]] = [{}, {}]
    names = {module: name for name, module in model.named_modules() if name}
    for seen in runs:

        def see(module: nn.Module, taken: tuple, named: dict, output: Any, seen: dict[str, list[Any]] = seen) -> None:
            pair = [[tensor.detach().clone() for tensor in tensors_in(part)] for part in ((taken, named), output)]
            seen.setdefault(names[module], pair)

        with eval_mode(model), torch.no_grad(), hooks(after=[(module, see) for module in names]):
            model(*args, **kwargs)
    for name, (inputs, outputs) in runs[0].items():
        if name in runs[1]:
            same = [all(map(_same, one, other)) for one, other in zip((inputs, outputs), runs[1][name], strict=True)]
            if same == [True, False]:
                return f", first in {name}"
    return ""


def _one_for_each(model: nn.Module, result: Any, args: tuple, kwargs: dict) -> bool:
    """Whether a model returned a list with one item for every input, such as its boxes, and not for every output."""
    inputs = rows_of((args, kwargs))
    if not isinstance(result, list) or len(result) != inputs:
        return False
    if all(isinstance(item, Tensor) and item.shape[:1] == (inputs,) for item in result):
        return False  # as from two heads
    first = rows_at((args, kwargs), torch.arange(inputs) == 0)
    again = model(*first[0], **first[1])
    return isinstance(again, list) and len(again) == 1


def _item(batch: Any) -> bool:
    """Whether a batch looks like an item of a dataset: one input and the number of its class."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        return False
    label = batch[1]
    return isinstance(label, int | float) or (isinstance(label, Tensor) and label.ndim == 0)


def _takes_one(model: nn.Module, whole: tuple | dict) -> bool:
    """Whether a model runs on all arguments of a batch as one."""
    args, _ = move(example_of(((whole,), None)), device_of(model))
    try:
        with eval_mode(model), torch.no_grad():
            model(*args)
    except Exception:  # it is another fault, which the caller says
        return False
    return True


def _advice(model: nn.Module, batch: Any) -> str:
    """What the user probably has to change, as the end of an error; empty where nothing is known."""
    args, kwargs = inputs_of(batch)
    first = next(tensors_in((args, kwargs)), None)
    if first is None:
        return "; the batch holds no tensor"
    shape = f"; its inputs are {tuple(first.shape)} of {str(first.dtype).removeprefix('torch.')}"
    labels = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    swapped = isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim > first.ndim
    if swapped and not first.is_floating_point():
        return f"{shape}: batches are (inputs, labels), in this order"
    own = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if own is not None and first.is_floating_point() and first.dtype != own.dtype:
        return f"{shape} and its weights of {str(own.dtype).removeprefix('torch.')}: give both the same type"
    if _takes_one(model, kwargs or args):
        kind = "dict" if kwargs else "tuple"
        return f"; the model takes the whole {kind} as its one argument: give batches as (({kind},), labels)"
    return f"{shape}; the first dimension counts inputs"
