"""Reasons for what a network fails without: the module and the line that fail, and what it would take."""

import pytest
import torch
from torch import Tensor, nn

from simprune.structures import structure
from simprune.trace.network import Network


class Part(nn.Module):
    """What the channels of a layer run through, which fails with fewer of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mean = torch.zeros(12, 1, 1)  # no parameter and no buffer

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.kind)(x)

    def plain(self, x: Tensor) -> Tensor:
        return x - self.mean

    def literal(self, x: Tensor) -> Tensor:
        return x.view(-1, 12, 16).view(x.shape)

    def parts(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], x[:, :10] + x[:, 2:]], 1)


@pytest.mark.parametrize(
    "kind, code, cause",
    [
        ("plain", "return x - self.mean", "mean has an entry for each of them, or more; register it as a buffer"),
        ("literal", "return x.view(-1, 12, 16).view(x.shape)", "it says how many there are (12); read the number off"),
        (
            "parts",
            "return torch.cat([x[:, :2], x[:, :10] + x[:, 2:]], 1)",
            "it needs as many as before, multiples of a number",
        ),
    ],
)
def test_a_reason_names_the_module_the_line_and_the_remedy(kind, code, cause):
    model = nn.Sequential(nn.Conv2d(3, 12, 1), Part(kind), nn.Conv2d(12, 4, 1)).eval()
    _, refused = structure("channels").find(Network(model, ((torch.randn(2, 3, 4, 4),), {})))
    reason = dict(refused)["0"]
    assert reason.startswith("without one of its channels 1 fails (test_failures.py, line ")
    assert f"`{code}`): {cause}" in reason
