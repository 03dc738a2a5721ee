"""The format "onnx": a graph that onnxruntime and other engines run."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.cost import Example
from simprune.core.registry import register
from simprune.formats.written import Plain, Written, argument_names, free_sizes, outputs, ready, tensors_of

FILE = "model.onnx"
MOST = 1_500_000_000  # bytes of weights that one file may hold; protobuf ends at two gigabytes


@register("format", "onnx")
def onnx_graph(model: nn.Module, example: Example, folder: Path, *, opset: int | None = None) -> Written:
    """A graph of ONNX, model.onnx, checked with onnxruntime (needs simprune[export]).

    Args:
        model: the model.
        example: its arguments.
        folder: an empty folder.
        opset: the version of ONNX's operators; None: what torch takes.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"format onnx needs the package {error.name}; pip install 'simprune[export]'") from None
    given, tensors, results = argument_names(model, example), tensors_of(*example), list(outputs(model, *example))
    # a name that stands for an input and an output would be one tensor in the graph
    results = [f"{name}_out" if name in given else name.replace(".", "_") for name in results]
    plain = Plain(model, example)
    with ready(plain), _quiet():
        torch.onnx.export(
            plain, tensors, str(folder / FILE), dynamo=True, dynamic_shapes=free_sizes(tensors),
            input_names=given, output_names=results, opset_version=opset, verbose=False,
            external_data=sum(x.nbytes for x in model.state_dict().values() if isinstance(x, Tensor)) > MOST,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
        values = dict(zip(given, tensors_of(args, kwargs), strict=True))
        feeds = {name: values[name].detach().cpu().numpy() for name in names}
        return [torch.from_numpy(value) for value in session.run(None, feeds)]

    unused = [name for name in given if name not in names]
    notes = [f"the graph does not use {', '.join(unused)}"] if unused else []
    inputs = ", ".join(f'"{name}": {name}' for name in names)
    opens = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{FILE}")'
    usage = f"{opens}\noutputs = session.run(None, {{{inputs}}})"
    return Written(run, usage, notes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block torch's exporter says nothing of packages that it could use, and of its own old calls."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(level)
