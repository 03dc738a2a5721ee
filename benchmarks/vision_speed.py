"""What analysing and compressing vision networks costs, in forward passes over the calibration images.

    python -m benchmarks.vision_speed [--networks mobilenetv2 vit resnet50 deep] [--images 64] [--size 224] [--batch 16]

MobileNetV2, ViT-S and ResNet-50 from transformers' configurations with random weights, BatchNorm statistics settled by
a few batches; no data is needed. `deep` is a residual network of 1,000 modules on images of 32 pixels, for the share of
finding structures. One thread, defaults, half of the macs, no training. Times are CPU seconds divided by those of a
forward pass over the same images in the same process, the least of three. Memory is the highest resident memory of a
process of its own while the network is compressed, beyond what it holds with the model and the images.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import simprune as sp
from simprune import stages
from simprune.repair import recovery
from simprune.scores import estimate
from simprune.zoo.residual import ResidualCNN

NETWORKS = ("mobilenetv2", "vit", "resnet50", "deep")
DEEP = (8, 16, 24), (55, 55, 55)  # widths and depths of a network of 1,000 modules
SETTLING = 4  # batches of 8 images that give BatchNorm its statistics
# What is timed inside `simprune.compress`: the stage, and where its function is looked up.
STAGES: dict[str, tuple[Any, str]] = {
    "analyze": (stages, "estimate"),
    "find structures": (estimate, "_find"),
    "damage": (estimate, "output_changes"),
    "plan": (stages, "make_plan"),
    "apply": (recovery, "apply"),
    "repair": (recovery, "reconstruct"),
}


def build(name: str) -> nn.Module:
    """A network with random weights and settled BatchNorm statistics, in evaluation mode."""
    torch.manual_seed(0)
    if name == "deep":
        model: nn.Module = ResidualCNN(widths=DEEP[0], depths=DEEP[1], shortcut="A")
    else:
        import transformers

        if name == "vit":
            sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
            model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_labels=1000))
        elif name == "resnet50":
            model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
        else:
            model = transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(num_labels=1000))
    model.train()
    with torch.no_grad():
        for seed in range(SETTLING):
            model(images(8, 32 if name == "deep" else 224, seed + 1))
    return model.eval()


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random pictures with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.randn(count, 3, 14, 14, generator=generator), size=(size, size), mode="bilinear")
    return coarse + 0.3 * torch.randn(count, 3, size, size, generator=generator)


class Stopwatch:
    """CPU seconds of functions by the name of their stage, while they are replaced by timed ones."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[stage] += time.process_time() - start
            return result

        return run

    def __enter__(self) -> "Stopwatch":
        self._stack = ExitStack()
        for stage, (module, name) in STAGES.items():
            self._stack.enter_context(mock.patch.object(module, name, self.timed(stage, getattr(module, name))))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def resident(field: str) -> float:
    """MiB of resident memory as Linux tells: "VmRSS" now, "VmHWM" at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, count: int, size: int, batch: int) -> dict[str, float]:
    """Seconds of a forward pass and of every stage, and the memory that compressing adds, in this process."""
    torch.set_num_threads(1)
    model = build(name)
    batches = [*images(count, 32 if name == "deep" else size).split(batch)]
    modules = sum(1 for _ in model.modules())

    def forward() -> float:
        start = time.process_time()
        with torch.no_grad():
            for x in batches:
                model(x)
        return time.process_time() - start

    seconds = {"forward": min(forward() for _ in range(3))}
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory is counted from here on
    forward()
    forward_peak = resident("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    with Stopwatch() as watch:
        start = time.process_time()
        sp.compress(model, calibration=batches, budget={"macs": 0.5})
        seconds["compress"] = time.process_time() - start
    watch.seconds["score"] = watch.seconds["analyze"] - watch.seconds["find structures"] - watch.seconds["damage"]
    memory = {"forward_mib": forward_peak, "peak_mib": resident("VmHWM") - before}
    return seconds | watch.seconds | memory | {"modules": modules, "images": count}


def report(figures: dict[str, dict[str, float]]) -> None:
    table = Table(title="forward passes over the calibration images, one thread")
    shown = ("find structures", "score", "damage", "analyze", "plan", "apply", "repair", "compress")
    for column in ("network", *shown, "forward, s", "peak, MiB", "of it forward", "finding, of analyze"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, of in figures.items():
        ratios = [f"{of[stage] / of['forward']:.2f}" for stage in shown]
        memory = [f"{of['peak_mib']:.0f}", f"{of['forward_mib']:.0f}"]
        share = f"{of['find structures'] / of['analyze']:.0%}"
        table.add_row(f"{name} ({of['modules']:.0f} modules)", *ratios, f"{of['forward']:.2f}", *memory, share)
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side; ViT takes 224 only")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.images, options.size, options.batch)))
        return
    figures: dict[str, dict[str, float]] = {}
    failed = []
    for name in options.networks:
        same = ["--images", str(options.images), "--size", str(options.size), "--batch", str(options.batch)]
        command = [sys.executable, "-m", "benchmarks.vision_speed", "--one", name, *same]
        ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if ended.returncode:  # such as by lack of memory; the other networks are measured all the same
            failed.append(f"{name}: its process ended with {ended.returncode}")
            continue
        figures[name] = json.loads(ended.stdout.splitlines()[-1])
        report({name: figures[name]})
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(figures, indent=1))
    if len(figures) > 1:
        report(figures)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
