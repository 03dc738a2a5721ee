"""Small networks that studies train themselves, and what is asked of any network: its answers and their change."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune import zoo
from simprune.studies.images import Images

EPOCHS, STEPS, MOST = 20, 600, 1600  # of a training: epochs, and the fewest and the most steps
BATCH = 64
RATE = 3e-3  # learning rate at its largest


def _stages(images: Images) -> int:
    """Resolutions that a network works at: at the last one an image has 4 to 7 pixels a side."""
    return max(images.side.bit_length() - 2, 1)


def _widths(images: Images, first: int, width: float) -> list[int]:
    """Channels of every stage, which grow more slowly than in large networks."""
    return [max(round(first * width * growth), 2) for growth in (1, 1.5, 2, 2.5, 3)[: _stages(images)]]


def _residual(images: Images, width: float, depth: float) -> nn.Module:
    depths = [max(round(3 * depth), 1)] * _stages(images)
    return zoo.ResidualCNN(images.channels, images.classes, _widths(images, 12, width), depths, shortcut="B")


def _plain(images: Images, width: float, depth: float) -> nn.Module:
    depths = [max(round(4 * depth), 1)] * _stages(images)
    return zoo.PlainCNN(images.channels, images.classes, _widths(images, 16, width), depths)


def _vgg(images: Images, width: float, depth: float) -> nn.Module:
    depths = [max(round(2 * depth), 1)] * _stages(images)
    return zoo.VGG(
        images.channels, images.classes, _widths(images, 16, width), depths, hidden=max(round(32 * width), 2)
    )


def _vit(images: Images, width: float, depth: float) -> nn.Module:
    heads, blocks, patch = max(round(4 * width), 1), max(round(5 * depth), 1), max(images.side // 4, 1)
    return zoo.ViT(images.channels, images.classes, images.side, patch, 10 * heads, blocks, heads, 20 * heads)


def _mobilenet(images: Images, width: float, depth: float) -> nn.Module:
    depths = [max(round(3 * depth), 1)] * _stages(images)
    last = max(round(48 * width), 2)
    return zoo.MobileNet(images.channels, images.classes, _widths(images, 12, width), depths, expansion=3, last=last)


def _convnext(images: Images, width: float, depth: float) -> nn.Module:
    depths = [max(round(3 * depth), 1)] * _stages(images)
    return zoo.ConvNeXt(images.channels, images.classes, _widths(images, 16, width), depths, patch=1, expansion=2)


# Architectures by name: functions of the images, and of factors of width and depth.
ARCHITECTURES: dict[str, Callable[[Images, float, float], nn.Module]] = {
    "residual": _residual, "plain": _plain, "vgg": _vgg, "vit": _vit, "mobilenet": _mobilenet,
    "convnext": _convnext,
}  # fmt: skip


def build(architecture: str, images: Images, seed: int = 0, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """An untrained network for some images; the same arguments give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](images, width, depth).eval()


def steps_for(images: Images) -> int:
    """Steps of a training, unless the study says otherwise."""
    return min(max(EPOCHS * len(images.train) // BATCH, STEPS), MOST)


def train(
    model: nn.Module,
    images: Images,
    seed: int = 0,
    steps: int | None = None,
    augment: float = 0.0,
    whole: int | None = None,
) -> nn.Module:
    """Train a network in place, by cross-entropy with AdamW and a rate that rises and falls; returns it for evaluation.

    Args:
        model: the network.
        images: whose training part is used.
        seed: of the order of images, and of their shifts.
        steps: batches of 64 images; None: 20 epochs, but at least 600 and at most 1,600.
        augment: the largest shift of an image, as a share of its side; 0: none.
        whole: steps by which the rate goes, where the training is cut short; None: `steps`.
    """
    steps = steps_for(images) if steps is None else steps
    whole = steps if whole is None else whole
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        order = torch.randperm(len(images.train), generator=generator)
        for step in range(steps):
            if len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(images.train), generator=generator)])
            rows, order = order[:BATCH], order[BATCH:]
            rate = RATE * min((step + 1) / (0.1 * whole), (whole - step) / (0.9 * whole))
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = shifted(images.train[rows], augment, generator) if augment else images.train[rows]
            optimizer.zero_grad()
            F.cross_entropy(model(batch), images.train_labels[rows]).backward()
            optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def shifted(batch: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images moved by up to a share of their side in both directions; zeros come in."""
    most = max(round(share * batch.shape[-1]), 1)
    padded = F.pad(batch, (most,) * 4)
    side = batch.shape[-1]
    moves = torch.randint(0, 2 * most + 1, (len(batch), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, moves, strict=True)])


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """(N, classes) logits of a network for (N, C, H, W) images, whatever mode it is in."""
    modes = [module.training for module in model.modules()]
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is that of the label."""
    return float((logits.argmax(1) == labels).float().mean())


def agreement(logits: Tensor, original: Tensor) -> float:
    """Share of rows with the same largest logit."""
    return float((logits.argmax(1) == original.argmax(1)).float().mean())


def damage(logits: Tensor, original: Tensor) -> float:
    """Squared change of the outputs as a share of their variance, as plans state it.

    >>> damage(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [-1.0]]))
    2.5
    """
    change = (logits.double() - original.double()).square().sum()
    return float(change / (original.double() - original.double().mean(0)).square().sum())
