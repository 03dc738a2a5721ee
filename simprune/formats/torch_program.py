"""The format "torch": a program of torch.export."""

from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from simprune.core.cost import Example
from simprune.core.registry import register
from simprune.core.store import Patient
from simprune.formats.written import Plain, Written, argument_names, free_sizes, ready, tensors_of

FILE = "model.pt2"


@register("format", "torch")
def torch_program(model: nn.Module, example: Example, folder: Path) -> Written:
    """A program of torch.export, model.pt2, which runs without the code of the model."""
    names, tensors, plain = argument_names(model, example), tensors_of(*example), Plain(model, example)
    with ready(plain):
        program = torch.export.export(plain, tensors, dynamic_shapes=free_sizes(tensors))
    with closing(Patient(folder / FILE)) as file:
        torch.export.save(program, file)  # pyright: ignore[reportArgumentType] - it only writes
    opened = torch.export.load(folder / FILE).module()
    usage = (
        f'import torch\n\nmodel = torch.export.load("{FILE}").module()\noutputs = model({", ".join(names)})  # a tuple'
    )
    return Written(lambda args, kwargs: list(opened(*tensors_of(args, kwargs))), usage)
