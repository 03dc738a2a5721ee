"""Laws of halves of layers (attention, MLP): removed equals adding nothing, cached or not, in any precision."""

import pytest
import torch
from torch import nn

from simprune.api import apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.structures import structure
from simprune.trace.network import Network
from tests.architectures.language_models import NAMES, batch, make

pytestmark = pytest.mark.filterwarnings("ignore:from_pretrained cannot open:UserWarning")


def without(model, halves):
    edits = tuple(Edit("block", half.name, replace=half.replace) for half in halves)
    return apply(Plan(edits, fingerprint(model), describe(example_of(batch()))), model)


def halves_of(model):
    return structure("sub_blocks").find(Network.trace(model, batch()))


def silenced(model, half):
    """Make a half add nothing to the stream, in place: its last matrices are zero, and their biases."""
    writers = ("o_proj", "out_proj", "dense", "dense_4h_to_h", "c_proj", "down_proj", "fc_out", "fc2", "wo", "Wo")
    parameters = dict(model.get_submodule(half.name).named_parameters())
    last = [p for name, p in parameters.items() if any(part in writers for part in name.split("."))]
    for parameter in last:
        parameter.data.zero_()
    return bool(last)


@pytest.mark.parametrize("name", NAMES)
def test_halves_are_found_in_half_precision_as_in_float32_and_inert_ones_go_exactly(name):
    model = make(name)
    halves, refused = halves_of(model)
    assert len(halves) == 8 and not refused
    again, _ = halves_of(make(name, torch.bfloat16))
    assert [(half.name, half.replace, half.chain) for half in again] == [
        (half.name, half.replace, half.chain) for half in halves
    ]
    for half in halves[2:4]:
        assert silenced(model, half)
    torch.testing.assert_close(call(without(model, halves[2:4]), batch()), call(model, batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_the_same_with_and_without_a_cache(name):
    model = make(name)
    attention = [half for half in halves_of(model)[0] if "mlp" not in half.name and "ffn" not in half.name]
    prompt = {
        "input_ids": batch()["input_ids"][:, :6],
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]] + [[1] * 6] * 3),
    }
    for gone in (attention[:1], attention[1:2], attention[::2]):
        small = without(model, gone)
        texts = [
            small.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0)
            for cached in (True, False)
        ]
        assert torch.equal(*texts)


@pytest.mark.filterwarnings("error:from_pretrained")
def test_a_warning_says_what_no_configuration_says():
    model = make("llama")
    half = halves_of(model)[0][0]
    with pytest.warns(UserWarning, match=f"cannot open the result: no configuration says that {half.name} went"):
        without(model, [half])
    layer = structure("blocks").find(Network.trace(model, batch()))[0][0]
    without(model, [layer])  # which the number of layers says


class Half(nn.Module):
    """An MLP that adds to a residual which it gets beside the normalised stream."""

    def __init__(self, normalised_first):
        super().__init__()
        self.up, self.down, self.normalised_first = nn.Linear(8, 12), nn.Linear(12, 8), normalised_first

    def forward(self, a, b):
        normalised, residual = (a, b) if self.normalised_first else (b, a)
        return residual + self.down(self.up(normalised).relu())


class Layer(nn.Module):
    def __init__(self, normalised_first):
        super().__init__()
        self.norm1, self.norm2, self.normalised_first = nn.LayerNorm(8), nn.LayerNorm(8), normalised_first
        self.first, self.second = Half(normalised_first), Half(normalised_first)

    def forward(self, x):
        for norm, half in ((self.norm1, self.first), (self.norm2, self.second)):
            x = half(norm(x), x) if self.normalised_first else half(x, norm(x))
        return x


@pytest.mark.parametrize("normalised_first", [True, False])
def test_the_residual_is_handed_on_in_whatever_order_a_half_gets_it(normalised_first):
    model, x = nn.Sequential(nn.Linear(6, 8), Layer(normalised_first), Layer(normalised_first)), torch.randn(2, 5, 6)
    model[1].first.down.requires_grad_(False)
    for parameter in model[1].first.down.parameters():
        parameter.zero_()
    halves, refused = structure("sub_blocks").find(Network(model, ((x,), {})))
    assert [half.name for half in halves] == ["1.first", "1.second", "2.first", "2.second"]
    assert refused == []
    small = apply(Plan((Edit("block", "1.first"),), fingerprint(model), describe(((x,), {}))), model)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=0)


class Sandwich(nn.Module):
    """A layer that normalises and scales what its halves give before it adds it."""

    def __init__(self, bias):
        super().__init__()
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8, bias=bias)
        self.first, self.second = (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2))

    def forward(self, x):
        y = self.before(x)
        return x + 0.3 * (self.after(self.first(y)) + self.second(y))


def test_what_a_half_adds_is_read_behind_its_normalisation_and_scale():
    model, x = nn.Sequential(nn.Linear(6, 8), Sandwich(False), Sandwich(False)), torch.randn(2, 5, 6)
    halves, refused = structure("sub_blocks").find(Network(model, ((x,), {})))
    assert [(half.name, half.adds) for half in halves[:2]] == [("1.first", "1.after"), ("1.second", "1.second")]
    assert halves[0].gain == pytest.approx(0.3)
    assert {half.chain for half in halves} == {0} and refused == []


def test_a_half_whose_normalisation_adds_a_constant_stays_with_a_reason():
    model, x = nn.Sequential(nn.Linear(6, 8), Sandwich(True), nn.Linear(8, 3)), torch.randn(2, 5, 6)
    nn.init.ones_(model[1].after.bias)
    halves, refused = structure("sub_blocks").find(Network(model, ((x,), {})))
    assert halves == []
    assert "no half of it can go alone" in dict(refused)["1"]


def test_a_second_output_keeps_a_block_only_if_something_needs_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))

        def forward(self, x):
            weights = self.mlp(x)
            return x + weights, weights

    class Stack(nn.Module):
        def __init__(self, needed):
            super().__init__()
            self.layers, self.needed = nn.ModuleList(Block() for _ in range(3)), needed

        def forward(self, x):
            for layer in self.layers:
                x, weights = layer(x)
                if self.needed and weights is not None:
                    x = x + 0.1 * weights
            return x.mean(1)

    for needed in (False, True):
        blocks, refused = structure("blocks").find(Network(Stack(needed), ((torch.randn(2, 4, 6),), {})))
        assert len(blocks) == (0 if needed else 3)
        assert all("later layers need" in reason for _, reason in refused)
