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

from simprune.core.batches import call, device_of, inputs_of, labels_of
from simprune.core.names import did_you_mean
from simprune.core.registry import Part, parts, register

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

    if x.shape[1] not in (1, 3):
        raise ValueError(f"jpeg needs images of 1 or 3 channels; got {x.shape[1]}: leave jpeg out of the check set")
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, 3).numpy()
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=(50, 25, 15)[severity - 1]
        )
        decoded.append(np.array(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).movedim(3, 1).to(x.dtype) / 255


@register("corruption", "fgsm", attack=True)
def fgsm(images: Tensor, labels: Tensor | None, model: nn.Module, limits: Limits) -> Tensor:
    """One step of the gradient's sign within `EPSILON` of the range of pixel values, by the model's own gradient."""
    return _attack(images, labels, model, limits, steps=1, share=1.0)


@register("corruption", "pgd", attack=True)
def pgd(images: Tensor, labels: Tensor | None, model: nn.Module, limits: Limits) -> Tensor:
    """Ten smaller steps of the gradient's sign, projected to `EPSILON` of the range of pixel values."""
    return _attack(images, labels, model, limits, steps=STEPS, share=1 / 4)


def shifts(kind: str) -> list[str]:
    """What `inputs` of a gate may be for one corruption: a name for every severity, or an attack's own.

    >>> shifts("blur"), shifts("pgd")
    (['blur_1', 'blur_2', 'blur_3'], ['pgd'])
    """
    part = parts("corruption")[kind]
    return [kind] if part.facts.get("attack") else [f"{kind}_{severity}" for severity in SEVERITIES]


def names() -> list[str]:
    """What `inputs` of a gate may be.

    >>> names()[:4]
    ['clean', 'blur_1', 'blur_2', 'blur_3']
    """
    return [CLEAN, *(name for kind in parts("corruption") for name in shifts(kind))]


def known(name: str) -> str:
    """The name itself; ValueError, with what was probably meant, for an unknown one."""
    if name not in names():
        raise ValueError(f"inputs: unknown {name!r}; {did_you_mean(str(name), names())}")
    return name


def _part(name: str) -> tuple[Part, int]:
    """The corruption and its severity, 0 for an attack."""
    registered = parts("corruption")
    if name in registered:
        return registered[name], 0
    kind, _, severity = name.rpartition("_")
    return registered[kind], int(severity)


def image_of(batch: Any) -> Tensor | None:
    """The batch's images: its only input, (N, C, H, W) floats; None where that is something else."""
    args, kwargs = inputs_of(batch)
    given = [*args, *kwargs.values()]
    image = len(given) == 1 and isinstance(given[0], Tensor) and given[0].ndim == 4 and given[0].is_floating_point()
    return given[0] if image else None


def limits_of(batch: Any) -> Limits:
    """Least and largest pixel value; ValueError unless the batch is of images that are not constant."""
    images = image_of(batch)
    if images is None:
        raise ValueError(
            "corruptions and attacks need images, one float input of shape (N, C, H, W) in a batch; "
            "choose another check set, or write gates without `inputs`"
        )
    low, high = float(images.min()), float(images.max())
    if not low < high:
        raise ValueError(f"corruptions need images with a range of values; all pixels of the first batch are {low:g}")
    return low, high


def shifted(name: str, batch: Any, model: nn.Module, limits: Limits, seed: int = 0) -> Any:
    """The batch with corrupted images, or with images that attack `model` (in the labels' direction if there are any).

    Values stay within `limits`. The same for the same seed. ValueError for an unknown name or other inputs.

    >>> images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> shifted("noise_1", images, nn.Identity(), (0.0, 1.0)).shape
    torch.Size([2, 1, 8, 8])
    """
    if known(name) == CLEAN:
        return batch
    if (images := image_of(batch)) is None:
        limits_of(batch)
        raise AssertionError
    low, high = limits
    part, severity = _part(name)
    if part.facts.get("attack"):
        found = part.make(images, labels_of(batch), model, limits)
    else:
        x = ((images.detach().cpu() - low) / (high - low)).clamp(0, 1)
        x = part.make(x, severity, torch.Generator().manual_seed(seed)).clamp(0, 1)
        found = (low + x * (high - low)).to(images.device)
    labels = labels_of(batch)
    _, kwargs = inputs_of(batch)
    inputs: Any = {next(iter(kwargs)): found} if kwargs else found
    return inputs if labels is None else (inputs, labels)


def _attack(
    images: Tensor, labels: Tensor | None, model: nn.Module, limits: Limits, steps: int, share: float
) -> Tensor:
    """White box: steps of a `share` of the reach along the gradient's sign, each projected to the reach."""
    low, high = limits
    reach = EPSILON * (high - low)
    step = reach * share
    with torch.inference_mode(False), torch.enable_grad():
        start = images.detach().to(device_of(model)).clone()
        x = start.clone()
        for _ in range(steps):
            x.requires_grad_(True)
            logits = call(model, x)
            target = logits.argmax(1) if labels is None else labels.to(logits.device)
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, target.clone(), reduction="sum"), x)
            moved = x.detach() + step * slope.sign()
            x = torch.minimum(torch.maximum(moved, start - reach), start + reach).clamp(low, high)
    return x.detach()
