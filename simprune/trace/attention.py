"""Attention modules: which modules are self-attention, and how their heads lie in their tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from simprune.trace.layers import is_conv1d, matrix_of, output_dim

# Names of the children that project queries, keys and values apart, all at once, and the heads' joint output.
SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v"))
INTERLEAVED = ("query_key_value",)  # the queries of a key/value head, its key, its value, and so on for every one
FUSED = (("qkv",), ("qkv_proj",), ("to_qkv",), ("in_proj",), ("c_attn",), ("Wqkv",), INTERLEAVED)
OUTPUT = ("o_proj", "out_proj", "c_proj", "proj", "o", "to_out", "dense", "Wo")
# Norms of queries and keys: within a head, or with an entry for every entry of all heads.
NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "q_proj_layernorm", "k_proj_layernorm")
NORM = "norm"  # a LayerNorm of what the projections get
PARTED, PARTS = "CodeGenAttention", 4  # whose heads lie in so many parts, one for every core of a computer of its time
PER_HEAD = ("sinks",)  # parameters with one entry for every query head
# Names under which modules and configurations state numbers of heads and widths: a new spelling goes here alone.
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "h")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
HEAD_WIDTHS = ("head_dim", "attention_head_size", "dim_head", "head_size")
FUSED_WIDTHS = ("embed_dim",)  # of all heads together, where a single key/value head is fused with them
JOINT_WIDTHS = ("all_head_size", "split_size", "inner_dim", "attn_dim")  # of all heads together

Entry = tuple[str, int]  # a tensor and one of its dimensions


@dataclass(frozen=True)
class HeadRows:
    """Where `heads` heads lie in one tensor: one after the other along `dim`, from entry `start` on.

    Heads of two key/value heads begin `step` entries apart, by default directly one after the other. A head has `width`
    entries here, by default as many as the attention says.
    """

    tensor: str
    dim: int
    heads: int
    start: int = 0
    step: int = 0
    width: int = 0


@dataclass(frozen=True)
class Attention:
    """The layout of one self-attention module.

    Args:
        name: of the module.
        heads: number of query heads.
        groups: number of key/value heads, any of which serves `heads / groups` query heads, one after the other. Where
            a single key/value head serves all, it stays, and every query head is a group of its own.
        width: entries of one head.
        rows: where the heads lie in the weights and biases of the projections to queries, keys and values.
        joint: where they lie in the weight of the output projection.
        reads: tensors and dimensions along which the module's input channels lie.
        writes: the same for its output channels; empty where the output projection stands outside the module.
    """

    name: str
    heads: int
    groups: int
    width: int
    rows: tuple[HeadRows, ...]
    joint: HeadRows
    reads: tuple[Entry, ...]
    writes: tuple[Entry, ...]
    shared: bool = False  # whether a single key/value head serves all query heads
    parts: int = 1  # in which the heads lie, one of every part in each group

    @property
    def key_values(self) -> int:
        """Number of key/value heads."""
        return 1 if self.shared else self.groups

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Heads that can only go together: the query heads of one key/value head."""
        shared = self.heads // self.groups
        if self.parts > 1:
            return tuple(tuple(range(group, self.heads, self.groups)) for group in range(self.groups))
        return tuple(tuple(range(group * shared, (group + 1) * shared)) for group in range(self.groups))

    def entries(self, rows: HeadRows, group: int) -> tuple[int, ...]:
        """Entries along `rows.dim` that belong to one key/value head or to its query heads."""
        if self.parts > 1:
            starts = (rows.start + part * (rows.step or self.groups * self.width) for part in range(self.parts))
            return tuple(start + group * self.width + entry for start in starts for entry in range(self.width))
        size = rows.heads // self.groups * (rows.width or self.width)
        start = rows.start + group * (rows.step or size)
        return tuple(range(start, start + size))

    @property
    def layers(self) -> frozenset[str]:
        """Names of the projections."""
        tensors = [tensor for tensor, _ in self.reads] + [self.joint.tensor]
        return frozenset(tensor.rpartition(".")[0] for tensor in tensors)


