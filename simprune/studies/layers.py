"""Where studies read representations, and of which inputs."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import cast

import torch
from torch import Tensor, nn

from simprune.core.names import did_you_mean
from simprune.studies.images import Images
from simprune.trace.capture import capture
from simprune.trace.sites import Layout, Site

LISTS = (nn.Sequential, nn.ModuleList)


def layers_of(model: nn.Module, patterns: Sequence[str] = ()) -> list[str]:
    """Names of the modules along the depth of a network at whose output a representation is read.

    They are the units of its lists of modules: a block, or a layer with weights with the normalisation and activation
    behind it. The last one, whose output are the logits, is left out.

    Args:
        model: the network.
        patterns: names of modules, in which * stands for anything, to read at instead.

    Raises:
        ValueError: for a pattern that fits no module.

    >>> layers_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))
    ['2']
    """
    if patterns:
        names = [name for name, _ in model.named_modules() if name]
        for pattern in patterns:
            if not any(fnmatch(name, pattern) for name in names):
                raise ValueError(f"layers: no module fits {pattern!r}; {did_you_mean(pattern, names)}")
        return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    units: list[str] = []
    for name, module in _along(model, ""):
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            units.append(name)
        elif units and not _rearranges(module):
            units[-1] = name
    return units[:-1]


def _along(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, LISTS) or any(_lists_blocks(inner) for inner in child.modules()):
            yield from _along(child, f"{path}.")
        else:
            yield path, child


def _lists_blocks(module: nn.Module) -> bool:
    """Whether it is a list of several modules that have modules themselves."""
    return isinstance(module, LISTS) and sum(any(child.children()) for child in module) > 1


def _rearranges(module: nn.Module) -> bool:
    """Whether it pools or flattens, and adds nothing that the representation before it does not have."""
    return "Pool" in type(module).__name__ or isinstance(module, nn.Flatten | nn.Identity | nn.Dropout)


def check_layout(layout: str) -> None:
    """ValueError unless the layout gives one row for every input."""
    if layout not in ("flatten", "pool"):
        raise ValueError(f'layout must be "flatten" or "pool"; got {layout!r}')


def representations(model: nn.Module, inputs: Tensor, layers: Sequence[str], layout: str = "pool") -> dict[str, Tensor]:
    """Rows (N, D) of every layer for inputs (N, ...).

    Args:
        model: the network.
        inputs: as it takes them.
        layers: names of modules.
        layout: "flatten" for all entries of a layer's output, "pool" for means over positions.

    Raises:
        KeyError: for a module that the network does not have.
        ValueError: for another layout.
    """
    check_layout(layout)
    sites = [Site(name, layout=cast(Layout, layout)) for name in layers]
    return capture(model, list(inputs.split(128)), sites)


def balanced(images: Images, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Test images, as many of every class, in random order, with their labels.

    Args:
        images: to draw from.
        count: number of images; fewer where it is no multiple of the classes, or where a class has too few.
        seed: of the draw.

    Raises:
        ValueError: for fewer images than classes.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.test), generator=generator)
    labels = images.test_labels[order]
    classes = labels.unique()
    each = min(count // len(classes), int(labels.bincount()[classes].min()))
    if each < 1:
        raise ValueError(f"inputs must be at least the number of classes, {len(classes)}; got {count}")
    chosen = torch.cat([(labels == label).nonzero()[:each, 0] for label in classes]).sort().values
    return images.test[order[chosen]], labels[chosen]
