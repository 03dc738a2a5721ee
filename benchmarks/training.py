"""What training after the repair gives, ours beside other ways with the same training, in one table.

    python -m benchmarks.training --data FOLDER [--budgets 0.474 0.25] [--methods ours torch_pruning unpruned]
        [--draws 3] [--epochs 3] [--train N] [--test N] [--images 2048] [--options key=value ...] [--json FILE]
    python -m benchmarks.training --model FOLDER [--gguf FILE] --texts FOLDER [--methods repaired unrepaired]
        [--draws 1] [--seconds 1800] [--tokens 6144] [--windows 32] [--json FILE]

With --data: ResNet-56 on JPEG images (see benchmarks/_cifar.py), pruned to shares of its multiply-adds without labels,
then trained with the original as teacher. Three ways get the same training: ours with blockwise repair, torch-pruning's
best criterion with BatchNorm re-estimated, and the original, unpruned. Training images are shifted by up to four pixels
and mirrored at random. The epoch is chosen on 1,000 of the test images, drawn, and all figures are of the others: the
original has learnt the training images by heart, so that what is held out of them prefers no training.

With --model and --texts: SmolLM2-135M (see benchmarks/language_models.py) without 6 of its 30 layers, healed by LoRA on
windows of text_calibration.txt for a number of CPU seconds (1,800: 15 minutes on two cores), with our repair before it
and without. All rows of a draw have the same layers and the same number of steps.

A row that the JSON file has is not run again, so the table can be run in parts; with `--methods` left empty it is only
shown. Beside the JSON file lie the layers of the language model that go, by draw. Accuracy and agreement with the
original are on test images; seconds are CPU seconds, of the training alone and of all.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import simprune as sp
from benchmarks._cifar import jpeg_images
from benchmarks._folder import CIFAR, holding
from benchmarks.vision_accuracy import Setting, ours, torch_pruning
from simprune.core.plan import Edit
from simprune.core.store import write_whole
from simprune.sources import Batches
from simprune.trace.answers import agreement, answer
from simprune.trace.cost import measure_cost

JPEG = ("cifar10_jpeg_train.npz", "cifar10_jpeg_test.npz", "cifar10_resnet56_jpeg.safetensors")
HELD = 1000  # test images by which the epoch is chosen
SHIFT = 4  # pixels
OPTIONS: dict[str, Any] = {"lr": 0.02, "warmup": 0.05, "distill": 0.9, "temperature": 4.0, "weight_decay": 5e-4}
OPTIONS |= {"precision": "bf16"}  # with channels last, half the time of float32 on a CPU that computes in bfloat16
LAYERS = 6  # of the language model that go
LORA: dict[str, Any] = {
    "lora": 16,
    "optimizer": "adamw",
    "lr": 5e-4,
    "warmup": 0.1,
    "distill": 0.5,
    "weight_decay": 0.0,
    "epochs": 1,
}
METHODS = ("repaired", "unrepaired")  # of healing
Rows = dict[str, dict[str, Any]]


class Augmented:
    """Batches of images, shifted and mirrored at random on every walk; the order is that of the batches."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            size, count = images.shape[-1], len(images)
            wide = nn.functional.pad(images, (SHIFT,) * 4)
            down, right = torch.randint(2 * SHIFT + 1, (2, count))
            rows, columns = (torch.arange(size) + start[:, None] for start in (down, right))
            columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
            pixels = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
            yield wide.permute(0, 2, 3, 1)[pixels].permute(0, 3, 1, 2), labels  # channels last in memory


# ---- images ----


def unpruned(setting: Setting, share: float) -> tuple[nn.Module, None]:
    return copy.deepcopy(setting.model), None


def by_torch_pruning(setting: Setting, share: float) -> tuple[nn.Module, Any]:
    return torch_pruning(setting, share, "bn")


PRUNED: dict[str, Callable[[Setting, float], tuple[nn.Module, Any]]] = {
    "ours": ours,
    "torch_pruning": by_torch_pruning,
    "unpruned": unpruned,
}


