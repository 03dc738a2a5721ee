"""Networks that do more in training mode: what does not run there stays, and what never ran there stops nothing."""

import pytest
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.structures import structure
from simprune.trace.network import Network


class Masking(nn.Module):
    """Replaces features by learned ones in training, as speech models do; or asks for targets, as detectors do."""

    def __init__(self, asks: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.mask, self.asks = nn.Parameter(torch.randn(16)), asks

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.asks:
            raise ValueError("in training mode, targets are expected")
        x = self.first(x).relu()
        if self.training:
            x = torch.where(torch.rand(len(x), 1) < 0.3, self.mask, x)
        return self.head(self.second(x).relu())


class Skipping(nn.Module):
    """A residual block, and in training mode a loss that its caller reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(6, 6), 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).tanh()
        if self.training:
            self.loss = y.square().mean()
        return x + y


class Regularised(nn.Module):
    """Its pass in training mode needs both blocks to have run."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Skipping() for _ in range(2)]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.training and not all(isinstance(block.loss, Tensor) for block in self.blocks):
            raise RuntimeError("a block has no loss")
        return self.head(x)


def test_what_training_needs_stays():
    network = Network(Masking(), ((torch.randn(2, 6),), {}))
    groups, refused = structure("channels").find(network)
    assert [group.name for group in groups] == ["second"]
    reason = dict(refused)["first"]
    assert "in training mode" in reason and "mask has an entry for each of them" in reason
    blocks, refused = structure("blocks").find(Network(Regularised(), ((torch.randn(2, 6),), {})))
    assert not blocks and all("in training mode" in reason for _, reason in refused) and len(refused) == 2


@pytest.mark.parametrize("asks, macs", [(True, 0.4), (False, 0.7)])
def test_the_plan_is_applied(asks, macs):
    torch.manual_seed(0)
    model, before = Masking(asks), torch.get_rng_state()
    batches = [torch.randn(32, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    result = sp.compress(model, calibration=batches[:2], test=batches[2:], budget={"macs": macs})
    assert model.training and torch.equal(before, torch.get_rng_state())
    state = result.model.state_dict()
    assert (len(state["first.weight"]) < 16) == asks and len(state["second.weight"]) < 12
