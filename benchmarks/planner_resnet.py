"""Depth and width in one plan: joint plans against depth alone, width alone and chance; time; the latency budget.

    python -m benchmarks.planner_resnet --data FOLDER [--networks resnet20 resnet56] [--budgets macs=0.25 latency=0.6]
                                        [--seeds 0 1 2] [--images 1024] [--finalists 5]

FOLDER: see benchmarks/_cifar.py. No gradient step, blocks refitted as a whole, accuracy on images that nothing was
chosen on, multiply-adds and latency beside it. `--trials 0.2`: damages scaled by trial removals. Then the seconds that
each planner takes for 10,000 structures, and how near a budget of 60 % of the latency is met when the plan's network is
timed again, three times (by itself: an empty --seeds, on a quiet machine).
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import simprune as sp
from benchmarks._cifar import DEPTHS, calibration_images, load, row, show, test_images
from benchmarks._folder import CIFAR, holding
from simprune.core.redundancy import Redundancy
from simprune.core.registry import parts
from simprune.sources import Batches
from simprune.trace.network import Network
from simprune.trace.timing import rotate
from simprune.tune.trials import calibrate

BATCH = 64  # images, for latency
STRUCTURES = ["channels+blocks", "channels", "blocks"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=holding(*CIFAR), required=True)
    parser.add_argument("--networks", nargs="+", choices=DEPTHS, default=[*DEPTHS])
    parser.add_argument("--budgets", type=budget, nargs="+", default=[("macs", 0.25), ("latency", 0.6)])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only time and latency")
    parser.add_argument("--images", type=int, default=1024, help="calibration images")
    parser.add_argument("--planners", nargs="+", default=["greedy"], help="such as greedy optimal random")
    parser.add_argument(
        "--trials", type=float, nargs="*", default=[], help="shares of what could be saved, removed on trial"
    )
    parser.add_argument("--finalists", type=int, default=5, help="joint plans, by number of blocks, that are tried")
    parser.add_argument("--structures", nargs="+", default=STRUCTURES)
    parser.add_argument("--out", type=Path, default=Path("outputs/planner_resnet.json"))
    options = parser.parse_args()
    options.repairs, options.latency = ["blockwise"], True
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tables = {network: compare(network, options) for network in options.networks if options.seeds}
    for network, rows in tables.items():
        show(rows, f"{network}, no gradient step, {options.images} calibration images, {len(options.seeds)} draws")
    planning_time()
    for network in options.networks:
        model = load(options.data, network)
        found = sp.analyze(model, calibration_images(options.data, 256, 0))
        for _ in range(3):
            print(f"{network}, {latency_budget(model, found)}")


def budget(text: str) -> tuple[str, float]:
    """Kind and share, as in macs=0.25."""
    kind, _, share = text.partition("=")
    return kind, float(share)


def compare(network: str, options: argparse.Namespace) -> list[dict]:
    """Rows of one network, written as they come beside those of the others."""
    model, test = load(options.data, network), test_images(options.data)
    rows = [row("original", 1.0, None, model, model, test, 0.0)]
    out = options.out.with_stem(f"{options.out.stem}_{network}")
    for seed in options.seeds:
        rows += ours(model, calibration_images(options.data, options.images, seed), test, options, seed)
        out.write_text(json.dumps(rows, indent=1))
    print(f"written to {out}")
    return rows


def ours(model: nn.Module, calibration: Batches, test: Batches, options: argparse.Namespace, seed: int) -> list[dict]:
    rows = []
    kinds = {kind for structures in options.structures for kind in structures.split("+")}
    start = time.perf_counter()
    network = Network.trace(model, next(iter(calibration)))
    found = calibrate(sp.analyze(model, calibration, structures=sorted(kinds)), network, calibration, options.trials)
    analysis = time.perf_counter() - start
    for (kind, share), planner, structures in product(options.budgets, options.planners, options.structures):
        start = time.perf_counter()
        dropped = dict.fromkeys(kinds - {*structures.split("+")}, ())
        try:
            part = replace(found, **dropped)  # type: ignore[arg-type]
            alone = planner == "random" or "+" not in structures
            more: dict[str, Any] = {"batch_size": BATCH} if kind == "latency" else {}
            if not alone:
                more |= {"finalists": options.finalists, "reconstruct": options.repairs[0]}
            plan = sp.plan(part, {kind: share}, planner, seed, model=model, calibration=calibration, **more)
        except ValueError as error:
            print(f"{structures}, {share:.1%} of {kind}: {error}")
            continue
        planning = analysis + time.perf_counter() - start
        for repair in options.repairs:
            start = time.perf_counter()
            small = sp.apply(plan, model)
            sp.reconstruct(small, plan, model, calibration, repair)
            seconds = planning + time.perf_counter() - start
            name = f"{share:.1%} of {kind}: {planner}, {structures}, {repair}"
            figures = {"blocks": len(plan.blocks), "expected": plan.expected["damage"]}
            figures |= {"finalists": plan.planner.get("finalists", [])}
            if options.latency:
                figures["latency"] = rotate([model, small], ((torch.zeros(BATCH, 3, 32, 32),), {}))[1].ratio
            rows.append(row(name, 1 / share, seed, model, small, test, seconds) | figures)
            print(rows[-1], flush=True)
    return rows


def planning_time(width: int = 100, depth: int = 101) -> None:
    """Seconds per planner for 10,000 units: a chain of layers, each coupled with the next."""
    torch.manual_seed(0)
    chain = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(depth)))
    found = sp.analyze(chain, [torch.randn(64, width)], structures=("channels",), score="magnitude")
    units = sum(entry.group.size for entry in found.channels)
    for name in parts("planner"):
        start = time.perf_counter()
        sp.plan(found, {"macs": 0.5}, name)
        print(f"{name}: {time.perf_counter() - start:.1f} s for {units} units in {len(found.channels)} layers")


def latency_budget(model: torch.nn.Module, found: Redundancy, share: float = 0.6, batch: int = BATCH) -> str:
    """Plan for a share of the latency, and time the result again."""
    start = time.perf_counter()
    plan = sp.plan(found, {"latency": share}, model=model, batch_size=batch)
    small = sp.apply(plan, model)
    seconds = time.perf_counter() - start
    before, after = rotate([model, small], ((torch.zeros(batch, 3, 32, 32),), {}))
    macs = plan.expected["macs"] / plan.original["macs"]
    return (
        f"latency budget {share:.0%}: {1e3 * before.seconds:.1f} ms -> {1e3 * after.seconds:.1f} ms, "
        f"{after.ratio:.1%} when timed again (macs {macs:.1%}), planned in {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
