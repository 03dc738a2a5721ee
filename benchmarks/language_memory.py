"""Peak memory and CPU time of every stage on language models at size, random weights, no downloads.

    python -m benchmarks.language_memory [--models 134m 1.1b] [--plans depth width] [--sequences 64] [--batch 8]

Llama shapes: 134M parameters in float32 (30 layers x 576, 49,152 tokens of vocabulary, tied) on 64 x 128 tokens, and
1.1B in bfloat16 (22 layers x 2,048, 32,000 tokens) on 16 x 128. `depth` removes a fifth of the layers, `width` a tenth
of the parameters as hidden units. `analyze` includes the plan and the edit. Every figure comes from a process of its
own, because a peak stays. The peak is that of resident memory beyond the process with the model and the data; it
includes the edited model. Time is in CPU seconds, divided by those of a forward pass over the same tokens.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import simprune as sp
from simprune.core.batches import call

STAGES = ("forward", "analyze", "apply", "reconstruct", "validate", "compress")
PLANS: dict[str, dict[str, Any]] = {
    "depth": {"structures": ["blocks"], "budget": {"params": 0.85}},
    "width": {
        "structures": ["channels"],
        "budget": {"params": 0.9},
        "planner": {"name": "greedy", "protect": ["residual"]},
    },
}
TOKENS = 128
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """A model's fields of LlamaConfig, its precision, and the number of its inputs."""

    fields: dict[str, Any]
    dtype: torch.dtype
    sequences: int


SHAPES = {
    "134m": Shape(
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        torch.float32,
        64,
    ),
    "1.1b": Shape(
        {
            "vocab_size": 32_000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
        torch.bfloat16,
        16,
    ),
}


def build(shape: Shape) -> nn.Module:
    """A model of a shape; its layers add less the later they stand, as those of trained models do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(shape.dtype)
    try:
        return LlamaForCausalLM(LlamaConfig(**shape.fields, use_cache=False)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def resident(name: str) -> int:
    """A figure of this process's resident memory, in bytes: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Let the peak begin at what is resident now, which is returned."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def measure(model: str, kind: str, stage: str, sequences: int, batch: int) -> dict[str, float]:
    """One stage, in this process: CPU seconds, and the peak of resident memory beyond model and data in MiB."""
    shape = SHAPES[model]
    network = build(shape)
    ids = torch.randint(shape.fields["vocab_size"], (sequences, TOKENS), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": part} for part in ids.split(batch)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    plan_file = Path(f"{sys.argv[-1]}")

    def forward() -> None:
        with torch.no_grad():
            for each in batches:
                call(network, each)

    def analyze() -> None:
        sp.compress(network, calibration=batches, reconstruct="none", **PLANS[kind]).plan.save(plan_file)

    def edited() -> tuple[sp.Plan, nn.Module]:
        plan = sp.Plan.load(plan_file)
        return plan, sp.apply(plan, network)

    def reconstruct() -> None:
        sp.reconstruct(small, plan, network, batches)

    def compress() -> None:
        sp.compress(network, calibration=batches, **PLANS[kind])

    def validate() -> None:
        sp.validate(network, small, batches, "language_model")

    stages: dict[str, Callable[[], object]] = {
        "forward": forward,
        "analyze": analyze,
        "apply": edited,
        "reconstruct": reconstruct,
        "validate": validate,
        "compress": compress,
    }
    if stage != "forward":
        call(network, batches[0])  # what libraries allocate once is no part of a stage
    before = forget_peak()
    if stage in ("reconstruct", "validate"):  # the edited model counts, the making of it does not
        plan, small = edited()
        before_edit, before = before, 0
        forget_peak()
        before = before_edit
    start = time.process_time()
    stages[stage]()
    seconds = time.process_time() - start
    beyond = resident("VmHWM") - before
    return {
        "cpu_seconds": seconds,
        "model_mib": size / MIB,
        "beyond_mib": beyond / MIB,
        "beyond_models": beyond / size,
        "whole_peak_mib": resident("VmHWM") / MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=[*PLANS])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES])
    parser.add_argument("--sequences", type=int, help="of 128 tokens; 64 for 134m and 16 for 1.1b by default")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a batch")
    parser.add_argument("--out", type=Path, default=Path("outputs/language_memory.json"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        sequences = options.sequences or SHAPES[model].sequences
        forward: float | None = None
        for kind in options.plans:
            for stage in options.stages:
                if stage == "forward" and forward is not None:
                    continue
                plan_file = str(options.out.with_name(f"language_memory_{model}_{kind}.yaml"))
                job = [model, kind, stage, str(sequences), str(options.batch), plan_file]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.language_memory", "--one", *job],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                if done.returncode:
                    print(f"{model:5} {kind:6} {stage:12} failed with code {done.returncode}", flush=True)
                    rows.append({"model": model, "plan": kind, "stage": stage, "failed": done.returncode})
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                forward = row["cpu_seconds"] if stage == "forward" else forward
                row["forwards"] = None if forward is None else row["cpu_seconds"] / forward
                rows.append({"model": model, "plan": kind, "stage": stage, **row})
                passes = "" if forward is None else f"{row['forwards']:6.1f} forwards"
                print(
                    f"{model:5} {kind:6} {stage:12} {row['cpu_seconds']:8.1f} s {passes:15} "
                    f"{row['beyond_mib']:7.0f} MiB beyond, {row['beyond_models']:5.2f} x model, "
                    f"{row['whole_peak_mib']:6.0f} MiB in all",
                    flush=True,
                )
                options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _, _, name, kind, stage, sequences, batch, _ = sys.argv
        print(json.dumps(measure(name, kind, stage, int(sequences), int(batch))))
    else:
        main()
