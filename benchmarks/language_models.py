"""Language models pruned without training, ours beside other ways, in one table.

    python -m benchmarks.language_models --model FOLDER [--gguf FILE] --texts FOLDER [--encoder FOLDER]
        [--rows "6 layers" ...] [--methods ours ...] [--draws 3] [--tokens 6144] [--windows 32] [--json FILE]

--model is a folder of transformers, or one that holds a GGUF file (`--gguf`), of a Llama-shaped causal model; the table
was made with SmolLM2-135M-Instruct. --texts holds text_calibration.txt (of which every draw takes other windows of 128
tokens), text_test.txt (another part of the same text) and text_other.txt (another text). --encoder is a sentence
encoder, all-MiniLM-L6-v2, with a table of its own (see benchmarks/_sentences.py).

A row is a share of the model; the methods of the others are in benchmarks/_peers.py. Every method gets the same
calibration windows. Per text: perplexity as a ratio to the original's, with the standard error of its logarithm over
windows; the share of tokens with the same most likely successor; the divergence in nats per token. Beside it arithmetic
and brackets: the share of prompts, of those that the original can do, still done. Seconds are CPU seconds of choice,
edit and repair; memory is the peak of resident memory beyond the original and the data.

A row that the JSON file has is not run again; with `--methods` left empty the table is only shown.
"""

import argparse
import ctypes
import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

import simprune as sp
from benchmarks import _peers as peers
from benchmarks._language import BATCH, LENGTH, Judge, batches, drawn, load_language_model, skills, windows
from benchmarks._sentences import compare_encoder
from simprune.core.plan import Edit
from simprune.core.store import write_whole

FINALISTS = 3  # as of the recipe `language_model_depth`
GREEDY = 4  # windows on which greedy choices compare outputs
Batches = Sequence[dict]
Method = Callable[[nn.Module, Batches, int], nn.Module]  # (original, calibration, draw) -> smaller model


# ---- ours ----


def ours_layers(count: int, model: nn.Module, calibration: Batches, draw: int, finalists: int = 0) -> nn.Module:
    """`count` layers by the divergence of the output, one after another, or of the best finalist; then the repair."""
    score = REPAIRED | {"steps": count}
    redundancy = sp.analyze(model, calibration, structures=["blocks"], block_score=score, damage=False)
    costs, gone = redundancy.costs, [entry.name for entry in redundancy.blocks[:count]]  # all cost the same
    budget = {"params": costs.after(dropped=gone).params / costs.total().params + 1e-9}
    plan = sp.plan(redundancy, budget, model=model, calibration=calibration, finalists=finalists)
    if len(plan.blocks) != count:
        raise ValueError(f"expected a plan without {count} layers; got one without {len(plan.blocks)}")
    return repaired(plan.edits, redundancy, model, calibration)


def random_layers(count: int, model: nn.Module, calibration: Batches, draw: int) -> nn.Module:
    """`count` layers by chance; then the repair."""
    return ours_blocks("blocks", "", count, model, calibration, draw, "block_influence", chance=True)


def ours_halves(count: int, model: nn.Module, calibration: Batches, draw: int, chance: bool = False) -> nn.Module:
    """`count` attention halves, in the same way."""
    choice = "block_influence" if chance else DIVERGENCE | {"steps": 2 * count}  # others may be missed less
    return ours_blocks("sub_blocks", "self_attn", count, model, calibration, draw, choice, chance)


def ours_blocks(
    kind: str, end: str, count: int, model: nn.Module, calibration: Batches, draw: int, score: Any, chance: bool
) -> nn.Module:
    """`count` structures of a kind whose names end so, by a score of blocks, or by chance."""
    redundancy = sp.analyze(model, calibration, structures=[kind], block_score=score, damage=False)
    entries = [entry for entry in redundancy.blocks if entry.block.name.endswith(end)]
    ranked = sorted(entries, key=lambda entry: entry.damage)
    chosen = random.Random(draw).sample(ranked, count) if chance else ranked[:count]
    edits = [Edit("block", entry.block.name, replace="zero" if end else "identity") for entry in chosen]
    return repaired(edits, redundancy, model, calibration)


