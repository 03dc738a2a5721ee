"""How long similarity matrices take: simprune, the least they could take, and other libraries, in one process.

    python benchmarks/similarity_speed.py --layers 30 --rows 1000 --width 1024 --threads 2 \\
        --resi ../resi --similarity-repository ../similarity-repository \\
        --torch-cka ../PyTorch-Model-Compare --ckatorch ../centered-kernel-alignment

The floor is L Gram matrices and one L x N^2 product. The others compare pair by pair, so they are timed on
`--peer-layers` layers and scaled to L by the number of pairs; what cannot be imported is skipped and named.
CPU seconds are printed next to wall seconds: on a busy machine only they mean anything.
"""

import argparse
import contextlib
import importlib
import io
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from simprune import measures

PATHS = {
    "ReSi": "resi",
    "similarity-repository": "similarity_repository",
    "torch_cka": "torch_cka",
    "ckatorch": "ckatorch",
}
# simprune's id -> ReSi's class, where both compute the same or nearly the same
RESI = {
    "cka": "CKA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "hard_correlation_match": "HardCorrelationMatch",
    "soft_correlation_match": "SoftCorrelationMatch",
    "distance_correlation": "DistanceCorrelation",
    "eigenspace_overlap": "EigenspaceOverlapScore",
    "gulp": "Gulp",
    "linear_regression": "LinearRegression",
    "knn_jaccard": "JaccardSimilarity",
    "rank_similarity": "RankSimilarity",
    "second_order_cosine": "SecondOrderCosineSimilarity",
    "aligned_cosine": "AlignedCosineSimilarity",
    "angular_shape_metric": "OrthogonalAngularShapeMetricCentered",
    "orthogonal_procrustes": "OrthogonalProcrustesCenteredAndNormalized",
    "permutation_procrustes": "PermutationProcrustes",
    "procrustes_size_shape": "ProcrustesSizeAndShapeDistance",
    "rsa": "RSA",
    "rsm_norm_difference": "RSMNormDifference",
    "concentricity": "ConcentricityDifference",
    "magnitude": "MagnitudeDifference",
    "uniformity": "UniformityDifference",
}


@dataclass
class Timing:
    """The best of several runs, in seconds, scaled to all pairs if only some were computed."""

    name: str
    wall: float
    cpu: float
    scaled_from: int | None = None  # layers


def best(name: str, run: Callable[[], object], repeats: int, scale: float = 1.0, layers: int | None = None) -> Timing:
    found = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Timing(name, min(w for w, _ in found) * scale, min(c for _, c in found) * scale, layers)


def floor(layers: list[Tensor]) -> Tensor:
    grams = torch.stack([(X @ X.T).flatten() for X in layers])
    return grams @ grams.T


def pairwise(function: Callable[[Tensor, Tensor], object], layers: list[Tensor]) -> None:
    for i, X in enumerate(layers):
        for Y in layers[i:]:
            function(X, Y)


class Replay(torch.nn.Module):
    """A model whose layers return given activations: how torch_cka can be given any."""

    def __init__(self, layers: list[Tensor]):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in layers)
        self.activations = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer, rows in zip(self.layers, self.activations, strict=True):
            layer(rows)
        return x


def torch_cka_matrix(library, layers: list[Tensor]) -> None:
    names = [f"layers.{k}" for k in range(len(layers))]
    inputs = torch.utils.data.TensorDataset(torch.zeros(len(layers[0]), 1))
    loader = torch.utils.data.DataLoader(inputs, batch_size=len(inputs))
    model = Replay(layers)
    library.CKA(model, model, "a", "b", model1_layers=names, model2_layers=names).compare(loader)


def peer_runs(name: str, library, layers: list[Tensor], repository_id: str) -> Callable[[], None]:
    """What computes linear CKA of all pairs with the other library, through its public interface."""
    if name == "ReSi":
        measure = library.CKA()
        return lambda: pairwise(lambda X, Y: measure(X, Y, "nd"), layers)
    if name == "similarity-repository":
        function = library.make(repository_id)
        arrays = [X.numpy() for X in layers]
        return lambda: pairwise(function, arrays)
    if name == "torch_cka":
        return lambda: torch_cka_matrix(library, layers)
    return lambda: pairwise(lambda X, Y: library.cka_batch(X[None], Y[None]), layers)


