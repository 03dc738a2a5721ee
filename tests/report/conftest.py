"""Made-up reports: a rich one, one where almost nothing was measured, and one with many long names."""

import math
import random

import pytest


def similarity(names):
    size = len(names)
    values = [[math.exp(-abs(i - j) / 9) * (0.98 if i != j else 1.0) for j in range(size)] for i in range(size)]
    return {"measure": "cka_debiased", "names": names, "values": values}


def make(blocks, groups, layers, seed=0):
    """A report with these block names, {channel group: size} and similarity layers."""
    rng = random.Random(seed)
    entries = [
        {"kind": "block", "name": name, "redundancy": 1 - rng.random() ** 2, "share": 0.11, "neighbour": "input"}
        for name in blocks
    ]
    edits = [
        {
            "remove": "block",
            "name": e["name"],
            "reason": f"output resembles its input (cka_debiased {e['redundancy']:.3f})",
        }
        for e in entries
        if e["redundancy"] > 0.93
    ]
    for place, (name, of) in enumerate(groups.items()):
        values = [min(1.0, rng.betavariate(4, 1.6)) for _ in range(of)]
        order = sorted(range(of), key=lambda i: -values[i])
        indices = sorted(order[: [of // 2, of // 4, 3 * of // 4, 0][place % 4]])
        entries.append(
            {
                "kind": "channels",
                "name": name,
                "size": of,
                "redundancy": values,
                "nearest": order,
                "order": order,
                "share": 0.04,
            }
        )
        if indices:
            reason = f"the {of - len(indices)} kept channels predict them with relative error 0.07"
            edits.append({"remove": "channels", "name": name, "indices": indices, "of": of, "reason": reason})
    cost = {"macs": 12_345_678, "params": 271_642, "bytes": 1_093_120}
    kept = {"macs": 5_801_000, "params": 110_208, "bytes": 447_900}
    return {
        "simprune": "0.1.0",
        "seed": 0,
        "settings": {
            "measure": "cka_debiased", "planner": "greedy", "structures": ["channels", "blocks"],
            "budget": {"macs": 0.5}, "reconstruct": "least_squares", "finetune": {"epochs": 3, "lr": 0.01},
        },
        "stages": [
            {"name": "original", "accuracy": 0.9824, "agreement": 1.0, **cost, "latency_ms": 3.214},
            {"name": "pruned", "accuracy": 0.8921, "agreement": 0.901, **kept, "latency_ms": 1.92},
            {"name": "reconstructed", "accuracy": 0.9699, "agreement": 0.977, **kept, "latency_ms": 1.92},
            {"name": "fine-tuned", "accuracy": 0.9787, "agreement": 0.987, **kept, "latency_ms": 1.91},
            {"name": "random control", "accuracy": 0.9312, "agreement": 0.936, **kept, "latency_ms": 1.95},
        ],
        "redundancy": {
            "entries": entries,
            "unprunable": [
                {"name": "head", "reason": "its outputs are the classes"},
                {"name": "stem.conv", "reason": "coupled with 9 blocks through the residual stream"},
            ],
            "similarity": similarity(layers),
        },
        "plan": {"edits": edits, "expected": kept, "original": cost},
        "reconstruction": [
            {"layer": name, "before": 0.1 + 0.4 * rng.random(), "after": 0.02 + 0.07 * rng.random()} for name in groups
        ],
        "finetuning": [
            {"epoch": epoch, "loss": loss, "held_out": held, "before": 0.1, "by": "loss", "judged_on": "held out",
             "kept": epoch == 2}
            for epoch, loss, held in [(1, 0.081, 0.09), (2, 0.034, 0.06), (3, 0.021, 0.07)]
        ],
        "verdict": {
            "outcome": "inconclusive",
            "count": 797,
            "gates": [
                {"measure": "accuracy_drop", "value": 0.0038, "lower": -0.003, "upper": 0.0095, "limit": 0.02,
                 "confidence": 0.95, "outcome": "pass", "detail": "paired bootstrap"},
                {"measure": "disagreement", "value": 0.0138, "lower": None, "upper": 0.0225, "limit": 0.02,
                 "confidence": 0.95, "outcome": "inconclusive", "detail": "11 of 797; one-sided Clopper-Pearson bound"},
                {"measure": "jensen_shannon", "value": 0.004, "lower": 0.003, "upper": 0.0052, "limit": 0.01,
                 "confidence": 0.95, "outcome": "pass", "detail": "bootstrap interval"},
            ],
        },
        "notes": [],
        "environment": {"python": "3.11.9", "torch": "2.13.0", "torch-pruning": "1.6.1", "device": "cpu"},
    }  # fmt: skip


@pytest.fixture
def rich():
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    groups = {f"layer{i}.{j}.conv1": 8 * 2**i for i in (1, 2, 3) for j in range(4)}
    return make(blocks, groups, ["input", "stem", *blocks, "pool", "fc1", "fc2", "fc3", "head"])


@pytest.fixture
def minimal():
    cost = {"macs": 1000, "params": 90, "bytes": 360, "latency_ms": None}
    stage = {"accuracy": None, "agreement": None, **cost}
    return {
        "simprune": "0.1.0",
        "seed": 0,
        "settings": {"budget": {"macs": 0.5}, "finetune": None},
        "stages": [{"name": "original", **stage}, {"name": "pruned", **stage, "macs": 450}],
        "redundancy": {"entries": [], "unprunable": [], "similarity": None},
        "plan": {"edits": [{"remove": "channels", "name": "0", "indices": [1], "of": 2, "reason": ""}]},
        "reconstruction": [],
        "finetuning": [],
        "verdict": None,
        "notes": ["no test set: accuracy, agreement and checks were left out"],
        "environment": {},
    }


@pytest.fixture
def long():
    names = [f"backbone.encoder.stages.{i // 12}.layers.{i}.attention.output.dense" for i in range(60)]
    return make(names[:30], dict.fromkeys(names, 384), names, seed=1)