def train_on_images(options: argparse.Namespace, rows: Rows, add: Callable[[str, dict[str, Any]], None]) -> None:
    """One row for every budget, method and draw."""
    how = OPTIONS | {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in options.options)}
    for draw in range(options.draws):
        setting = None
        for method in options.methods:
            for share in options.budgets if method != "unpruned" else [1.0]:
                key = f"resnet56_jpeg|{share}|{method}|{options.images}|{options.train}|{options.epochs}|{draw}"
                key += "".join(f"|{pair}" for pair in sorted(options.options))
                if key in rows:
                    continue
                if setting is None:
                    setting = Setting(argparse.Namespace(data=options.data), "resnet56_jpeg", options.images, draw)
                    images, labels = jpeg_images(options.data, "test", options.test + HELD, draw).tensors
                    validation = Batches(images[:HELD], labels[:HELD], batch_size=256)
                    setting.test = Batches(images[HELD:], labels[HELD:], batch_size=256)
                    setting.original = answer(setting.model, setting.test)
                    train = jpeg_images(options.data, "train", options.train, draw).tensors
                    train = Augmented(Batches(*train, shuffle=draw))
                    teacher = copy.deepcopy(setting.model).to(memory_format=torch.channels_last)
                start = time.process_time()
                small, plan = PRUNED[method](setting, share)
                before, began = figures(setting, small), time.process_time()
                small = small.to(memory_format=torch.channels_last)
                history = sp.finetune(
                    small, train, teacher, validation=validation, seed=draw, epochs=options.epochs, **how
                )
                trained = time.process_time() - began
                row = {"budget": share, "method": method, "draw": draw, "epochs": options.epochs}
                row |= {"train": options.train, "macs": before.pop("macs"), "options": how, "history": history}
                row |= {"before": before, "after": figures(setting, small), "training_seconds": trained}
                row["criterion"] = None if plan is None else plan.planner.get("criterion")
                add(key, row | {"seconds": time.process_time() - start})


def figures(setting: Setting, small: nn.Module) -> dict[str, Any]:
    example = setting.network.example
    macs = measure_cost(small, example).macs / measure_cost(setting.model, example).macs
    return agreement(answer(small, setting.test), setting.original) | {"macs": macs}


# ---- a language model ----


def heal_language_model(options: argparse.Namespace, rows: Rows, add: Callable[[str, dict[str, Any]], None]) -> None:
    """One row with the repair and one without, for every draw of text."""
    from benchmarks._language import BATCH, LENGTH, Judge, batches, drawn, load_language_model, skills, windows
    from benchmarks.language_models import REPAIRED

    def key(method: str, draw: int) -> str:
        return f"{LAYERS} layers|{method}|{options.tokens}|{options.seconds:g}|{draw}"

    draws = [draw for draw in range(options.draws) if any(key(method, draw) not in rows for method in options.methods)]
    if not draws:
        return
    model, tokenizer = load_language_model(options.model, options.gguf)
    texts = {
        name: windows(tokenizer, options.texts / f"text_{name}.txt")[: options.windows] for name in ("test", "other")
    }
    judge = Judge(model, texts, skills(tokenizer))
    known = windows(tokenizer, options.texts / "text_calibration.txt")
    for draw in draws:
        count = options.tokens // LENGTH
        calibration = batches(drawn(known, count, draw), BATCH)
        chosen = options.json.parent / f"training_layers_{draw}.yaml"
        if not chosen.is_file():  # one choice for all methods, as in benchmarks/language_models.py
            score = REPAIRED | {"steps": LAYERS}
            found = sp.analyze(model, calibration, structures=["blocks"], block_score=score, damage=False)
            entries = sorted(found.blocks, key=lambda entry: entry.damage)[:LAYERS]
            edits = tuple(Edit("block", entry.block.name) for entry in entries)
            sp.Plan(edits, found.fingerprint, found.inputs).save(chosen)
        plan = sp.Plan.load(chosen)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(draw))
        train = [part | {"labels": part["input_ids"]} for part in batches(known[order], BATCH)]
        earlier = [rows[name]["steps"] for method in METHODS if (name := key(method, draw)) in rows]
        steps = earlier[0] if earlier else affordable(sp.apply(plan, model), model, train, options.seconds)
        for method in options.methods:
            if key(method, draw) in rows:
                continue
            start = time.process_time()
            small = sp.apply(plan, model)
            if method == "repaired":
                sp.reconstruct(small, plan, model, calibration)
            before, began = judge.compare(small), time.process_time()
            history = sp.finetune(small, train[:steps], model, seed=draw, **LORA)
            row = {"method": method, "draw": draw, "tokens": options.tokens, "limit": options.seconds, "steps": steps}
            row |= {"training_seconds": time.process_time() - began, "history": history, "before": before}
            add(key(method, draw), row | {"after": judge.compare(small), "seconds": time.process_time() - start})