def attentions(model: nn.Module) -> dict[str, Attention]:
    """The layouts of all self-attention modules whose layout is known, by name.

    Known are nn.MultiheadAttention, and modules whose parameters all lie in separate (`q_proj`, `k_proj`, `v_proj`;
    `query`, ...) or fused (`qkv`, `c_attn`) projections, an output projection, and norms within heads. Names suggest a
    layout here; removing heads from a copy proves it later.

    >>> attentions(nn.TransformerEncoderLayer(8, 2, 16))["self_attn"].units
    ((0,), (1,))
    """
    modules = dict(model.named_modules())
    layouts = {
        name: _of_multihead(name, m) if isinstance(m, nn.MultiheadAttention) else _of_projections(modules, name, m)
        for name, m in modules.items()
    }
    return {name: layout for name, layout in layouts.items() if layout is not None}


# ---- nn.MultiheadAttention ----


def _of_multihead(name: str, module: nn.MultiheadAttention) -> Attention | None:
    if module.bias_k is not None or module.add_zero_attn:
        return None
    prefix = f"{name}." if name else ""
    heads, width = module.num_heads, module.head_dim
    starts = [0, heads * width, 2 * heads * width]
    if module.in_proj_weight is not None:
        rows = [HeadRows(f"{prefix}in_proj_weight", 0, heads, start) for start in starts]
    else:
        rows = [HeadRows(f"{prefix}{x}_proj_weight", 0, heads) for x in "qkv"]
    reads = tuple((tensor, 1) for tensor in dict.fromkeys(part.tensor for part in rows))
    if module.in_proj_bias is not None:
        rows += [HeadRows(f"{prefix}in_proj_bias", 0, heads, start) for start in starts]
    joint, writes = HeadRows(f"{prefix}out_proj.weight", 1, heads), along_outputs(f"{prefix}out_proj", module.out_proj)
    return Attention(name, heads, groups=heads, width=width, rows=tuple(rows), joint=joint, reads=reads, writes=writes)


# ---- modules of projections ----


def _of_projections(modules: Mapping[str, nn.Module], name: str, module: nn.Module) -> Attention | None:
    children = dict(module.named_children())
    projections = _projections(children)
    output = _output_projection(modules, name, children)
    if not projections or output is None or not _holds_only(module, {*projections, *NORMS}, output, name):
        return None
    output_layer = modules[output]
    size = matrix_of(output_layer).shape[1]
    width = _head_width(module, size)
    sizes = [len(matrix_of(children[child])) for child in projections]
    groups = _key_value_heads(sizes, size, width) if width else 0
    if not groups:
        return None
    heads, prefix = size // width, f"{name}." if name else ""
    if type(module).__name__ == PARTED:
        return _of_parts(name, prefix + projections[0], children[projections[0]], output, output_layer, heads, width)
    layers = {prefix + child: children[child] for child in projections}
    shared = groups == 1 < heads
    rows = _head_rows(layers, heads, groups, width, interleaved=projections == INTERLEAVED and not shared)
    if shared:  # keys and values stay
        rows, groups = [part for part in rows if part.heads == heads], heads
    rows += _beside(module, prefix, heads, groups, width, shared)
    joint = HeadRows(f"{output}.weight", 1 - output_dim(output_layer), heads)
    reads = [(f"{layer}.weight", 1 - output_dim(projection)) for layer, projection in layers.items()]
    if NORM in children:
        reads += [(f"{prefix}{NORM}.{key}", 0) for key, _ in children[NORM].named_parameters()]
    writes = along_outputs(output, output_layer) if output.startswith(prefix) else ()
    return Attention(name, heads, groups, width, tuple(rows), joint, tuple(reads), writes, shared)


