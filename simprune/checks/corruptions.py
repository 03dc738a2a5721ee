"""Shifted test inputs: corrupted images (as in ImageNet-C, three severities) and attacks by FGSM and PGD.

A corruption is a function of images (N, C, H, W) in [0, 1], a severity of 1, 2 or 3 and a generator, an attack one of
images, labels (or None), the model and the limits of pixel values:

    @register("corruption", "invert")
    def invert(images, severity, generator): ...

    @register("corruption", "one_pixel", attack=True)
    def one_pixel(images, labels, model, limits): ...

Strengths are shares of the range of pixel values, which is that of the first test batch: it may be normalised.
Hendrycks and Dietterich (2019), arXiv 1903.12261; Goodfellow et al. (2015), 1412.6572; Madry et al. (2018), 1706.06083.
"""

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core.batches import call, device_of, inputs_of
from simprune.core.labels import labels_of
from simprune.core.names import did_you_mean
from simprune.core.registry import parts, register

CLEAN = "clean"
SEVERITIES = (1, 2, 3)
EPSILON = 2 / 255  # of attacks, in the maximum norm
STEPS = 10  # of PGD
Limits = tuple[float, float]


@register("corruption", "noise")
def noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise."""
    return x + (0.04, 0.08, 0.12)[severity - 1] * torch.randn(x.shape, generator=generator, dtype=x.dtype)


@register("corruption", "blur")
def blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian, its width in pixels growing with the image: 0.5, 0.75, 1 at 32 pixels and below."""
    sigma = (0.5, 0.75, 1.0)[severity - 1] * max(1.0, min(x.shape[2:]) / 32)
    reach = min(math.ceil(3 * sigma), min(x.shape[2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype)
    weights = (-at.square() / (2 * sigma**2)).exp()
    weights /= weights.sum()
    count, channels, height, width = x.shape
    flat = nn.functional.pad(x.reshape(-1, 1, height, width), [reach] * 4, mode="reflect")
    flat = nn.functional.conv2d(nn.functional.conv2d(flat, weights[None, None, :, None]), weights[None, None, None, :])
    return flat.reshape(count, channels, height, width)


@register("corruption", "brightness")
def brightness(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Brighter: a constant is added."""
    return x + (0.1, 0.2, 0.3)[severity - 1]


@register("corruption", "contrast")
def contrast(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Pixels move towards the mean of their image."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4)[severity - 1] * (x - mean)


@register("corruption", "jpeg")
def jpeg(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """JPEG of low quality."""
    from PIL import Image

    count, channels, height, width = x.shape
    if channels not in (1, 3):
        raise ValueError(f"jpeg needs images of 1 or 3 channels; got {channels}: leave jpeg out of the check set")
    quality = (50, 25, 15)[severity - 1]
    decoded = np.stack([np.array(Image.open(encoded(image, "JPEG", quality=quality))) for image in x])
    return torch.from_numpy(decoded).reshape(count, height, width, channels).movedim(3, 1).to(x.dtype) / 255


@register("corruption", "fgsm", attack=True)
def fgsm(images: Tensor, labels: Tensor | None, model: nn.Module, limits: Limits) -> Tensor:
    """One step of the gradient's sign within `EPSILON` of the range of pixel values, by the model's own gradient."""
    return _attack(images, labels, model, limits, steps=1, step=1.0)


@register("corruption", "pgd", attack=True)
def pgd(images: Tensor, labels: Tensor | None, model: nn.Module, limits: Limits) -> Tensor:
    """Ten smaller steps of the gradient's sign, projected to `EPSILON` of the range of pixel values."""
    return _attack(images, labels, model, limits, steps=STEPS, step=1 / 4)


def shifts(kind: str) -> list[str]:
    """Values of a gate's `inputs` for one corruption: a name for every severity, or the name of an attack.

    >>> shifts("blur"), shifts("pgd")
    (['blur_1', 'blur_2', 'blur_3'], ['pgd'])
    """
    part = parts("corruption")[kind]
    return [kind] if part.facts.get("attack") else [f"{kind}_{severity}" for severity in SEVERITIES]


def names() -> list[str]:
    """All values that a gate's `inputs` may have.

    >>> names()[:4]
    ['clean', 'blur_1', 'blur_2', 'blur_3']
    """
    return [CLEAN, *(name for kind in parts("corruption") for name in shifts(kind))]


def known(name: str) -> str:
    """The name itself; ValueError, with what was probably meant, for an unknown one."""
    if name not in names():
        raise ValueError(f"inputs: unknown {name!r}; {did_you_mean(str(name), names())}")
    return name


def image_of(batch: Any) -> Tensor | None:
    """The images (N, C, H, W) of a batch whose only input is such a float tensor; None for any other batch."""
    args, kwargs = inputs_of(batch)
    inputs = [*args, *kwargs.values()]
    is_image = len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4
    return inputs[0] if is_image and inputs[0].is_floating_point() else None


def _images(batch: Any) -> Tensor:
    """`image_of`, with a ValueError for a batch of anything else."""
    images = image_of(batch)
    if images is None:
        raise ValueError(
            "corruptions and attacks need images, one float input of shape (N, C, H, W) in a batch; "
            "choose another check set, or write gates without `inputs`"
        )
    return images


def encoded(image: Tensor, format: str, **options: Any) -> io.BytesIO:
    """A file in memory with an image (C, H, W) of 1 or 3 channels; values outside [0, 1] are clipped."""
    from PIL import Image

    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).movedim(0, 2).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(file, format, **options)
    return file


def limits_of(batch: Any) -> Limits:
    """Least and largest pixel value; ValueError unless the batch is of images that are not constant."""
    images = _images(batch)
    low, high = float(images.min()), float(images.max())
    if not low < high:
        raise ValueError(f"corruptions need images with a range of values; all pixels of the first batch are {low:g}")
    return low, high


def shifted(name: str, batch: Any, model: nn.Module, limits: Limits, seed: int = 0) -> Any:
    """The batch with corrupted images, or with images that attack `model`.

    Args:
        name: one of `names()`.
        batch: of images (N, C, H, W); an attack raises the loss for its labels, or without labels for the classes that
            the model predicts.
        model: the attacked model; corruptions do not use it.
        limits: least and largest pixel value; values stay within them.
        seed: the same seed gives the same images.

    Raises:
        ValueError: for an unknown name, and for other inputs than images.

    >>> images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> shifted("noise_1", images, nn.Identity(), (0.0, 1.0)).shape
    torch.Size([2, 1, 8, 8])
    """
    if known(name) == CLEAN:
        return batch
    images, labels, (low, high) = _images(batch), labels_of(batch), limits
    kind, _, severity = name.rpartition("_")
    registered = parts("corruption")
    if name in registered:  # an attack, which has no severity
        changed = registered[name].make(images, labels, model, limits)
    else:
        x = ((images.detach().cpu() - low) / (high - low)).clamp(0, 1)
        x = registered[kind].make(x, int(severity), torch.Generator().manual_seed(seed)).clamp(0, 1)
        changed = (low + x * (high - low)).to(images.device)
    inputs: Any = dict.fromkeys(inputs_of(batch)[1], changed) or changed
    return inputs if labels is None else (inputs, labels)


def _attack(images: Tensor, labels: Tensor | None, model: nn.Module, limits: Limits, steps: int, step: float) -> Tensor:
    """White box: steps along the gradient's sign, `step` times the reach long, each projected to the reach."""
    low, high = limits
    reach = EPSILON * (high - low)
    with torch.inference_mode(False), torch.enable_grad():
        start = images.detach().to(device_of(model)).clone()
        x = start.clone()
        for _ in range(steps):
            x.requires_grad_(True)
            logits = call(model, x)
            target = logits.argmax(1) if labels is None else labels.to(logits.device)
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, target.clone(), reduction="sum"), x)
            moved = x.detach() + reach * step * slope.sign()
            x = torch.minimum(torch.maximum(moved, start - reach), start + reach).clamp(low, high)
    return x.detach()
