"""The flow of channels says what torch-pruning says, where torch-pruning can say it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import simprune as sp
from simprune import zoo
from simprune.core.example import example_of
from simprune.core.structures import NotPrunable
from simprune.structures import find_blocks
from simprune.trace.coupling import CouplingGraph
from simprune.trace.flow import ChannelFlow, normalisations
from simprune.trace.network import Network
from tests.architectures.networks import CONVOLUTIONAL, LISTS, TOKENS, batches, make


def couplings(graph: CouplingGraph) -> dict:
    result = {}
    for layer in graph.roots():
        try:
            coupling = graph.coupling(layer)
        except NotPrunable:
            continue
        result[layer] = coupling.units, set(coupling.slices)
    return result


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *LISTS, *TOKENS, "bert", "llama", "gpt2"])
def test_both_ways_say_the_same(name, monkeypatch):
    model, example = make(name), example_of(batches(name)[0])
    traced = couplings(CouplingGraph(model, example))
    monkeypatch.setattr("torch_pruning.DependencyGraph.build_dependency", None)  # so that it fails
    followed = couplings(CouplingGraph(model, example))
    assert len(followed) >= len(traced) - 1  # the flow knows at once that the last layer's outputs stay
    padded = {layer for layer, (_, slices) in traced.items() if name == "resnet_a" and layer.endswith(("v1", "v2"))}
    for layer in followed.keys() - padded:  # a padded shortcut moves channels, which torch-pruning does not see
        assert followed[layer] == traced[layer]


class Several(nn.Module):
    """Every layer behind the first leads through a part that cannot be followed, or past it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.free, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = self.first(x)
        x = torch.fft.rfft(self.second(x)).real[..., :4].repeat(1, 2)
        return self.head(torch.relu(self.free(x)))


def test_an_operator_that_is_not_known_costs_only_what_enters_it():
    model = Several()
    flow = ChannelFlow(model, ((torch.randn(2, 6),), {}), {})
    assert "mixes its channels (fft_rfft)" in str(flow.refusal(model.second))
    assert flow.refusal(model.first) is None
    assert flow.refusal(model.free) is None
    assert "network's output" in str(flow.refusal(model.head))


def test_following_leaves_a_model_as_it_was():
    model = Several().train()
    before = [dict(vars(module)) for module in model.modules()]
    ChannelFlow(model, ((torch.randn(2, 6),), {}), {})
    assert [dict(vars(module)) for module in model.modules()] == before


REWRITTEN = {
    "(orthogonal): call torch.nn.utils.parametrize": lambda model: parametrizations.orthogonal(model[1]),
    "(spectral_norm): call torch.nn.utils.parametrize": lambda model: parametrizations.spectral_norm(model[1]),
    "(spectral_norm): call torch.nn.utils.remove_spectral_norm": lambda model: (
        nn.utils.spectral_norm(model[1]),
        prune.random_unstructured(model[1], "bias", 0.5),
    ),
    "remove_spectral_norm(1, 'weight')": lambda model: nn.utils.spectral_norm(model[1]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("remedy", REWRITTEN)
def test_a_computed_weight_is_refused_with_the_remedy_and_costs_no_other_layer(remedy):
    def build():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3 if at == 0 else 8, 8, 3, padding=1) for at in range(4)]
        model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
        REWRITTEN[remedy](model)
        return model

    model, state = build(), build().state_dict()
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert not normalisations(model)
    result = sp.compress(model, calibration=[x, x + 0.1], budget={"macs": 0.7}, structures=["channels"])
    redundancy = sp.analyze(model, [x, x + 0.1], structures=["channels"])
    assert {entry.group.name for entry in redundancy.channels} == {"2", "3"}
    reasons = dict(redundancy.unprunable)
    assert remedy in reasons["0"]
    assert remedy in reasons["1"]
    result.model.train()(x).sum().backward()
    model.train()(x).sum().backward()  # a copy of a model that has just been trained, with its graph, is possible
    Network.trace(model, x)
    assert sp.apply(result.plan, model.eval())(x).shape == (8, 4)
    names = [name for name in state if not name.endswith(("_u", "_v"))]  # power iterations of training mode
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in names if "weight.0" not in name)


@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_blocks_of_normalised_weights_are_seen_and_the_original_keeps_its_class(normalise):
    model = zoo.ResidualCNN(widths=(6,), depths=(3,)).eval()
    x = torch.randn(2, 3, 8, 8)
    plain = [block.name for block in find_blocks(Network.trace(model, x))]
    for module in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        normalise(module)
    expected = model(x)
    network = Network.trace(model, x)
    assert [block.name for block in find_blocks(network)] == plain
    assert not [name for name in network.visits if "parametrizations" in name]
    torch.testing.assert_close(model(x), expected)
