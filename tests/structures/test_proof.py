"""The proof that units can go holds in networks that are chaotic without their normalisations, as trained ones are."""

import pytest
import torch
from torch import nn

from simprune.structures import structure
from simprune.trace.network import Network

DEPTH, WIDTH, HIDDEN = 10, 12, 8


class Half(nn.Module):
    """One residual half of large weights; `mixed` makes every hidden unit depend on all of them."""

    def __init__(self, mixed):
        super().__init__()
        self.norm, self.mixed = nn.LayerNorm(WIDTH), mixed
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        nn.init.constant_(self.norm.weight, 0.05)  # in its place a tanh of height one is twenty times as loud
        nn.init.normal_(self.up.weight, std=6)

    def forward(self, x):
        hidden = torch.sin(self.up(self.norm(x)))
        return x + self.down(hidden - hidden.mean(-1, keepdim=True) if self.mixed else hidden)


@pytest.fixture(params=[None, 4])
def network(request):
    torch.manual_seed(0)
    halves = (Half(mixed=number == request.param) for number in range(DEPTH))
    model = nn.Sequential(nn.Linear(5, WIDTH), *halves, nn.Linear(WIDTH, 3)).eval()
    return Network(model, ((torch.randn(2, 6, 5),), {}))


def test_units_of_a_chaotic_network_go_and_those_that_mix_do_not(network):
    groups, refused = structure("channels").find(network)
    mixed = {f"{name}.up" for name, module in network.model.named_modules() if getattr(module, "mixed", False)}
    assert {group.name for group in groups} == {"0"} | {f"{number}.up" for number in range(1, DEPTH + 1)} - mixed
    assert {name for name, _ in refused} == mixed | {str(DEPTH + 1)}  # the last layer makes the network's output