def _of_parts(
    name: str, projection: str, layer: nn.Module, output: str, output_layer: nn.Module, heads: int, width: int
) -> Attention | None:
    """CodeGen's layout: heads lie in four parts, and every part holds its queries, its values and its keys."""
    if heads % PARTS:
        return None
    local = heads // PARTS * width
    rows = tuple(
        HeadRows(tensor, dim, heads, number * local, 3 * local)
        for number in range(3)
        for tensor, dim in along_outputs(projection, layer)
    )
    joint = HeadRows(f"{output}.weight", 1 - output_dim(output_layer), heads)
    reads = ((f"{projection}.weight", 1 - output_dim(layer)),)
    writes = along_outputs(output, output_layer)
    return Attention(name, heads, heads // PARTS, width, rows, joint, reads, writes, parts=PARTS)


def _projections(children: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Children that project to queries, keys and values: three, or one for all; empty where there are none."""
    return next((names for names in SEPARATE + FUSED if all(_is_projection(children.get(n)) for n in names)), ())


def _output_projection(modules: Mapping[str, nn.Module], name: str, children: Mapping[str, nn.Module]) -> str | None:
    """Full name of the output projection: a child, or the first part of one, in front of a dropout.

    In BERT it is `output.dense` beside the attention.
    """
    for child in OUTPUT:
        parts = [*children.get(child, nn.Identity()).children()]
        first = bool(parts) and _is_projection(parts[0]) and not any([*part.parameters()] for part in parts[1:])
        if first or _is_projection(children.get(child)):
            return (f"{name}." if name else "") + child + (".0" if first else "")
    parent = name.rpartition(".")[0]
    beside = f"{parent}.output.dense"
    return beside if parent and _is_projection(modules.get(beside)) else None


def _holds_only(module: nn.Module, known: set[str], output: str, name: str) -> bool:
    """Whether all parameters of a module lie in children that are known, or in the output projection."""
    prefix = f"{name}." if name else ""
    own = known | ({output.removeprefix(prefix).partition(".")[0]} if output.startswith(prefix) else set())
    own |= {NORM} if isinstance(getattr(module, NORM, None), nn.LayerNorm) else set()
    others = (part for child, part in module.named_children() if child not in own)
    free = [key for key, _ in module.named_parameters(recurse=False) if key not in PER_HEAD]
    return not free and all(next(part.parameters(), None) is None for part in others)


def _head_width(module: nn.Module, joint: int) -> int:
    """Entries of a head, as the module states them or their number; 0 where it states neither, or they do not fit."""
    width, heads = _stated(module, HEAD_WIDTHS), _stated(module, HEAD_COUNTS)
    width = width or (joint // heads if heads else 0)
    return 0 if not width or joint % width else width


def _stated(module: nn.Module, names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), 0)


def _key_value_heads(sizes: Sequence[int], joint: int, width: int) -> int:
    """Number of key/value heads for the output sizes of the projections; 0 where the sizes are not those of heads."""
    heads = joint // width
    groups = sizes[1] // width if len(sizes) > 1 else (sizes[0] - joint) // 2 // width
    return 0 if groups < 1 or heads % groups or sum(sizes) != (heads + 2 * groups) * width else groups


def _head_rows(
    layers: Mapping[str, nn.Module], heads: int, groups: int, width: int, interleaved: bool
) -> list[HeadRows]:
    """The heads in every tensor of the projections: queries, keys and values, one after the other where fused.

    Interleaved, they follow one another for every key/value head.
    """
    fused, step = len(layers) == 1, (heads // groups + 2) * width if interleaved else 0
    starts = (0, heads * width, (heads + groups) * width) if fused else (0, 0, 0)
    if interleaved:
        starts = (0, heads // groups * width, (heads // groups + 1) * width)
    names = [*layers] * 3 if fused else [*layers]
    return [
        HeadRows(tensor, dim, count, start, step)
        for name, start, count in zip(names, starts, (heads, groups, groups), strict=True)
        for tensor, dim in along_outputs(name, layers[name])
    ]


def _beside(module: nn.Module, prefix: str, heads: int, groups: int, width: int, shared: bool) -> list[HeadRows]:
    """The heads in norms of queries and keys that have entries for all of them, and in other parameters."""
    rows = [
        HeadRows(f"{prefix}{name}", 0, heads, width=1)
        for name in PER_HEAD
        if (tensor := module._parameters.get(name)) is not None and len(tensor) == heads
    ]
    for name in NORMS:
        count = heads if name.startswith("q") else groups
        for key, tensor in getattr(module, name, nn.Identity()).named_parameters():
            whole = tensor.shape[0] == count * width and tensor.ndim == 1
            if (whole or tuple(tensor.shape) == (count, width)) and not (shared and count != heads):
                rows.append(HeadRows(f"{prefix}{name}.{key}", 0, count, width=0 if whole else 1))
    return rows


# ---- one projection ----


def _is_projection(module: nn.Module | None) -> bool:
    return module is not None and (isinstance(module, nn.Linear) or is_conv1d(module))


def along_outputs(name: str, layer: nn.Module) -> tuple[Entry, ...]:
    """Tensors of a projection that have one entry per output, and the dimension along which these lie."""
    weight = (f"{name}.weight", output_dim(layer))
    return (weight,) if layer.bias is None else (weight, (f"{name}.bias", 0))
