"""How time and memory of every measure grow with rows N, units D and layers L: exponents of a power law.

    python benchmarks/similarity_scaling.py --rows 128 256 512 --threads 2
    python benchmarks/similarity_scaling.py --measures cka svcca --rows 500 1000 2000 --json scaling.json

One size varies at a time, the others stay at the first given. Time is CPU time of `matrix`. Memory is the peak of
dense tensors held (inputs aside), without workspace inside one operation. At small sizes fixed costs flatten exponents.
"""

import argparse
import json
import math
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simprune import measures

SETTINGS = {
    "cka_minibatch": {"batch_size": 32},
    "cka_sparse": {"top": 8},
    "geometry_score": {"repeats": 20},
    "maximum_match": {"epsilon": 0.5},
    "partial_whitening_shape_metric": {"alpha": 0.5},
    "riemannian_distance": {"reg": 0.1},
}


def _is_dense(value) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided  # sparse ones have no storage


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations return, as long as they live."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if _is_dense(x)}
        for each in tree_leaves(result):
            if _is_dense(each):
                storage = each.untyped_storage()
                if storage._cdata not in given | self.seen:
                    self.seen.add(storage._cdata)
                    self.held += storage.nbytes()
                    self.peak = max(self.peak, self.held)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.held -= size


def layers_of(rows: int, width: int, count: int, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(rows, width, generator=generator)
    return {str(k): (common + torch.randn(rows, width, generator=generator)).to(device) for k in range(count)}


def cost(measure, rows: int, width: int, count: int, device: str) -> tuple[float, int]:
    """CPU seconds (on a GPU: seconds until done) and peak bytes."""
    layers = layers_of(rows, width, count, device)
    labels = torch.arange(rows) % 5 if measure.needs_labels else None
    extra = dict.fromkeys(measure.extras, layers["0"])
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(2):
        start = clock()
        measures.matrix(measure, layers, labels, **extra)
        times.append(clock() - start)
        if times[-1] > 0.2:
            break
    with PeakBytes() as memory:
        measures.matrix(measure, layers, labels, **extra)
    return min(times), memory.peak


def exponent(sizes: list[int], costs: list[float]) -> float:
    if len(costs) < 2 or min(costs) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes[: len(costs)]), np.log(costs), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measures", nargs="*", default=measures.names())
    parser.add_argument("--rows", nargs="+", type=int, default=[128, 256, 512, 1024])
    parser.add_argument("--widths", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--layers", nargs="+", type=int, default=[3, 6, 12])
    parser.add_argument("--limit", type=float, default=1.0, help="seconds after which larger sizes are left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("similarity_scaling.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    axes = {"N": options.rows, "D": options.widths, "L": options.layers}
    table = Table("measure", *(f"time ~ {axis}^" for axis in axes), *(f"memory ~ {axis}^" for axis in axes), "s", "MiB")
    results = []
    for id in options.measures:
        found: dict[str, list[tuple[float, int]]] = {}
        try:
            measure = measures.get(id, **SETTINGS.get(id, {}))
            for axis, sizes in axes.items():
                found[axis] = []
                for size in sizes:
                    at = {name: values[0] for name, values in axes.items()} | {axis: size}
                    found[axis].append(cost(measure, at["N"], at["D"], at["L"], options.device))
                    if found[axis][-1][0] > options.limit:
                        break
        except (ImportError, ValueError) as error:
            print(f"{id} is left out: {error}")
            continue
        fits = {axis: [exponent(axes[axis], [c[k] for c in costs]) for k in (0, 1)] for axis, costs in found.items()}
        seconds, peak = found["N"][-1]
        table.add_row(
            id, *(f"{fits[a][0]:.1f}" for a in axes), *(f"{fits[a][1]:.1f}" for a in axes),
            f"{seconds:.3f}", f"{peak / 2**20:.1f}",
        )  # fmt: skip
        results.append(
            {"id": id, "costs": found, "exponents": {a: {"time": t, "memory": m} for a, (t, m) in fits.items()}}
        )
    Console(width=120).print(table)
    print(f"s and MiB: at the largest N measured, D = {options.widths[0]}, L = {options.layers[0]}")
    options.json.write_text(json.dumps({"axes": axes, "threads": options.threads, "results": results}, indent=2))


if __name__ == "__main__":
    main()
