"""Prune CIFAR-10 ResNets without a gradient step, and compare with torch-pruning's criteria on the same images.

    python -m benchmarks.oneshot_resnet --data FOLDER [--network resnet56] [--speedups 2.11 2.57 4] [--seeds 0 1 2]

FOLDER holds cifar10_lossless.npz (calibration_images, calibration_labels, test_images, test_labels) and
cifar10_resnet20.safetensors, cifar10_resnet56.safetensors. Nothing is chosen on the test images; each seed draws its
own calibration images. Prints a table and writes it as JSON. Multiply-adds are counted by torch's FlopCounterMode.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

import simprune as sp
from benchmarks._cifar import DEPTHS, calibration_images, load, row, show, test_images
from simprune.sources import Batches
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from simprune.trace.timing import time_both
from simprune.tune.trials import calibrate

BATCH = 64  # images, for latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=DEPTHS, default="resnet56")
    parser.add_argument("--speedups", type=float, nargs="+", default=[2.11, 2.57, 4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=3072, help="calibration images")
    parser.add_argument("--structures", nargs="+", default=["channels"], help="such as channels blocks channels+blocks")
    parser.add_argument("--planners", nargs="+", default=["greedy", "random"])
    parser.add_argument("--repairs", nargs="+", default=["least_squares", "blockwise"])
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="torch-pruning's criteria")
    parser.add_argument("--latency", action="store_true", help=f"of {BATCH} images, timed in turns with the original")
    parser.add_argument("--out", type=Path, default=Path("outputs/oneshot_resnet.json"))
    parser.add_argument(
        "--trials", type=float, nargs="*", default=[], help="shares of what could be saved, removed on trial"
    )
    options = parser.parse_args()
    options.budgets, options.finalists = [("macs", 1 / speedup) for speedup in options.speedups], 0
    model = load(options.data, options.network)
    test = test_images(options.data)
    rows = [row("original", 1.0, None, model, model, test, 0.0)]
    for seed in options.seeds:
        calibration = calibration_images(options.data, options.images, seed)
        rows += ours(model, calibration, test, options, seed)
        if options.peer:
            rows += peers(model, calibration, test, options.speedups, seed)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1))
    show(rows, f"{options.network}, no gradient step, {options.images} calibration images")
    print(f"written to {options.out}")


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
            tried = {} if alone else {"finalists": options.finalists, "repair": options.repairs[0]}
            timed = {"batch_size": BATCH} if kind == "latency" else {}
            plan = sp.plan(part, {kind: share}, planner, seed, model=model, calibration=calibration, **tried, **timed)
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
            more = {"blocks": len(plan.blocks), "expected": plan.expected["damage"]}
            more |= {"finalists": plan.planner.get("finalists", [])}
            if options.latency:
                more["latency"] = time_both(model, small, ((torch.zeros(BATCH, 3, 32, 32),), {}))[2]
            rows.append(row(name, 1 / share, seed, model, small, test, seconds) | more)
            print(rows[-1], flush=True)
    return rows


def peers(model: nn.Module, calibration: Batches, test: Batches, speedups: list[float], seed: int) -> list[dict]:
    """torch-pruning's own pruner on inner channels (stream pruning breaks padded shortcuts), BatchNorm re-estimated."""
    import torch_pruning as tp

    rows = []
    criteria = {
        "magnitude L2": tp.importance.GroupMagnitudeImportance(p=2),
        "BN scale": tp.importance.BNScaleImportance(),
        "FPGM": tp.importance.FPGMImportance(),
        "random": tp.importance.RandomImportance(),
    }
    torch.manual_seed(seed)
    example = (torch.zeros(1, 3, 32, 32),)
    for name, importance in criteria.items():
        for whole in (False, True):
            if whole and name != "magnitude L2":
                continue
            for speedup in speedups:
                start = time.perf_counter()
                small = bisect(model, importance, whole, example, speedup, tp)
                sp.reestimate_batchnorm(small, calibration)
                label = f"torch-pruning {name}, {'global' if whole else 'local'}, + BN"
                rows.append(row(label, speedup, seed, model, small, test, time.perf_counter() - start))
    return rows


def bisect(model: nn.Module, importance: object, whole: bool, example: tuple, speedup: float, tp: object) -> nn.Module:
    """The mildest pruning ratio that reaches the speed-up."""
    base = measure_cost(model, (example, {})).macs
    low, high, best = 0.0, 0.95, None
    for _ in range(8):
        ratio = (low + high) / 2
        small = copy.deepcopy(model)
        inner = {name for name, _ in small.named_modules() if name.endswith("conv1") and name != "conv1"}
        protected = [
            module
            for name, module in small.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and name not in inner
        ]
        tp.pruner.BasePruner(  # type: ignore[attr-defined]
            small,
            example,
            importance=importance,
            global_pruning=whole,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=protected,
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        if measure_cost(small, (example, {})).macs <= base / speedup:
            high, best = ratio, small
        else:
            low = ratio
    assert best is not None
    return best.eval()


if __name__ == "__main__":
    main()