def ours_units(share: float, model: nn.Module, calibration: Batches, draw: int, chance: bool = False) -> nn.Module:
    """The same share of every MLP's hidden units, by the score of channels, or by chance; then the repair."""
    score = "predictability" if chance else "second_order"
    planner = {"protect": ["residual"]}  # what it protects is not scored
    redundancy, edits = sp.analyze(model, calibration, structures=["channels"], score=score, planner=planner), []
    for entry in redundancy.channels:
        if ".mlp." in entry.group.name:
            size = entry.group.size
            order = random.Random(draw).sample(range(size), size) if chance else entry.order
            edits.append(Edit("channels", entry.group.name, tuple(order[: size - round(share * size)]), size))
    if len(edits) != (layers := len(peers.layers_of(model))):
        raise ValueError(f"{len(edits)} of {layers} MLPs can lose hidden units: the row would be of a larger model")
    return repaired(edits, redundancy, model, calibration)


def ours_mix(share: float, model: nn.Module, calibration: Batches, draw: int, chance: bool = False) -> nn.Module:
    """One plan of layers, halves, heads and hidden units that saves a share of all the blocks' parameters."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    inside = sum(parameter.numel() for layer in peers.layers_of(model) for parameter in layer.parameters())
    return sp.compress(
        model,
        calibration=calibration,
        structures=["blocks", "sub_blocks", "heads", "channels"],
        block_score=DIVERGENCE | {"steps": 10},
        planner={"name": "random" if chance else "greedy", "protect": ["residual"]},
        budget={"params": 1 - share * inside / whole},
        seed=draw,
    ).model


DIVERGENCE = {"name": "greedy_leave_one_out", "error": "divergence", "repair": False, "images": GREEDY}
REPAIRED = {"name": "greedy_leave_one_out", "error": "divergence", "images": 24, "measured": 8}


def repaired(edits: Sequence[Edit], redundancy: Any, model: nn.Module, calibration: Batches) -> nn.Module:
    plan = sp.Plan(tuple(edits), redundancy.fingerprint, redundancy.inputs)
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, calibration)
    return small


# ---- rows ----


def layer_methods(count: int) -> dict[str, Method]:
    """Ways to remove whole layers."""

    def chosen(choose: Callable, then: Callable | None, model: nn.Module, calibration: Batches, _: int) -> nn.Module:
        gone = choose(model, calibration, count)
        return peers.without(model, gone) if then is None else then(model, calibration, gone)

    return {
        "ours": partial(ours_layers, count, finalists=FINALISTS),
        "ours, one by one": partial(ours_layers, count),
        "random, our repair": partial(random_layers, count),
        "block influence (ShortGPT)": partial(chosen, peers.block_influence, None),
        "block influence + linear maps": partial(chosen, peers.block_influence, peers.linear_maps),
        "window by angle": partial(chosen, peers.window_by_angle, None),
        "window + linear map (ReplaceMe)": partial(chosen, peers.window_by_cosine, peers.linear_maps),
        "greedy leave-one-out": partial(chosen, greedy_choice, None),
        "greedy + linear maps": partial(chosen, greedy_choice, peers.linear_maps),
    }


def half_methods(count: int) -> dict[str, Method]:
    """Ways to remove attention halves."""

    def greedily(model: nn.Module, calibration: Batches, _: int) -> nn.Module:
        return peers.without(model, greedy_choice(model, calibration, count, halves=True), halves=True)

    return {
        "ours": partial(ours_halves, count),
        "random, our repair": partial(ours_halves, count, chance=True),
        "greedy leave-one-out": greedily,
    }


def unit_methods(share: float) -> dict[str, Method]:
    """Ways to keep a share of every MLP's hidden units."""

    def by_magnitude(then: str, model: nn.Module, calibration: Batches, _: int) -> nn.Module:
        return peers.narrow(model, calibration, peers.magnitude(model), share, then)

    def by_fluctuation(then: str, model: nn.Module, calibration: Batches, _: int) -> nn.Module:
        return peers.narrow(model, calibration, peers.fluctuation(model, calibration), share, then)

    return {
        "ours": partial(ours_units, share),
        "random, our repair": partial(ours_units, share, chance=True),
        "magnitude": partial(by_magnitude, "none"),
        "fluctuation + bias (FLAP)": partial(by_fluctuation, "bias"),
        "magnitude + ridge (GRAIL)": partial(by_magnitude, "ridge"),
        "fluctuation + ridge (GRAIL)": partial(by_fluctuation, "ridge"),
    }


def greedy_choice(model: nn.Module, calibration: Batches, count: int, halves: bool = False) -> list[int]:
    """The greedy choice on `GREEDY` windows: its time grows with layers x removals."""
    few = [{"input_ids": calibration[0]["input_ids"][:GREEDY]}]
    return peers.greedy(model, few, count, halves)


