"""Accuracy of pruned vision networks without labels or epochs, ours beside other ways, in one table.

    python -m benchmarks.vision_accuracy --data FOLDER [--efficientnet FOLDER] [--rows resnet56_jpeg/2.11 ...]
                                         [--methods ours ...] [--draws 3] [--json FILE]

FOLDER: see benchmarks/_cifar.py and benchmarks/_efficientnet.py; without --efficientnet its rows are left out. A row is
a network at a budget: ResNet-56 on JPEG images (10,000 test images), ResNet-20 on original pixels (1,017), and
EfficientNet-Lite1, an ImageNet network, on enlarged CIFAR-10 pictures, where only agreement can be measured. Every draw
is another set of calibration images. Nothing is chosen on test images: torch-pruning's criterion is the one whose
network, BatchNorm re-estimated, is nearest to the original on calibration images.

A row that the JSON file has is not run again, so the table can be run in parts; with `--methods` left empty it is only
shown. Differences to the original are paired, image by image; their interval at 95 % holds the chance of the test
images and, where there are several, of the draws. Seconds are CPU seconds, with the analysis.
"""

import argparse
import json
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import simprune as sp
from benchmarks._cifar import calibration_images, jpeg_images, load, test_images
from benchmarks._efficientnet import enlarged, load_efficientnet
from benchmarks._folder import CIFAR, holding
from simprune.core.plan import Plan
from simprune.core.redundancy import Redundancy
from simprune.core.spilled import chunks
from simprune.core.store import write_whole
from simprune.core.structures import UnitGroup
from simprune.sources import Batches
from simprune.structures import structure
from simprune.trace.answers import Answers, agreement, answer
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network

JUDGED = 512  # calibration images on which torch-pruning's criteria are compared
Repair = str | Mapping[str, Any]
# Blocks are fitted together to mirror images too, and to as many images as there are
THOROUGH = {"name": "blockwise", "mirror": 3, "values": 2**26}


@dataclass(frozen=True)
class Case:
    """A network at a share of its multiply-adds, with a number of calibration images."""

    network: str
    share: float
    images: int

    @property
    def name(self) -> str:
        return f"{self.network}/{1 / self.share:.2f}/{self.images}"


CASES = [
    Case("resnet56_jpeg", 1 / 2.11, 2048),
    Case("efficientnet", 0.8, 512),
    Case("efficientnet", 0.6, 512),
    Case("resnet20", 0.73, 2048),
    Case("resnet20", 0.5, 2048),
    Case("resnet56_jpeg", 1 / 2.11, 128),
    Case("resnet56_jpeg", 1 / 2.57, 2048),
    Case("resnet56_jpeg", 1 / 4, 2048),
]


