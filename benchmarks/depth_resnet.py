"""Remove whole blocks of a CIFAR-10 ResNet without a gradient step: which ones, and what stands in for them?

    python -m benchmarks.depth_resnet --data FOLDER [--network resnet56] [--speedups 1.29 1.51 1.95] [--seeds 0 1 2]

FOLDER: see benchmarks/_cifar.py. Choosers are scores of blocks, the damage of second_order, and random
blocks; `greedy, no repair` is leave-one-out tried again after every removal. Repairs: `identity` is nothing, `+ BN`
re-estimates BatchNorm statistics, `linear` fits a linear map in the place of each block, `+ least squares` refits the
layers that stay, `+ blockwise` then every block that stays as a whole. Nothing is chosen on the test images; each seed
draws its own calibration images. Prints a table and writes it as JSON. Seconds are wall time, of the choice and of the
repair: compare them only on an idle machine.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch import nn

import simprune as sp
from benchmarks._cifar import DEPTHS, calibration_images, load, row, show, test_images
from benchmarks._folder import CIFAR, holding
from simprune.core.example import from_description
from simprune.core.redundancy import Redundancy
from simprune.repair.stand_ins import fit_stand_ins
from simprune.sources import Batches
from simprune.trace.network import Network

GREEDY = "greedy_leave_one_out"
CHOOSERS: dict[str, dict[str, Any]] = {
    "greedy": {"block_score": {"name": GREEDY}},
    "greedy, no repair": {"block_score": {"name": GREEDY, "repair": False}},
    "leave one out": {"block_score": "leave_one_out"},
    "similarity": {"block_score": "similarity", "score": "predictability"},
    "block influence": {"block_score": "block_influence"},
    "second-order damage": {"block_score": "similarity", "score": "second_order"},
    "random": {"block_score": "block_influence"},
}
REPAIRS = {  # what stands in for a block, and what repairs the rest
    "identity": ("identity", None),
    "identity + BN": ("identity", "BN"),
    "linear": ("linear", None),
    "identity + least squares": ("identity", "least_squares"),
    "linear + least squares": ("linear", "least_squares"),
    "identity + blockwise": ("identity", "blockwise"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=holding(*CIFAR), required=True)
    parser.add_argument("--network", choices=DEPTHS, default="resnet56")
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.29, 1.51, 1.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=3072, help="calibration images")
    parser.add_argument("--greedy-images", type=int, default=128, help="of these, for each half of the greedy trials")
    parser.add_argument("--greedy-steps", type=int, default=14, help="removals that the greedy choosers play through")
    parser.add_argument("--choosers", nargs="+", choices=CHOOSERS, default=[*CHOOSERS])
    parser.add_argument("--repairs", nargs="+", choices=REPAIRS, default=[*REPAIRS])
    parser.add_argument("--blockwise", nargs="*", choices=CHOOSERS, default=["greedy"], help="choosers worth its time")
    parser.add_argument("--out", type=Path, default=Path("outputs/depth_resnet.json"))
    options = parser.parse_args()
    model, test = load(options.data, options.network), test_images(options.data)
    rows = [row("original", 1.0, None, model, model, test, 0.0)]
    for seed in options.seeds:
        calibration = calibration_images(options.data, options.images, seed)
        for chooser in options.choosers:
            rows += figures(model, calibration, test, options, seed, chooser)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1))
    show(rows, f"{options.network}, blocks only, no gradient step, {options.images} calibration images")
    print(f"written to {options.out}")


def figures(
    model: nn.Module, calibration: Batches, test: Batches, options: argparse.Namespace, seed: int, chooser: str
) -> list[dict]:
    start = time.perf_counter()
    redundancy = choose(model, calibration, chooser, options)
    chosen = time.perf_counter() - start
    rows = []
    for speedup in options.speedups:
        for repair in options.repairs:
            replace, method = REPAIRS[repair]
            if method == "blockwise" and chooser not in options.blockwise:
                continue
            start = time.perf_counter()
            planner = "random" if chooser == "random" else "greedy"
            plan = sp.plan(redundancy.replacing(replace), {"macs": 1 / speedup}, planner, seed=seed)
            small = sp.apply(plan, model)
            fit_stand_ins(small, plan, Network(model, from_description(plan.inputs)), calibration)
            if method == "BN":
                sp.reestimate_batchnorm(small, calibration)
            elif method:
                sp.reconstruct(small, plan, model, calibration, method)
            seconds = chosen + time.perf_counter() - start
            rows.append(row(f"{chooser}: {repair}", speedup, seed, model, small, test, seconds))
            rows[-1]["blocks"] = list(plan.blocks)
            print(rows[-1], flush=True)
    return rows


def choose(model: nn.Module, calibration: Batches, chooser: str, options: argparse.Namespace) -> Redundancy:
    settings = dict(CHOOSERS[chooser])
    score = settings["block_score"]
    if isinstance(score, dict):
        settings["block_score"] = score | {"images": options.greedy_images, "steps": options.greedy_steps}
    return sp.analyze(model, calibration, structures=["blocks"], **settings)


if __name__ == "__main__":
    main()
