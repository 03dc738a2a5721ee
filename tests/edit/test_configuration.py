"""A configuration stays true where it can: transformers then reload the smaller model by themselves."""

import pytest
import torch

from simprune.api import apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.structures import structure
from simprune.trace.network import Network
from tests.architectures.networks import batches, make


def smaller(name, kinds, units):
    """The model without these units of every group but the stream; and a batch for it."""
    model, batch = make(name), batches(name)[0]
    example = example_of(batch)
    groups = [group for kind in kinds for group in structure(kind).find(Network(model, example))[0]]
    groups = [
        group for group in groups if group.kind == "heads" or (len(group.consumers) == 1 and "pooler" not in group.name)
    ]
    edits = tuple(Edit(group.kind, group.name, group.expand(units), group.width) for group in groups)
    return apply(Plan(edits, fingerprint(model), describe(example)), model), batch


@pytest.mark.parametrize(
    "name, kinds, stated",
    [
        ("bert", ["channels"], {"intermediate_size": 19}),
        ("hf_vit", ["channels"], {"intermediate_size": 19}),
        ("hf_vit", ["heads"], {"num_attention_heads": 3, "head_dim": 3}),
        ("gpt2", ["channels"], {"n_inner": 47}),
        ("llama", ["channels", "heads"], {"intermediate_size": 19, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ],
)
def test_uniform_edits_reload_with_from_pretrained(name, kinds, stated, tmp_path):
    small, batch = smaller(name, kinds, [1])
    assert {field: getattr(small.config, field) for field in stated} == stated
    small.save_pretrained(tmp_path)
    loaded = type(small).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(call(loaded, batch), call(small.eval(), batch))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_a_configuration_cannot_say_leaves_it_alone(name):
    model, (small, batch) = make(name), smaller(name, ["heads"], [1])
    assert small.config.to_dict() == model.config.to_dict()
    assert call(small, batch).shape == call(model, batch).shape


def test_the_original_keeps_its_configuration():
    model, batch = make("llama"), batches("llama")[0]
    before = model.config.to_dict()
    example = example_of(batch)
    edits = tuple(
        Edit("heads", g.name, g.expand([0]), g.width) for g in structure("heads").find(Network(model, example))[0]
    )
    small = apply(Plan(edits, fingerprint(model), describe(example)), model)
    assert model.config.to_dict() == before != small.config.to_dict()
