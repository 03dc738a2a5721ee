"""What every test shares. torch is imported late: the process that only hands out tests to others does without."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn

# The networks here are small: more threads of torch, NumPy or SciPy only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Before the first test: none looks at how long a network takes, or at what was imported and collected by now."""
    from simprune.trace import timing

    timing.SECONDS = 1e-3
    gc.freeze()  # no garbage collection walks over it again, which takes a second


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seeds the CPU alone: without other devices `torch.manual_seed` remembers every call, with its stack, for each."""
    import torch

    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A small residual network that has learnt its task, and the batches of the task; tests must not change it."""
    import torch

    from simprune import finetune
    from tests.networks import Residual, brightest_pixel_task

    torch.manual_seed(0)
    model, data = Residual(width=8, blocks=3), brightest_pixel_task()
    finetune(model, data, epochs=12, lr=0.1)
    return model.eval(), data
