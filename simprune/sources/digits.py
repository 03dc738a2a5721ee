"""scikit-learn's handwritten digits, and a network trained on them: the demo and the tests use them."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from simprune.core.progress import progress
from simprune.core.registry import register
from simprune.core.store import write_whole
from simprune.core.weights import load_weights
from simprune.sources.data import Batches, Data
from simprune.zoo.residual import ResidualCNN


@register("data", "digits")
def digits(*, batch_size: int = 128, calibration_size: int = 256, seed: int = 0) -> Data:
    """scikit-learn's 1797 handwritten digits, 8x8.

    Images are (N, 1, 8, 8) float32 in [0, 1]. The three splits are disjoint, stratified, and always the same, so that
    `digits_model` has never seen a test image.

    Args:
        batch_size: images of a batch.
        calibration_size: images for calibration; 797 are for tests, the others for training.
        seed: of the order of training batches.

    Raises:
        ValueError: for a calibration size outside 10..990.

    >>> images, labels = next(iter(digits(batch_size=4).test))
    >>> images.shape, labels.shape
    (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if not 10 <= calibration_size <= 990:
        raise ValueError(f"calibration_size must be from 10 to 990, got {calibration_size}")
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=797, stratify=labels, random_state=0)
    calibration, train = train_test_split(rest, train_size=calibration_size, stratify=labels[rest], random_state=0)

    def batches(rows: Any, shuffle: int | None = None) -> Batches:
        pixels = torch.tensor(images[rows] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        return Batches(pixels, torch.tensor(labels[rows]), batch_size=batch_size, shuffle=shuffle)

    return Data(batches(calibration), batches(train, shuffle=seed), batches(test))


@register("model", "digits")
def digits_model(
    *, widths: Sequence[int] = (16, 32, 64), depths: Sequence[int] = (3, 3, 3), epochs: int = 20, seed: int = 0
) -> nn.Module:
    """A residual network for the digits, larger than needed, trained in seconds on first use.

    The weights are stored in `simprune` in the user's cache folder, which is `$XDG_CACHE_HOME` or `~/.cache`. The same
    settings give the same weights.

    Args:
        widths: channels of every stage.
        depths: residual blocks of every stage.
        epochs: of the training.
        seed: of the first weights and of the training.
    """
    training = {"epochs": epochs, "lr": 0.02, "seed": seed}
    settings = {"widths": list(widths), "depths": list(depths), **training}
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "simprune", f"digits-{name}.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualCNN(in_channels=1, widths=widths, depths=depths)
    if not path.is_file():
        print(f"training the digits model, once; it is kept in {path.parent}", file=sys.stderr)
        _train(model, digits(batch_size=32, seed=seed).train or (), **training)
        write_whole(path, lambda partial: save_file(model.state_dict(), partial))
    load_weights(model, path)
    return model.eval()


def _train(model: nn.Module, batches: Iterable, epochs: int, lr: float, seed: int) -> None:
    """Cross-entropy with SGD, Nesterov momentum and a cosine schedule over all steps."""
    steps = max(sum(1 for _ in batches) * epochs, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        for _ in progress(range(epochs), "train"):
            for images, labels in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                schedule.step()