ROWS: dict[str, dict[str, Method]] = {
    "6 layers": layer_methods(6),
    "90 % of units": unit_methods(0.9),
    "a quarter, any mix": {"ours": partial(ours_mix, 0.25), "random, our repair": partial(ours_mix, 0.25, chance=True)},
    "7 attention halves": half_methods(7),
    "8 layers": layer_methods(8),
    "75 % of units": unit_methods(0.75),
    "3 layers": layer_methods(3),
}


# ---- figures ----


def resident(figure: str) -> int:
    """Bytes of this process's resident memory: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{figure}:")).split()[1]) * 1024


def measured(method: Method, model: nn.Module, calibration: Batches, draw: int) -> tuple[nn.Module, dict[str, float]]:
    """The smaller model, CPU seconds, and the peak of memory on the way."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.process_time()
    small = method(model, calibration, draw)
    return small, {"seconds": time.process_time() - start, "memory": resident("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gguf")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--methods", nargs="*", help="of a row; all by default")
    parser.add_argument("--draws", type=int, default=3, help="of calibration text")
    parser.add_argument("--tokens", type=int, default=6144, help="of calibration text")
    parser.add_argument("--windows", type=int, default=32, help="of each test text")
    parser.add_argument("--json", type=Path, default=Path("outputs/language_models.json"))
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else {}

    def add(key: str, row: dict[str, Any]) -> None:
        rows[key] = row
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.json, json.dumps(rows, indent=1))

    wanted = [
        (f"{row}|{method}|{options.tokens}|{draw}", row, method, draw)
        for draw in range(options.draws)
        for row in options.rows
        for method in ROWS[row]
        if options.methods is None or method in options.methods
    ]
    wanted = [entry for entry in wanted if entry[0] not in rows]
    if wanted:
        model, tokenizer = load_language_model(options.model, options.gguf)
        texts = {
            "held out": windows(tokenizer, options.texts / "text_test.txt")[: options.windows],
            "other": windows(tokenizer, options.texts / "text_other.txt")[: options.windows],
        }
        judge = Judge(model, texts, skills(tokenizer))
        known = windows(tokenizer, options.texts / "text_calibration.txt")
        for key, row, method, draw in wanted:
            calibration = batches(drawn(known, options.tokens // LENGTH, draw), BATCH)
            small, figures = measured(ROWS[row][method], model, calibration, draw)
            add(
                key,
                {"row": row, "method": method, "draw": draw, "tokens": options.tokens} | figures | judge.compare(small),
            )
            print(key, rows[key], flush=True)
            del small
    if options.encoder is not None:
        compare_encoder(options.encoder, options.texts, rows, add, options.draws)
    show([*rows.values()])


def show(rows: Sequence[dict[str, Any]]) -> None:
    """One table for language models and one for encoders; means over draws, and their spread."""
    columns = {
        "held out / other: perplexity ratio": lambda row: (row["held out"]["ratio"], row["other"]["ratio"]),
        "same first choice": lambda row: (row["held out"]["agreement"], row["other"]["agreement"]),
        "divergence": lambda row: (row["held out"]["kl"], row["other"]["kl"]),
        "arithmetic / brackets": lambda row: (row["arithmetic"], row["brackets"]),
    }
    table = Table(title="Ratios to the original; means over draws of calibration text, and their spread")
    for column in ("", "method", "tokens", "draws", *columns, "CPU s", "GB"):
        table.add_column(column)
    some = [row for row in rows if "method" in row]
    for key in dict.fromkeys((row["row"], row["method"], row["tokens"]) for row in some):
        drawn_rows = [row for row in some if (row["row"], row["method"], row["tokens"]) == key]
        cells = []
        for number, read in enumerate(columns.values()):
            values = np.array([read(row) for row in drawn_rows])
            spread = values.max(0) - values.min(0)
            text = " / ".join(f"{value:.{2 if number else 3}f}" for value in values.mean(0))
            cells.append(f"{text} ({spread[0]:.2f} / {spread[1]:.2f})" if len(values) > 1 and not number else text)
        seconds, memory = (np.mean([row[figure] for row in drawn_rows]) for figure in ("seconds", "memory"))
        table.add_row(
            key[0], key[1], str(key[2]), str(len(drawn_rows)), *cells, f"{seconds:.0f}", f"{memory / 1e9:.1f}"
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
