"""Peak memory and time of an analysis at size, against the bare forward pass over the same inputs.

Random weights: a BERT of 12 layers (width 384) on sequences of 32 tokens, and ResNet-56 on 32x32 images. Every figure
comes from a process of its own, because a peak stays.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn

COUNTS = {"bert": 4096, "resnet56": 10000}
STAGES = ("forward", "analysis")


def build(name: str, count: int) -> tuple[nn.Module, list]:
    """A network and its inputs in batches of 64."""
    torch.manual_seed(0)
    if name == "resnet56":
        from simprune.zoo import resnet56

        return resnet56().eval(), list(torch.randn(count, 3, 32, 32).split(64))
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    return BertForSequenceClassification(config).eval(), list(torch.randint(1000, 30000, (count, 32)).split(64))


def measure(name: str, stage: str, count: int) -> dict[str, float]:
    """One stage, in this process: seconds, and the peak of its resident memory in MiB."""
    from simprune import api as pipeline
    from simprune import measures
    from simprune.core.batches import call
    from simprune.scores.estimate import estimate
    from simprune.trace.network import Network

    model, batches = build(name, count)
    start = time.perf_counter()
    if stage == "forward":
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
    else:
        network = Network.trace(model, next(iter(batches)))
        found = estimate(network, batches, measures.get("cka_debiased"), ("blocks",), damage=False)
        pipeline.examine(batches, found, network, ["cka_debiased", "gbs"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - start, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="inputs; 4,096 sequences and 10,000 images unless told")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, stage = options.one
        print(json.dumps(measure(name, stage, options.count or COUNTS[name])))
        return
    figures = {}
    for name, usual in COUNTS.items():
        count = options.count or usual
        for stage in STAGES:
            command = [sys.executable, "-m", "benchmarks.analysis_memory", "--one", name, stage, "--count", str(count)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures[f"{name} {stage}"] = found = json.loads(printed.splitlines()[-1])
            print(
                f"{name:9} {stage:9} {count:6} inputs {found['seconds']:7.1f} s {found['peak_mib']:7.0f} MiB",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
