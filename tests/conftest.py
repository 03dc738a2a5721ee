"""What every test shares."""

import pytest
import torch
from torch import Tensor, nn

from simprune.trace import timing

timing.SECONDS = 1e-3  # no test looks at how long a network takes
torch.set_num_threads(1)  # the networks here are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A small residual network that has learnt its task, and the batches of the task; tests must not change it."""
    from simprune import finetune
    from tests.networks import Residual, brightest_pixel_task

    torch.manual_seed(0)
    model, data = Residual(width=8, blocks=3), brightest_pixel_task()
    finetune(model, data, epochs=12, lr=0.1)
    return model.eval(), data