class Setting:
    """A network, its test images and one draw of calibration images; what is expensive is computed once."""

    def __init__(self, folders: argparse.Namespace, network: str, images: int, draw: int):
        self.folders, self.name, self.images, self.draw = folders, network, images, draw
        self.charged = 0.0  # CPU seconds of what was already known when a method asked for it
        self._known: dict[Hashable, tuple[Any, float]] = {}

    @cached_property
    def model(self) -> nn.Module:
        if self.name == "efficientnet":
            return load_efficientnet(self.folders.efficientnet)
        return load(self.folders.data, self.name)

    @cached_property
    def calibration(self) -> Batches:
        if self.name == "resnet56_jpeg":
            return jpeg_images(self.folders.data, "train", self.images, self.draw)
        if self.name == "resnet20":
            return calibration_images(self.folders.data, self.images, self.draw)
        pictures = _pictures(self.folders.data, "calibration_images")
        drawn = np.random.default_rng(self.draw).permutation(len(pictures))[: self.images]
        return Batches(enlarged(pictures[drawn]), batch_size=32)

    @cached_property
    def test(self) -> Batches:
        return _test(self.name, self.folders.data)

    @cached_property
    def original(self) -> Answers:
        return _original(self.name, self.folders.data, self.model)

    @cached_property
    def network(self) -> Network:
        return Network.trace(self.model, next(iter(self.calibration)))

    @cached_property
    def fixed(self) -> list[str]:
        """Layers whose outputs torch-pruning leaves: the last one, and residual streams that shortcuts pad."""
        layers = [name for name, module in self.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        if self.name == "efficientnet":
            return layers[-1:]
        return [name for name in layers if "." not in name or not name.endswith("conv1")]

    def analysis(self, score: str = "second_order") -> Redundancy:
        """What `sp.analyze` finds."""
        return self.once(score, lambda: sp.analyze(self.model, self.calibration, score=score))

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed once; its CPU seconds are in `charged` every time but the first."""
        if key in self._known:
            value, seconds = self._known[key]
            self.charged += seconds
            return value
        start = time.process_time()
        self._known[key] = make(), time.process_time() - start
        return self._known[key][0]


@lru_cache(2)
def _pictures(folder: Path, key: str) -> Tensor:
    return torch.tensor(np.load(folder / "cifar10_lossless.npz")[key]).permute(0, 3, 1, 2)


@lru_cache(1)
def _test(network: str, folder: Path) -> Batches:
    if network == "resnet56_jpeg":
        return jpeg_images(folder, "test", batch_size=256)
    if network == "resnet20":
        return test_images(folder)
    return Batches(enlarged(_pictures(folder, "test_images")), batch_size=64)


@lru_cache(1)
def _original(network: str, folder: Path, model: nn.Module) -> Answers:
    return answer(model, _test(network, folder))


# ---- the methods: what selects, and what repairs ----


def ours(setting: Setting, share: float, repair: Repair = "blockwise") -> tuple[nn.Module, Plan]:
    plan = sp.plan(setting.analysis(), {"macs": share}, seed=setting.draw)
    return repaired(setting, plan, repair), plan


def at_random(setting: Setting, share: float) -> tuple[nn.Module, Plan]:
    found = replace(setting.analysis(), blocks=())
    plan = sp.plan(found, {"macs": share}, "random", setting.draw)
    return repaired(setting, plan, "blockwise"), plan


def folded(setting: Setting, share: float) -> tuple[nn.Module, Plan]:
    """Channels that resemble another by their weights are merged into it; its variance is repaired, without data."""
    plan = sp.plan(setting.analysis("weight_cosine"), {"macs": share}, "uniform", setting.draw)
    return repaired(setting, plan, "fold"), plan


def torch_pruning(setting: Setting, share: float, repair: Repair) -> tuple[nn.Module, Plan]:
    plan = setting.once(share, lambda: _best_criterion(setting, share))
    return repaired(setting, plan, repair), plan


def _best_criterion(setting: Setting, share: float) -> Plan:
    """torch-pruning's selection, its criterion chosen on calibration images."""
    from benchmarks._torch_pruning import best

    structures, _ = structure("channels").find(setting.network)
    groups = [group for group in structures if isinstance(group, UnitGroup)]
    batches = list(setting.calibration)
    some = batches[: -(-JUDGED // setting.calibration.batch_size)]
    return best(setting.network, groups, share, batches, some, setting.fixed)


def classes(answers: Answers) -> Tensor:
    """(inputs,) the class of the greatest score."""
    return torch.cat([rows.argmax(1) for rows in chunks(answers.logits)])


def repaired(setting: Setting, plan: Plan, repair: Repair) -> nn.Module:
    small = sp.apply(plan, setting.model)
    sp.reconstruct(small, plan, setting.model, setting.calibration, repair)
    return small


Method = Callable[[Setting, float], tuple[nn.Module, Plan]]  # (setting, share of the macs)
METHODS: dict[str, tuple[str, Method]] = {
    "ours": ("simprune, blockwise", ours),
    "thorough": ("simprune, blockwise, mirror images too", partial(ours, repair=THOROUGH)),
    "least_squares": ("simprune, least squares", partial(ours, repair="least_squares")),
    "tp_ridge": ("torch-pruning + our least squares", partial(torch_pruning, repair="least_squares")),
    "tp_bn": ("torch-pruning + BatchNorm", partial(torch_pruning, repair="bn")),
    "tp": ("torch-pruning", partial(torch_pruning, repair="none")),
    "fold": ("folding + variance", folded),
    "random": ("random + blockwise", at_random),
}


def measure(case: Case, method: str, setting: Setting) -> dict[str, Any]:
    """One row: prune by a method, and compare with the original on the test images."""
    _, setting.charged, start = setting.calibration, 0.0, time.process_time()
    small, plan = METHODS[method][1](setting, case.share)
    seconds = time.process_time() - start + setting.charged
    got, wanted, example = answer(small, setting.test), setting.original, setting.network.example
    figures = agreement(got, wanted)
    row = {
        "case": case.name,
        "method": method,
        "draw": setting.draw,
        "macs": measure_cost(small, example).macs / measure_cost(setting.model, example).macs,
        "agreement": figures["agreement"],
        "damage": figures["damage"],
        "expected": plan.expected.get("damage"),
        "blocks": len(plan.blocks),
        "count": len(got.logits),
        "seconds": seconds,
        "criterion": plan.planner.get("criterion"),
    }
    if wanted.labels is not None:
        right, before = (classes(answers) == wanted.labels for answers in (got, wanted))
        row |= {"accuracy": float(right.double().mean()), "original": float(before.double().mean())}
        row["gained"], row["lost"] = (some.nonzero()[:, 0].tolist() for some in (right & ~before, before & ~right))
    return row


def difference(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean difference of accuracy to the original in points, and half of its interval at 95 %."""
    changes = np.zeros((len(rows), rows[0]["count"]))
    for change, row in zip(changes, rows, strict=True):
        change[row["gained"]], change[row["lost"]] = 1, -1
    variance = changes.mean(0).var() / changes.shape[1]
    if len(rows) > 1:
        variance += changes.mean(1).var(ddof=1) / len(rows)
    return 100 * changes.mean(), 196 * variance**0.5


def show(rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    table = Table(title="without labels or epochs, means over draws")
    for column in ("network / speed-up / images", "method"):
        table.add_column(column)
    for column in ("macs", "accuracy", "difference", "agreement", "damage", "CPU s", "draws"):
        table.add_column(column, justify="right")
    order = [case.name for case in CASES]
    for case in sorted({row["case"] for row in rows}, key=order.index):
        for method, (title, _) in METHODS.items():
            some = [row for row in rows if (row["case"], row["method"]) == (case, method)]
            if not some:
                continue
            keys = ("macs", "agreement", "damage", "seconds")
            mean = {key: float(np.mean([row[key] for row in some])) for key in keys}
            accuracy, change = "-", "-"
            if "accuracy" in some[0]:
                accuracy = f"{100 * np.mean([row['accuracy'] for row in some]):.2f}"
                change = "{:+.2f} ± {:.2f}".format(*difference(some))
            criteria = sorted({row["criterion"] for row in some if row["criterion"]})
            table.add_row(
                case,
                f"{title} ({'; '.join(criteria)})" if criteria else title,
                f"{mean['macs']:.1%}",
                accuracy,
                change,
                f"{100 * mean['agreement']:.1f}",
                f"{mean['damage']:.4f}",
                f"{mean['seconds']:.0f}",
                str(len(some)),
            )
        table.add_section()
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=holding(*CIFAR), required=True)
    parser.add_argument("--efficientnet", type=Path, help="folder that holds efficientnet-lite1*.pth")
    parser.add_argument("--rows", nargs="+", choices=[case.name for case in CASES], help="all by default")
    usual = [method for method in METHODS if method != "thorough"]  # which takes about eight times blockwise
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=usual, help="all but thorough by default")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("outputs/vision_accuracy.json"))
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json.exists() else []
    options.json.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["case"], row["method"], row["draw"]) for row in rows}
    wanted = [case for case in CASES if case.name in (options.rows or [case.name])]
    if options.efficientnet is None:
        wanted = [case for case in wanted if case.network != "efficientnet"]
    for draw in range(options.draws):
        setting = None
        for case in wanted:
            for method in options.methods:
                if (case.name, method, draw) in done:
                    continue
                if setting is None or (setting.name, setting.images) != (case.network, case.images):
                    setting = Setting(options, case.network, case.images, draw)
                rows.append(measure(case, method, setting))
                shown = {key: value for key, value in rows[-1].items() if key not in ("gained", "lost")}
                print(json.dumps(shown), flush=True)
                write_whole(options.json, json.dumps(rows))
    show(rows)


if __name__ == "__main__":
    main()
