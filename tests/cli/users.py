"""A user's folder with a recipe, and jobs without Hydra for tests of the commands' functions."""

from dataclasses import dataclass
from pathlib import Path

from simprune.cli.commands import Job
from simprune.cli.recipe.compose import load_recipe, resolved
from simprune.cli.recipe.objects import objects
from simprune.cli.recipe.schema import settings

MODULE = """
import torch
from simprune.sources import Batches
from simprune.trace.context import evaluation
from simprune.zoo import ResidualCNN

def build(widths=(6, 12)):
    torch.manual_seed(0)
    return ResidualCNN(in_channels=1, classes=4, widths=widths, depths=(2, 1))

def load(labels=True, test=True):
    generator = torch.Generator().manual_seed(0)
    def batches(count):
        images = torch.randn(count, 1, 8, 8, generator=generator)
        tensors = [images, torch.randint(4, (count,), generator=generator)] if labels else [images]
        return Batches(*tensors, batch_size=32)
    parts = {"calibration": batches(64), "train": batches(64)}
    return parts | {"test": batches(200)} if test else parts

def tested(count=200):
    "Test data on which the original is right, so that a verdict can be earned."
    generator = torch.Generator().manual_seed(1)
    images, model = torch.randn(count, 1, 8, 8, generator=generator), build()
    with evaluation(model):
        labels = model(images).argmax(1)
    return load() | {"test": Batches(images, labels.clone(), batch_size=32)}
"""
RECIPE = """# a user's own
defaults: [base, model: function, data: function, _self_]
model: {function: "users_parts:build"}
data: {function: "users_parts:load"}
budget: {macs: 0.6}
device: cpu
"""
OWN = "recipe=mine/own.yaml"
LOOSE = "check.gates=[{measure: disagreement, limit: 1.0}]"
STRICT = "check.gates=[{measure: disagreement, limit: -1.0}]"


def furnish(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "users_parts.py").write_text(MODULE)
    (folder / "mine" / "own.yaml").write_text(RECIPE)


@dataclass
class Compressed:
    """The exit code of `simprune compress`, its output, its job with its figures, and the folder that it ran in."""

    code: int
    shown: str
    job: Job
    folder: Path

    @property
    def bundle(self) -> Path:
        return the(self.folder, "bundle")


def job(command: str, *overrides: str, out: str = "out", recipe: str = "mine/own.yaml") -> Job:
    """What Hydra would hand to a command."""
    config = load_recipe(recipe, overrides)
    checked = settings(config, command)
    Path(out).mkdir()
    return Job(checked, *objects(checked), resolved(config), Path(out))


def written(folder: Path) -> list[str]:
    """Everything in a user's folder that a command wrote."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "mine" not in path.parts)


def the(folder: Path, name: str) -> Path:
    """The only file or folder of this name."""
    (path,) = folder.rglob(name)
    return path
