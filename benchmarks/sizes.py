"""Networks of extreme sizes: CPU seconds and peak memory of every stage, for many blocks or for wide layers.

python -m benchmarks.sizes --blocks 60 120 500
python -m benchmarks.sizes --width 6000 20000 --score magnitude
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import simprune as sp

MIB = 2**20


class Block(nn.Module):
    """A residual block of a chain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(torch.relu(self.norm(self.conv1(x))))


def chain(blocks: int, width: int = 8) -> tuple[nn.Module, list[torch.Tensor]]:
    """A chain of residual blocks on small maps, and inputs."""
    layers = [nn.Conv2d(3, width, 3, padding=1), *(Block(width) for _ in range(blocks))]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    return model.eval(), [torch.randn(32, 3, 8, 8)]


def wide(width: int, inputs: int = 64) -> tuple[nn.Module, list[torch.Tensor]]:
    """Three linear layers, of which the second is a square, and inputs."""
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip
    return model.eval(), [torch.randn(inputs, 64)]


def peak() -> float:
    """MiB that this process has held at most."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def measure(name: str, build: Callable[..., Any], size: int, score: str, rows: Any) -> None:
    """Every stage on one network, as rows for a table; it runs in a process of its own, whose peak is its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batches = build(size)
    bytes_ = sum(value.numel() * value.element_size() for value in model.state_dict().values())

    def stage(title: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        rows.put((f"{size} {name}", bytes_ / MIB, title, time.process_time() - start, peak()))
        return result

    rows.put((f"{size} {name}", bytes_ / MIB, "model", 0.0, peak()))
    redundancy = stage("analyze", lambda: sp.analyze(model, batches, score=score))
    plan = stage("plan", lambda: sp.plan(redundancy, {"macs": 0.5}))
    small = stage("apply", lambda: sp.apply(plan, model))
    stage("reconstruct", lambda: sp.reconstruct(small, plan, model, batches))
    stage("validate", lambda: sp.validate(model, small, batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="*", default=[])
    parser.add_argument("--width", type=int, nargs="*", default=[])
    parser.add_argument("--score", default="second_order", help="of channels; layers of 20,000 need magnitude")
    how = parser.parse_args()
    print("| network | MiB | stage | CPU seconds | peak MiB so far |\n|---|---|---|---|---|")
    work = [("blocks", chain, size) for size in how.blocks] + [("wide", wide, size) for size in how.width]
    for name, build, size in work:
        spawning = multiprocessing.get_context("spawn")
        rows = spawning.Queue()
        process = spawning.Process(target=measure, args=(name, build, size, how.score, rows))
        process.start()
        while process.is_alive() or not rows.empty():
            try:
                label, mib, title, seconds, most = rows.get(timeout=0.5)
            except Exception:
                continue
            print(f"| {label} | {mib:.0f} | {title} | {seconds:.1f} | {most:.0f} |", flush=True)


if __name__ == "__main__":
    main()