MODULES = {
    "ReSi": "repsim.measures",
    "similarity-repository": "similarity",
    "torch_cka": "torch_cka",
    "ckatorch": "ckatorch.core",
}


def import_peer(name: str, path: Path | None):
    """The library, or None with a message; its source folder comes first on the path."""
    if path:
        sys.path.insert(0, str(path.resolve()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(MODULES[name])
    except Exception as error:  # whatever a foreign library does on import
        print(f"{name} is skipped: {type(error).__name__}: {error}")
        return None


def show(title: str, rows: list[Timing], base: Timing, against: str) -> None:
    table = Table("", "wall s", "CPU s", f"CPU / {against}", title=title)
    for each in rows:
        scaled = f" (scaled from {each.scaled_from} layers)" if each.scaled_from else ""
        table.add_row(each.name + scaled, f"{each.wall:.3f}", f"{each.cpu:.3f}", f"{each.cpu / base.cpu:.2f}")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-layers", type=int, default=4, help="layers that other libraries are timed on")
    parser.add_argument("--every", action="store_true", help="also every measure that ReSi has, over 10 layers")
    parser.add_argument("--every-rows", type=int, default=300)
    parser.add_argument("--every-width", type=int, default=64)
    parser.add_argument(
        "--repository-id", default="measure/representation_similarity/cka-kernel=linear-hsic=gretton-score"
    )
    parser.add_argument("--json", type=Path, default=Path("similarity_speed.json"))
    for name, option in PATHS.items():
        parser.add_argument("--" + option.replace("_", "-"), type=Path, help=f"source folder of {name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    layers = [torch.randn(options.rows, options.width, dtype=dtype) for _ in range(options.layers)]
    named = {str(k): X for k, X in enumerate(layers)}

    least = best("floor", lambda: floor(layers), options.repeats)
    timings = [least]
    for id in ("cka", "cka_debiased"):
        timings.append(best(f"simprune {id}", lambda id=id: measures.matrix(id, named), options.repeats))
    few = layers[: options.peer_layers]
    peers = {name: import_peer(name, getattr(options, option)) for name, option in PATHS.items()}
    for name, library in peers.items():
        if library is None:
            continue
        pairs = (lambda n: n * n) if name == "torch_cka" else (lambda n: n * (n + 1) // 2)  # torch_cka does both halves
        scale = pairs(len(layers)) / pairs(len(few))
        try:
            run = peer_runs(name, library, few, options.repository_id)
            timings.append(best(name, run, 1, scale, len(few) if len(few) < len(layers) else None))
        except Exception as error:
            print(f"{name} failed: {type(error).__name__}: {error}")
    size = f"{options.layers} layers, {options.rows} x {options.width}, {options.dtype}, {options.threads} threads"
    show(f"Linear CKA, {size}", timings, least, "floor")

    compared = []
    if options.every and peers["ReSi"]:
        small = [torch.randn(options.every_rows, options.every_width) for _ in range(10)]
        named = {str(k): X for k, X in enumerate(small)}
        table = Table("measure", "simprune CPU s", "ReSi CPU s", "ReSi / simprune", title="10 layers against ReSi")
        for id, other in RESI.items():
            ours = best(id, lambda id=id: measures.matrix(id, named), options.repeats)
            try:
                measure = getattr(peers["ReSi"], other)()
                theirs = best(other, lambda m=measure: pairwise(lambda X, Y: m(X, Y, "nd"), small[:4]), 1, 55 / 10, 4)
            except Exception as error:
                print(f"ReSi's {other} failed: {type(error).__name__}: {error}")
                continue
            compared.append({"id": id, "simprune": asdict(ours), "resi": asdict(theirs)})
            table.add_row(id, f"{ours.cpu:.3f}", f"{theirs.cpu:.3f}", f"{theirs.cpu / ours.cpu:.1f}")
        Console(width=110).print(table)

    versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    settings = {name: str(value) for name, value in vars(options).items()}
    result = {"settings": settings, "versions": versions, "cka": [asdict(t) for t in timings], "every": compared}
    options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
