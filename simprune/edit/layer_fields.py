"""Fields of configurations that count layers, or name them by number, and what becomes of them when layers go.

Which field counts a list of layers is found out by building the model from the configuration with one layer fewer: the
tensors of that list's last layer are missing, and no others. So a configuration that encoder and decoder share loses
the layers of the right side. What a field says of single layers cannot be seen in shapes; such fields stand here by
name, and others are not touched.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

from torch import nn

from simprune.edit.configuration import Field, built, changed, fields_of, owner_of
from simprune.edit.reopening import is_pretrained

# Names of counts where a configuration cannot be tried out: one that a module holds as a copy, and of foreign models.
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
# Lists with one entry per layer, such as `layer_types` and `layers_block_type`.
PER_LAYER = re.compile(
    r"(layers?|block|attention|mlp|attn)_(block_)?(types?|configs|type_list)$|^no_rope_layers$|^attention_layers$"
    r"|^attn_layers$|^attention_window$|^layers_num_experts$|^intermediate_size$|^num_(attention|key_value)_heads$"
)
# Lists of the numbers of some layers, such as `mlp_only_layers` and `cross_attention_layers`.
NUMBERS = re.compile(
    r"layers$|layer_(ids|idxs?|indices|indexes)$|(block|attn|att|attention|visual)_(idxs?|indices|indexes)$"
)
FIRST = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")  # numbers of layers at the beginning
LAST = ("num_kv_shared_layers",)  # numbers of layers at the end
SIDES = ("encoder", "decoder")


def counters(model: nn.Module, path: str, length: int) -> list[tuple[Any, str, int | None]]:
    """(configuration, field, position) of all that state the length of a list of layers.

    The position is that in a list, such as the `depths` of stages; None for a field that is a number.

    Args:
        model: that contains the list.
        path: name of the list.
        length: of the list.
    """
    parts = path.split(".")[:-1]
    above = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1)]
    configs = {id(config): config for module in above if (config := getattr(module, "config", None)) is not None}
    root = getattr(model, "config", None)
    tried = _tried(model, path, length)
    found = [(owner_of(root, field), field[1], position) for field, position in tried or ()]
    known = set() if tried is None else {id(owner_of(root, field)) for field, _ in fields_of(root)}
    for config in configs.values() if isinstance(model.get_submodule(path), nn.ModuleList) else ():
        if id(config) not in known:
            found += [(config, name, None) for name in _named(config, "decoder" in parts, length)]
    return found


def _tried(model: nn.Module, path: str, length: int) -> list[tuple[Field, int | None]] | None:
    """Fields of the model's configuration without one of which the list's last layer is not built; None: not known."""
    config = getattr(model, "config", None)
    whole = built(model, config) if is_pretrained(model) else None
    if whole is None:
        return None
    fields = []
    for field, value in fields_of(config):
        entries = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for position, number in entries:
            if type(number) is int and number == length:
                less = built(model, changed(config, {field: lowered(value, position, length - 1)}))
                lost = set() if less is None else whole.keys() - less.keys()
                if (
                    lost
                    and not (less or {}).keys() - whole.keys()
                    and all(name.startswith(f"{path}.") for name in lost)
                ):
                    fields.append((field, position))
    return fields


def lowered(value: Any, position: int | None, count: int) -> Any:
    """A count, or a list of counts with another one at a position.

    >>> lowered([2, 6, 2], 1, 5)
    [2, 5, 2]
    """
    return count if position is None else [*value[:position], count, *value[position + 1 :]]


def _named(config: Any, decoder: bool, length: int) -> list[str]:
    """Counts by name. Where a configuration has one for decoders, a list in a decoder is counted by that one alone."""
    mapped = getattr(config, "attribute_map", {})
    own = [name for name in DECODER_COUNTS if decoder and getattr(config, name, None) is not None]
    names = [name for name in (own or COUNTS) if getattr(config, name, None) == length]
    if own and not set(own) & set(mapped.values()) and not getattr(config, "is_encoder_decoder", False):
        names += [name for name in COUNTS if getattr(config, name, None) == length]  # a copy for the decoder alone
    return list(dict.fromkeys(mapped.get(name, name) for name in names))


def rewritten(config: Any, stays: Sequence[bool], path: str) -> Iterator[tuple[str, Any]]:
    """(field, new value) of a configuration's fields that say something of single layers.

    Args:
        config: that counts the layers.
        stays: of every layer, whether it stays.
        path: name of the list of layers.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(mlp_only_layers=[0, 2], layer_types=["full", "sliding", "full"], eos_token_id=[1, 2])
    >>> list(rewritten(config, [True, False, True], "model.layers"))
    [('mlp_only_layers', [0, 1]), ('layer_types', ['full', 'full'])]
    """
    count, number = len(stays), {old: new for new, old in enumerate(compress(range(len(stays)), stays))}
    values = vars(config)
    step, dense = values.get("decoder_sparse_step"), values.get("mlp_only_layers")
    periodic = isinstance(step, int) and step > 1 and isinstance(dense, list | tuple)
    if periodic:  # every so many layers are mixtures: afterwards the others are listed
        dense = [index for index in range(count) if index in dense or (index + 1) % step]
        yield "mlp_only_layers", [number[index] for index in dense if index in number]
        yield "decoder_sparse_step", 1
    yield from _stages(values, stays)
    parts = path.split(".")
    for name, value in values.items():
        if any(name.startswith(f"{side}_") and side not in parts for side in SIDES if set(SIDES) & set(parts)):
            continue
        if name in (*FIRST, *LAST):
            if type(value) is int and 0 < value <= count:
                yield name, sum(stays[:value] if name in FIRST else stays[count - value :])
        elif name == "attention_types" and isinstance(values.get("attention_layers"), list):  # runs of kinds: GPT-Neo
            yield name, [[list(compress(values["attention_layers"], stays)), 1]]
        elif isinstance(value, list | tuple) and len(value) == count and PER_LAYER.search(name):
            yield name, type(value)(compress(value, stays))
        elif name == "mlp_only_layers" and periodic:
            continue
        elif NUMBERS.search(name) and _are_numbers(value, count):
            yield name, type(value)(number[index] for index in value if index in number)


def _stages(values: Mapping[str, Any], stays: Sequence[bool]) -> Iterator[tuple[str, Any]]:
    """Fields of a backbone that names the stem and every layer as a stage, and those of which it gives the outputs.

    >>> values = {"stage_names": ["stem", "stage1", "stage2"], "_out_indices": [1, 2]}
    >>> list(_stages(values, [False, True]))
    [('stage_names', ['stem', 'stage1']), ('_out_indices', [1]), ('_out_features', ['stage1'])]
    """
    names = values.get("stage_names")
    if not isinstance(names, list) or len(names) != len(stays) + 1:
        return
    left = [0, *(number for number, stay in enumerate(stays, 1) if stay)]
    given = [number % len(names) for number in values.get("_out_indices") or ()]
    chosen = [left.index(number) for number in given if number in left] or [len(left) - 1]
    yield "stage_names", names[: len(left)]
    yield "_out_indices", chosen
    yield "_out_features", [names[number] for number in chosen]


def _are_numbers(value: Any, count: int) -> bool:
    """Whether a value is a list of the numbers of some layers."""
    if not isinstance(value, list | tuple) or not all(type(item) is int and 0 <= item < count for item in value):
        return False
    return len(set(value)) == len(value) > 0
