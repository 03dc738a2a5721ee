"""How long an analysis takes against the least it can cost: the bare forward passes and the matrix products.

    python -m benchmarks.analysis_speed --data FOLDER [--network resnet56] [--images 5170] [--repeats 3]

The analysis: blocks found and proven, the stream around all of them read, every layer against every other by
`cka_debiased` and `gbs`, block influence, windows, segments; and once more with chance and intervals, as `simprune
analyze` does by default. The floor: the model called on the same batches, and for both measures the products of the
rows, X'Y of all pairs of layers (and U (U'V) for gbs). `gram` is the floor without these identities: for both measures,
a Gram matrix of every layer and one product of layers x images^2. Runs alternate; CPU seconds, the least of `repeats`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks._cifar import DEPTHS, calibration_images, load
from benchmarks._folder import CIFAR, holding
from simprune import api as pipeline
from simprune import measures
from simprune.scores.estimate import estimate
from simprune.sources import Batches
from simprune.trace.network import Network

MEASURES = ("cka_debiased", "gbs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=holding(*CIFAR), required=True)
    parser.add_argument("--network", choices=DEPTHS, default="resnet56")
    parser.add_argument("--images", type=int, default=5170)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/analysis_speed.json"))
    options = parser.parse_args()
    model = load(options.data, options.network)
    images = calibration_images(options.data, options.images, 0)
    rows: dict[str, Tensor] = {}
    runs: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, images),
        "analysis": lambda: rows.update(analysis(model, images, 0, 0)),
        "analysis, chance and intervals": lambda: analysis(model, images, 20, 50),
        "products": lambda: products(list(rows.values())),
        "gram": lambda: gram(list(rows.values())),
    }
    analysis(model, calibration_images(options.data, 256, 0), 1, 2)  # what is imported on first use
    seconds = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    least = {name: min(some) for name, some in seconds.items()}
    report(least, rows, options)


def forward(model: nn.Module, images: Batches) -> None:
    with torch.inference_mode():
        for x, _ in images:
            model(x)


def analysis(model: nn.Module, images: Batches, null: int, bootstrap: int) -> dict[str, Tensor]:
    network = Network.trace(model, next(iter(images)))
    found = estimate(network, images, measures.get(MEASURES[0]), ("blocks",), damage=False)
    pipeline.examine(images, found, network, MEASURES, null, bootstrap)
    assert found.context is not None
    return found.context.stream.rows


def products(rows: list[Tensor]) -> None:
    """X'Y of all pairs for both measures; for gbs also what every row of X makes of it."""
    joined = torch.cat(rows, 1)
    start = 0
    for each in rows:
        behind = joined[:, start:]
        _ = each.T @ behind
        _ = each @ (each.T @ behind)
        start += each.shape[1]


def gram(rows: list[Tensor]) -> None:
    """Per measure a Gram matrix of every layer, and their products by tiles of rows, in float64 as the measures sum."""
    count = len(rows[0])
    for _ in MEASURES:
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for start in range(0, count, 64):
            tile = torch.stack([(each[start : start + 64] @ each.T).flatten() for each in rows]).double()
            total += tile @ tile.T


def report(least: dict[str, float], rows: dict[str, Tensor], options: argparse.Namespace) -> None:
    floors = {name: least["forward"] + least[name] for name in ("products", "gram")}
    count, layers = len(next(iter(rows.values()))), len(rows)
    table = Table(title=f"{options.network}, {layers} points, {count} images, {torch.get_num_threads()} threads")
    for column in ("run", "CPU seconds", "of forward + products", "of forward + gram"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, value in least.items():
        shares = [f"{value / floor:.2f}" if name.startswith("analysis") else "" for floor in floors.values()]
        table.add_row(name, f"{value:.2f}", *shares)
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"images": count, "points": layers, "cpu_seconds": least}, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
