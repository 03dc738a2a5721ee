"""Numbers of channels that modules state, and by which they split their tensors, after a cut.

A number that equals an old one by chance is changed as well; the proof on a copy shows where that is wrong.
"""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

# Attributes under which composite modules may state their number of channels.
WIDTHS = ("hidden_dim", "hidden_size", "embed_dim", "embedding_dim", "d_model", "num_features", "width")


def restate_widths(model: nn.Module, changed: Sequence[tuple[Sequence[str], int, int]], whole: Collection[str]) -> None:
    """Update the numbers of channels that modules around changed layers state.

    Args:
        model: that was cut.
        changed: names of layers that were cut together, and the width before and after.
        whole: names of modules that are cut as one operation, and whose numbers are known.
    """
    stating = [
        (module, name, attribute)
        for name, module in model.named_modules()
        for attribute in WIDTHS
        if type(vars(module).get(attribute)) is int and [*module.children()] and name not in whole
    ]
    for layers, old, new in changed:
        for module, name, attribute in stating:
            around = not name or any(layer.startswith(f"{name}.") for layer in layers)
            if around and vars(module)[attribute] == old:
                setattr(module, attribute, new)


def restate_lengths(module: nn.Module, sizes: Mapping[int, int]) -> None:
    """Update numbers by which a module splits its tensors."""
    for name, value in list(vars(module).items()):
        if type(value) is int and value in sizes and name != "training":
            setattr(module, name, sizes[value])
        elif isinstance(value, list | tuple) and value and all(type(part) is int and part in sizes for part in value):
            parts = [sizes[part] for part in value]
            setattr(module, name, parts if isinstance(value, list) else tuple(parts))
