"""What the benchmarks on CIFAR-10 images share: networks, images, a row of figures, the table of all rows.

FOLDER holds cifar10_lossless.npz (calibration_images, calibration_labels, test_images, test_labels) and
cifar10_resnet20.safetensors, cifar10_resnet56.safetensors. For benchmarks on JPEG images it also holds
cifar10_resnet56_jpeg.safetensors, and cifar10_jpeg_train.npz and cifar10_jpeg_test.npz: `jpeg`, one stream of bytes,
`offsets` of the images in it, `labels`. Multiply-adds are counted by torch's FlopCounterMode.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from scipy.stats import binomtest
from torch import Tensor, nn

from simprune.sources import Batches
from simprune.trace.answers import agreement, answer
from simprune.trace.cost import measure_cost
from simprune.zoo.residual import ResidualCNN

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTHS = {"resnet20": 3, "resnet56": 9, "resnet56_jpeg": 9}


def load(folder: Path, network: str) -> nn.Module:
    depth = DEPTHS[network]
    model = ResidualCNN(in_channels=3, widths=(16, 32, 64), depths=(depth,) * 3, shortcut="A")
    state = load_file(folder / f"cifar10_{network}.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


def pixels(images: np.ndarray) -> Tensor:
    scaled = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def test_images(folder: Path) -> Batches:
    images = np.load(folder / "cifar10_lossless.npz")
    return Batches(pixels(images["test_images"]), torch.tensor(images["test_labels"]).long(), batch_size=256)


def calibration_images(folder: Path, count: int, seed: int, batch_size: int = 128) -> Batches:
    """`count` images drawn by `seed`; as many as there are when there are fewer."""
    images = np.load(folder / "cifar10_lossless.npz")
    drawn = np.random.default_rng(seed).permutation(len(images["calibration_images"]))[:count]
    return Batches(
        pixels(images["calibration_images"][drawn]),
        torch.tensor(images["calibration_labels"][drawn]).long(),
        batch_size=batch_size,
    )


def jpeg_images(folder: Path, split: str, count: int | None = None, seed: int = 0, batch_size: int = 128) -> Batches:
    """JPEG images of a split, "train" or "test": `count` of them drawn by `seed`, or all in order."""
    from PIL import Image

    images = np.load(folder / f"cifar10_jpeg_{split}.npz")
    stream, offsets, labels = images["jpeg"].tobytes(), images["offsets"], images["labels"]
    drawn = np.arange(len(labels)) if count is None else np.random.default_rng(seed).permutation(len(labels))[:count]
    decoded = [np.asarray(Image.open(BytesIO(stream[offsets[i] : offsets[i + 1]])).convert("RGB")) for i in drawn]
    return Batches(pixels(np.stack(decoded)), torch.tensor(labels[drawn]).long(), batch_size=batch_size)


def row(
    name: str, speedup: float, seed: int | None, model: nn.Module, small: nn.Module, test: Batches, seconds: float
) -> dict:
    found, original = answer(small, test), answer(model, test)
    example = ((torch.zeros(2, 3, 32, 32),), {})
    reached = measure_cost(model, example).macs / measure_cost(small, example).macs
    return {
        "method": name,
        "wanted": speedup,
        "reached": reached,
        "seed": seed,
        **agreement(found, original),
        "count": len(found.logits),
        "seconds": seconds,
    }


def show(rows: list[dict], title: str) -> None:
    table = Table(title=title)
    timed = any("latency" in row for row in rows)
    columns = ["method", "macs / original", "accuracy (95 % interval)", "over seeds", "agreement", "damage", "seconds"]
    for column in [*columns, *(["latency / original"] if timed else [])]:
        table.add_column(column, justify="left" if column == "method" else "right")
    for key in dict.fromkeys((row["method"], row["wanted"]) for row in rows):
        some = [row for row in rows if (row["method"], row["wanted"]) == key]
        accuracy = np.array([row["accuracy"] for row in some])
        count = some[0]["count"]
        interval = binomtest(round(accuracy.mean() * count), count).proportion_ci(method="wilson")
        table.add_row(
            key[0],
            f"1/{np.mean([row['reached'] for row in some]):.2f}",
            f"{100 * accuracy.mean():.2f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})",
            f"{100 * accuracy.min():.1f} to {100 * accuracy.max():.1f}",
            f"{100 * np.mean([row['agreement'] for row in some]):.1f}",
            f"{np.mean([row['damage'] for row in some]):.4f}",
            f"{np.mean([row['seconds'] for row in some]):.0f}",
            *([f"{np.mean([row.get('latency', 1.0) for row in some]):.2f}"] if timed else []),
        )
    Console(width=160).print(table)  # as wide when piped, where 80 columns would break every cell
