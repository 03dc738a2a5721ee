"""The table of a sentence encoder: half of every MLP's hidden units, or 2 of 6 layers, without training.

The encoder is BERT-shaped, as all-MiniLM-L6-v2; an embedding is the mean of its tokens, of length one. Figures, on
sentences of the other part of the calibration text: the mean cosine to the original's embedding, and the share of the
10 nearest neighbours of a sentence that are still the same.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import simprune as sp
from simprune.core.plan import Edit

NEIGHBOURS = 10
LONGEST = 64  # tokens
SHARE, COUNT = 0.5, 2  # of hidden units that stay, and of layers that go
Batches = Sequence[dict[str, Tensor]]


def sentences(tokenizer: Any, path: Path, first: int, count: int) -> Batches:
    """Paragraphs of a text, cut to `LONGEST` tokens, as padded batches."""
    parts = [" ".join(part.split()) for part in path.read_text().split("\n\n")]
    parts = [part for part in parts if len(part) > 40][first : first + count]
    groups = [parts[start : start + 32] for start in range(0, len(parts), 32)]
    options = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
    return [{**tokenizer(group, **options)} for group in groups]


@torch.no_grad()
def embeddings(model: nn.Module, batches: Batches) -> Tensor:
    """(sentences, width) means over tokens, of length one."""

    def parts() -> Iterator[Tensor]:
        for batch in batches:
            mask = batch["attention_mask"][..., None].float()
            yield (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    return nn.functional.normalize(torch.cat([*parts()]), dim=-1)


def neighbours(rows: Tensor) -> Tensor:
    """(sentences, NEIGHBOURS) the nearest other sentences."""
    similar = rows @ rows.T
    return similar.fill_diagonal_(-2).topk(NEIGHBOURS).indices


def overlap(first: Tensor, second: Tensor) -> float:
    """The mean share of neighbours that two tables have in common."""
    return float((first[:, :, None] == second[:, None]).any(-1).float().mean())


def layers_of(model: nn.Module) -> Any:
    return model.get_submodule("encoder.layer")


# ---- ways to prune ----


def ours_units(model: nn.Module, calibration: Batches) -> nn.Module:
    """Half of every MLP's hidden units by the second-order score, then least squares."""
    redundancy = sp.analyze(model, calibration, structures=["channels"], damage=False)
    edits = [
        Edit(
            "channels", entry.group.name, tuple(entry.order[: round((1 - SHARE) * entry.group.size)]), entry.group.size
        )
        for entry in redundancy.channels
        if "intermediate" in entry.group.name
    ]
    return _repaired(edits, redundancy, model, calibration)


def ours_layers(model: nn.Module, calibration: Batches) -> nn.Module:
    """Two layers by the expected damage of the output, then least squares."""
    redundancy = sp.analyze(model, calibration, structures=["blocks"])
    ranked = sorted(redundancy.blocks, key=lambda entry: entry.damage)[:COUNT]
    return _repaired([Edit("block", entry.block.name) for entry in ranked], redundancy, model, calibration)


def magnitude(model: nn.Module, _: Batches) -> nn.Module:
    """Half of every MLP's hidden units by the product of the norms of their weights; nothing makes up for them."""
    small = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers_of(small):
            first, last = layer.intermediate.dense, layer.output.dense
            score = first.weight.norm(dim=1) * last.weight.norm(dim=0)
            lost = score.argsort()[: round((1 - SHARE) * len(score))]
            last.weight[:, lost] = 0
    return small


def dropped(model: nn.Module, calibration: Batches) -> nn.Module:
    """The two layers whose input and output are most alike (ShortGPT); nothing makes up for them."""
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for batch in calibration]
    pairs = zip(states[0], states[0][1:], strict=False)
    alike = [
        sum(float(nn.functional.cosine_similarity(s[n], s[n + 1], dim=-1).mean()) for s in states)
        for n, _ in enumerate(pairs)
    ]
    gone = sorted(range(len(alike)), key=alike.__getitem__)[-COUNT:]
    small = copy.deepcopy(model)
    layers = layers_of(small)
    small.get_submodule("encoder").layer = nn.ModuleList(layer for n, layer in enumerate(layers) if n not in gone)
    return small


def _repaired(edits: Sequence[Edit], redundancy: Any, model: nn.Module, calibration: Batches) -> nn.Module:
    plan = sp.Plan(tuple(edits), redundancy.fingerprint, redundancy.inputs)
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, calibration)
    return small


METHODS: dict[str, dict[str, Callable[[nn.Module, Batches], nn.Module]]] = {
    "half of every MLP": {"ours": ours_units, "magnitude": magnitude},
    "2 of 6 layers": {"ours": ours_layers, "block influence (ShortGPT)": dropped},
}


def compare_encoder(
    folder: Path,
    texts: Path,
    rows: Mapping[str, dict[str, Any]],
    add: Callable[[str, dict[str, Any]], None],
    draws: int,
) -> None:
    """Fill in the rows that are missing, and print the table: means over draws of 512 calibration sentences."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    tests = sentences(tokenizer, texts / "text_test.txt", 0, 512)
    wanted = embeddings(model, tests)
    table = Table(title="Cosine to the original's embedding / overlap of the 10 nearest neighbours")
    for column in ("", "method", "draws", "cosine / overlap", "CPU s"):
        table.add_column(column)
    for row, methods in METHODS.items():
        for name, method in methods.items():
            found = []
            for draw in range(draws):
                key = f"encoder|{row}|{name}|{draw}"
                if key not in rows:
                    calibration = sentences(tokenizer, texts / "text_calibration.txt", 512 * draw, 512)
                    start = time.process_time()
                    small = method(model, calibration)
                    seconds = time.process_time() - start
                    given = embeddings(small, tests)
                    same = overlap(neighbours(wanted), neighbours(given))
                    add(key, {"cosine": float((given * wanted).sum(1).mean()), "overlap": same, "seconds": seconds})
                found.append(rows[key])
            means = {figure: sum(entry[figure] for entry in found) / len(found) for figure in found[0]}
            figures = f"{means['cosine']:.3f} / {means['overlap']:.2f}"
            table.add_row(row, name, str(draws), figures, f"{means['seconds']:.0f}")
    Console(width=120).print(table)
