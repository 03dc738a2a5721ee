"""Accuracy of pruned small networks that this script trains itself, without labels or training: the table of README.md.

    python -m benchmarks.small_networks [--networks residual ...] [--shares 0.1 0.25] [--seeds 5] [--json FILE]

Four networks are trained on scikit-learn's digits, each from several seeds. Then a share of the multiply-adds stays,
chosen among channels with the settings of the demo (`recipe=digits`): planner optimal, blockwise, 256 calibration
images. Beside it are a random plan of the same cost with the same repair, and the best of torch-pruning's criteria with
BatchNorm re-estimated; the best criterion is the one whose network is nearest to the original on calibration images.

Differences are paired, image by image, over the 797 test images and all seeds. Their 95 % intervals hold the chance of
the test images and of the seeds. A row that the JSON file has is not run again, so the table can be made in parts.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t
from torch import nn

import simprune as sp
from benchmarks._torch_pruning import best
from simprune.core.plan import Plan
from simprune.core.store import write_whole
from simprune.core.structures import UnitGroup
from simprune.sources.digits import digits
from simprune.structures import structure
from simprune.trace.answers import answer, hits
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from simprune.zoo import VGG, DenseNet, MobileNet, ResidualCNN

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: ResidualCNN(1, widths=(16, 32, 64), depths=(3, 3, 3)),
    "VGG": lambda: VGG(1, widths=(32, 64), depths=(2, 3), hidden=64),
    "MobileNet": lambda: MobileNet(1, widths=(16, 24, 32), depths=(1, 2, 2), expansion=4, last=128),
    "DenseNet": lambda: DenseNet(1, depths=(4, 4), growth=12, stem=24),
}
METHODS = {
    "ours": "simprune",
    "random": "random plan, our repair",
    "torch-pruning": "torch-pruning, best criterion, BatchNorm re-estimated",
}
TRAINING = {"epochs": 20, "lr": 0.05}


class Trained:
    """A network, trained from a seed, and what all methods share."""

    def __init__(self, name: str, seed: int) -> None:
        data = digits(batch_size=32, seed=seed)
        self.calibration, self.test, self.seed = list(digits().calibration), list(digits().test or ()), seed
        torch.manual_seed(seed)
        self.model = NETWORKS[name]()
        sp.finetune(self.model, data.train or (), seed=seed, **TRAINING)
        self.model.eval()
        self.network = Network.trace(self.model, self.calibration[0])
        self.redundancy = sp.analyze(self.model, self.calibration, structures=["channels"])
        self.original = answer(self.model, self.test)

    def small(self, method: str, share: float) -> tuple[nn.Module, Plan]:
        """The smaller network of a method, and its plan."""
        if method == "torch-pruning":
            structures, _ = structure("channels").find(self.network)
            groups = [group for group in structures if isinstance(group, UnitGroup)]
            fixed = [[name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)][-1]]
            plan = best(self.network, groups, share, self.calibration, self.calibration, fixed)
            return sp.reestimate_batchnorm(sp.apply(plan, self.model), self.calibration), plan
        planner = "optimal" if method == "ours" else "random"
        plan = sp.plan(self.redundancy, {"macs": share}, planner, self.seed)
        small = sp.apply(plan, self.model)
        sp.reconstruct(small, plan, self.model, self.calibration, "blockwise")
        return small, plan

    def right(self, model: nn.Module) -> list[int]:
        """Of every test image, 1 where a model is right."""
        right = hits(answer(model, self.test), self.original)
        assert right is not None
        return right.int().tolist()


def measure(name: str, seed: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """All rows of one network and seed."""
    trained = Trained(name, seed)
    common = {"network": name, "seed": seed}
    whole = measure_cost(trained.model, trained.network.example).macs
    rows = [common | {"share": 1.0, "method": "original", "macs": 1.0, "right": trained.right(trained.model)}]
    for share in shares:
        for method in METHODS:
            small, plan = trained.small(method, share)
            row = {"share": share, "method": method, "macs": measure_cost(small, trained.network.example).macs / whole}
            rows.append(common | row | {"criterion": plan.planner.get("criterion"), "right": trained.right(small)})
            print(name, seed, share, method, f"{np.mean(rows[-1]['right']):.2%}", flush=True)
    return rows


def difference(ours: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean of (ours - other) in points, and half of its 95 % interval.

    The variances over images and over seeds are added, with Satterthwaite's degrees of freedom: the seeds are few.

    Args:
        ours: (seeds, images) whether the network is right; images may be those of several networks.
        other: the same of the other method.
    """
    apart = 100 * (ours - other)
    seeds, images = apart.shape
    over_images = apart.mean(0).var(ddof=1) / images
    over_seeds = apart.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    variance = over_images + over_seeds
    if not variance:
        return float(apart.mean()), 0.0
    freedom = variance**2 / (over_images**2 / (images - 1) + over_seeds**2 / max(seeds - 1, 1))
    return float(apart.mean()), float(t.ppf(0.975, freedom) * variance**0.5)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    seeds = len({row["seed"] for row in rows})
    table = Table(title=f"accuracy on 797 test images, means over {seeds} seeds; margins in points")
    for column in ("multiply-adds", "network", "original", *METHODS.values(), "over random", "over torch-pruning"):
        table.add_column(column, justify="right")

    def right(network: str, share: float, method: str) -> np.ndarray:
        some = [row for row in rows if (row["network"], row["share"], row["method"]) == (network, share, method)]
        return np.array([row["right"] for row in sorted(some, key=lambda row: row["seed"])])

    networks = list(dict.fromkeys(row["network"] for row in rows))
    for share in sorted({row["share"] for row in rows} - {1.0}, reverse=True):
        sets = {name: [name] for name in networks} | ({"all": networks} if len(networks) > 1 else {})
        for title, names in sets.items():
            original = np.concatenate([right(name, 1.0, "original") for name in names], 1)
            columns = [np.concatenate([right(name, share, method) for name in names], 1) for method in METHODS]
            means = [f"{100 * values.mean():.2f}" for values in (original, *columns)]
            margins = ["{:+.2f} ± {:.2f}".format(*difference(columns[0], other)) for other in columns[1:]]
            table.add_row(f"{share:.0%}", title, *means, *margins)
        table.add_section()
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1], help="of the multiply-adds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("outputs/small_networks.json"))
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    for seed, name in itertools.product(range(options.seeds), options.networks):
        done = {row["share"] for row in rows if (row["network"], row["seed"]) == (name, seed)}
        if wanted := [share for share in options.shares if share not in done]:
            rows += [row for row in measure(name, seed, wanted) if row["share"] not in done]
            write_whole(options.json, json.dumps(rows))
    show(rows)


if __name__ == "__main__":
    main()