def affordable(small: nn.Module, model: nn.Module, train: Sequence[Any], seconds: float) -> int:
    """How many batches can be trained on in a time, by the time of two steps."""
    probe, start = copy.deepcopy(small), time.process_time()
    sp.finetune(probe, train[:2], model, validation=train[:1], **LORA)
    return max(2, min(len(train), int(2 * seconds / (time.process_time() - start))))


# ---- tables ----


def show(rows: Rows) -> None:
    console = Console(width=150)
    images = [row for row in rows.values() if "budget" in row]
    if images:
        table = Table(title="ResNet-56 on JPEG images, trained with the original as teacher; means over draws")
        for column in ("macs", "method", "epochs", "draws"):
            table.add_column(column)
        for column in ("accuracy before", "after", "over draws", "agreement before", "after", "damage after", "CPU s"):
            table.add_column(column, justify="right")
        for key in dict.fromkeys((row["budget"], row["method"], row["epochs"], row["train"]) for row in images):
            some = [row for row in images if (row["budget"], row["method"], row["epochs"], row["train"]) == key]
            after = [100 * row["after"]["accuracy"] for row in some]

            def mean(stage: str, figure: str, some: Sequence[dict[str, Any]] = some) -> float:
                return float(np.mean([row[stage][figure] for row in some]))

            table.add_row(
                f"{np.mean([row['macs'] for row in some]):.1%}",
                key[1],
                f"{key[2]} x {key[3]:,}",
                str(len(some)),
                f"{100 * mean('before', 'accuracy'):.2f}",
                f"{np.mean(after):.2f}",
                f"{min(after):.2f} to {max(after):.2f}",
                f"{100 * mean('before', 'agreement'):.1f}",
                f"{100 * mean('after', 'agreement'):.1f}",
                f"{mean('after', 'damage'):.4f}",
                f"{np.mean([row['training_seconds'] for row in some]):.0f}",
            )
        console.print(table)
    texts = [row for row in rows.values() if "budget" not in row]
    if texts:
        table = Table(title=f"SmolLM2-135M without {LAYERS} of 30 layers: perplexity as a ratio, before and after LoRA")
        for column in ("method", "draw", "steps", "held out before", "after", "other before", "after", "CPU s"):
            table.add_column(column)
        for row in texts:
            ratios = [f"{row[stage][name]['ratio']:.3f}" for name in ("test", "other") for stage in ("before", "after")]
            table.add_row(row["method"], str(row["draw"]), str(row["steps"]), *ratios, f"{row['training_seconds']:.0f}")
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=holding(*CIFAR, *JPEG))
    parser.add_argument("--budgets", type=float, nargs="+", default=[1 / 2.11, 0.25], help="shares of the macs")
    parser.add_argument("--methods", nargs="*", help="all by default")
    parser.add_argument("--draws", type=int, help="of calibration and training data; 3 of images, 1 of texts")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, default=50_000, help="images that are trained on")
    parser.add_argument("--test", type=int, default=9000, help="images that measure")
    parser.add_argument("--images", type=int, default=2048, help="for calibration")
    parser.add_argument("--options", nargs="*", default=[], help="of sp.finetune, as lr=0.02")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--gguf")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--seconds", type=float, default=1800, help="CPU seconds of LoRA")
    parser.add_argument("--tokens", type=int, default=6144, help="for calibration")
    parser.add_argument("--windows", type=int, default=32, help="of each test text")
    parser.add_argument("--json", type=Path, default=Path("outputs/training.json"))
    options = parser.parse_args()
    if (options.data is None) == (options.model is None) or (options.model is None) != (options.texts is None):
        parser.error("give --data FOLDER, or --model FOLDER and --texts FOLDER")
    known = [*PRUNED] if options.data is not None else [*METHODS]
    options.methods = known if options.methods is None else options.methods
    if unknown := [method for method in options.methods if method not in known]:
        parser.error(f"--methods: {unknown[0]} is none of {', '.join(known)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.draws = options.draws or (3 if options.data is not None else 1)
    rows: Rows = json.loads(options.json.read_text()) if options.json.exists() else {}

    def add(key: str, row: dict[str, Any]) -> None:
        rows[key] = row
        write_whole(options.json, json.dumps(rows, indent=1))
        print(key, json.dumps({name: row[name] for name in ("before", "after", "seconds")}), flush=True)

    (train_on_images if options.data is not None else heal_language_model)(options, rows, add)
    show(rows)


if __name__ == "__main__":
    main()
