"""Latency of a 12-layer transformer before and after layers go: one table, ratios in one run.

    python -m benchmarks.transformer_latency [--layers 12] [--width 384] [--tokens 128] [--batch 8] [--drop 2 4 6]

A randomly initialised BERT of transformers: weights do not matter to the time. Layers go as `simprune.apply` removes
them, out of the list. The networks take turns, so that whatever else the machine does meets all of them alike; the
table has medians, and medians of the ratio to the original of the same turn.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import fingerprint
from simprune.trace.cost import measure_cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 12, "width": 384, "tokens": 128, "batch": 8, "turns": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--drop", type=int, nargs="+", default=[2, 4, 6], help="how many layers go")
    parser.add_argument("--out", type=Path, default=Path("outputs/transformer_latency.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        num_hidden_layers=options.layers,
        hidden_size=options.width,
        num_attention_heads=options.width // 64,
        intermediate_size=4 * options.width,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(100, 30000, (options.batch, options.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    networks: dict[int, nn.Module] = {0: model}
    for count in options.drop:
        networks[count] = without(model, batch, count)
    seconds = {count: [] for count in networks}
    with torch.inference_mode():
        for turn in range(options.turns + 1):
            for count, network in networks.items():
                start = time.perf_counter()
                network(**batch)
                if turn:  # the first warms up
                    seconds[count].append(time.perf_counter() - start)
    report(networks, seconds, batch, options)


def without(model: nn.Module, batch: dict, count: int) -> nn.Module:
    """The last `count` layers but one go: those that trained models spare most easily (Gromov et al. 2024)."""
    layers = model.get_submodule("bert.encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    gone = range(len(layers) - 1 - count, len(layers) - 1)
    edits = tuple(sp.Edit("block", f"bert.encoder.layer.{place}") for place in gone)
    return sp.apply(sp.Plan(edits, fingerprint(model), describe(example_of(batch))), model)


def report(networks: dict[int, nn.Module], seconds: dict[int, list], batch: dict, options: argparse.Namespace) -> None:
    table = Table(title=f"BERT, {options.layers} layers of width {options.width}, {options.batch} x {options.tokens}")
    for column in ("layers", "macs", "ms", "times faster"):
        table.add_column(column, justify="right")
    rows = []
    whole = measure_cost(networks[0], example_of(batch)).macs
    for count, network in networks.items():
        ratios = [before / after for before, after in zip(seconds[0], seconds[count], strict=True)]
        rows.append(
            {
                "layers": options.layers - count,
                "macs": measure_cost(network, example_of(batch)).macs / whole,
                "milliseconds": 1e3 * statistics.median(seconds[count]),
                "faster": statistics.median(ratios),
            }
        )
        last = rows[-1]
        shown = (f"{last['macs']:.1%}", f"{last['milliseconds']:.1f}", f"{last['faster']:.2f}")
        table.add_row(str(last["layers"]), *shown)
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
