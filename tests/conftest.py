"""What every test shares."""

import pytest
import torch

torch.set_num_threads(1)  # the networks here are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
