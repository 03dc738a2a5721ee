"""Edited models of transformers: what `from_pretrained` opens is the same model, or it is said why not."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.core.structures import UnitGroup
from simprune.edit.generation import generation_lost
from simprune.edit.reopening import saved_in
from simprune.structures import structure
from simprune.trace.network import Network
from tests.edit import families
from tests.edit.families import DECODERS, STACKED, batch, make, stacks, transformers


def edited(model: nn.Module, inputs: dict, *edits: Edit) -> Any:
    return sp.apply(Plan(edits, fingerprint(model), describe(example_of(inputs))), model)


def without(model: nn.Module, inputs: dict, *blocks: str) -> Any:
    return edited(model, inputs, *(Edit("block", name) for name in blocks))


def groups_of(model: nn.Module, inputs: dict, kind: str) -> list[UnitGroup]:
    found = structure(kind).find(Network(model, example_of(inputs)))[0]
    return [group for group in found if isinstance(group, UnitGroup)]


def halved(model: nn.Module, inputs: dict, kind: str, wide: bool = False) -> Any:
    """The model without the first half of every group of heads, of hidden units, or of the width of the stream."""
    groups = groups_of(model, inputs, kind)
    groups = [group for group in groups if kind == "heads" or (len(group.consumers) > 1) == wide]
    assert groups
    return edited(model, inputs, *(Edit(g.kind, g.name, g.expand(list(range(g.size // 2))), g.width) for g in groups))


def output(model: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return next(value for value in model(**inputs).values() if isinstance(value, torch.Tensor) and value.ndim)


POST_NORM = ("bart", "marian")  # a layer of theirs without weights is no identity


def inert(model: nn.Module, layers: list[str]) -> None:
    """Layers become identities: they add nothing to the stream."""
    for name in layers:
        for parameter in model.get_submodule(name).parameters():
            parameter.data.zero_()


@pytest.mark.parametrize("name", STACKED)
def test_models_without_layers_open_and_generate_as_they_are(name):
    """With and without a cache the same tokens; the original's, where the layers that go add nothing."""
    model, inputs = make(name), batch(name)
    gone = [f"{stack}.{layer}" for stack in stacks(name) for layer in (1, 2)]
    exact = name in DECODERS and name not in POST_NORM
    if exact:
        inert(model, gone)
    before = model.config.to_dict()
    small = without(model, inputs, *gone)
    assert all(len(small.get_submodule(stack)) == 2 for stack in stacks(name))
    stated = small.config.to_dict()
    outcome = sp.reopens(small, inputs)
    assert (outcome.opens, outcome.reason, outcome.difference) == (True, "", 0.0)
    assert small.config.to_dict() == stated != before == model.config.to_dict()
    if name in DECODERS:
        asked = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
        asked |= {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        cached = small.generate(**asked, use_cache=True)
        assert torch.equal(small.generate(**asked, use_cache=False), cached)
        if exact:
            torch.testing.assert_close(output(small, inputs), output(model, inputs), rtol=1e-5, atol=1e-5)
            assert torch.equal(model.generate(**asked, use_cache=True), cached)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("side", [0, 1])
def test_one_side_of_an_encoder_and_decoder_loses_layers(name, side):
    model, inputs = make(name), batch(name)
    stack = stacks(name)
    small = without(model, inputs, f"{stack[side]}.2")
    assert [len(small.get_submodule(each)) for each in stack] == [4 - (side == 0), 4 - (side == 1)]
    counts = {"t5": ("num_layers", "num_decoder_layers")}.get(name, ("encoder_layers", "decoder_layers"))
    assert [getattr(small.config, count) for count in counts] == [4 - (side == 0), 4 - (side == 1)]
    assert sp.reopens(small, inputs)
    lost = generation_lost(small, model, inputs)  # a cache of T5 has as many layers as its encoder
    assert ("generate(use_cache=False)" in lost) == ((name, side) == ("t5", 0)) == bool(lost)


def test_widths_are_restated_where_they_belong():
    """Everything else that happens to be as large as the stream stays."""
    chance = {"sliding_window": 32, "max_position_embeddings": 32, "vocab_size": 32, "eos_token_id": 32}
    model, inputs = make("mistral", **chance), batch("mistral")
    inputs["input_ids"] %= 32
    small = halved(model, inputs, "channels", wide=True)
    before, after = model.config.to_dict(), small.config.to_dict()
    assert {key for key in after if before.get(key) != after[key]} == {"hidden_size"}
    assert sp.reopens(small, inputs)


@pytest.mark.parametrize(
    "name, kind, fields",
    [
        ("qwen2_moe", "heads", {"num_attention_heads", "num_key_value_heads", "head_dim"}),
        ("gpt_neo", "channels", {"intermediate_size"}),
        ("gemma2", "heads", {"num_attention_heads", "num_key_value_heads"}),
    ],
)
def test_what_is_cut_alike_in_all_layers_is_stated(name, kind, fields):
    model, inputs = make(name), batch(name)
    small = halved(model, inputs, kind)
    before, after = model.config.to_dict(), small.config.to_dict()
    assert {key for key in after if before.get(key) != after[key]} == fields
    outcome = sp.reopens(small, inputs)
    assert outcome.opens, outcome.reason


def test_a_part_of_a_model_has_its_own_configuration():
    model, inputs = make("clip"), batch("clip")
    layers = [f"vision_model.encoder.layers.{layer}.mlp.fc1" for layer in range(4)]
    small = edited(model, inputs, *(Edit("channels", name, tuple(range(12)), 48) for name in layers))
    assert small.config.vision_config.intermediate_size == 36
    assert small.config.text_config.intermediate_size == 48
    assert sp.reopens(small, inputs)


def test_a_scale_that_depends_on_the_width_is_refused():
    """The embeddings are multiplied by the root of the width: a model of the new width would use another factor."""
    model, inputs = make("gemma"), batch("gemma")
    small = halved(model, inputs, "channels", wide=True)
    assert small.config.to_dict() == model.config.to_dict()  # so that `from_pretrained` says that shapes differ
    outcome = sp.reopens(small, inputs)
    assert not outcome and "another shape" in outcome.reason and "embed_scale" in outcome.reason


@pytest.mark.filterwarnings("ignore:from_pretrained cannot open the result")
def test_what_a_configuration_cannot_say_is_said():
    model, inputs = make("llama"), batch("llama")
    half = sp.reopens(edited(model, inputs, Edit("block", "model.layers.1.self_attn", replace="zero")), inputs)
    assert not half and "model.layers.1.self_attn went" in half.reason
    group = next(g for g in groups_of(model, inputs, "channels") if "mlp" in g.name)
    uneven = sp.reopens(edited(model, inputs, Edit("channels", group.name, group.expand([0]), group.width)), inputs)
    assert not uneven and "no configuration of LlamaForCausalLM states its sizes" in uneven.reason
    assert str(uneven).startswith("opens with from_pretrained: no, because")


def test_settings_and_outputs_are_compared():
    """A window that is longer than the inputs changes no output, and a scale no setting."""
    model, inputs = make("qwen2"), batch("qwen2")
    assert sp.reopens(model, inputs)
    other = copy.deepcopy(model)
    other.model.layers[3].self_attn.sliding_window = 100
    assert "sliding_window is 100 here and 5" in sp.reopens(other, inputs).reason
    other = copy.deepcopy(model)
    other.model.rotary_emb.inv_freq.mul_(2)  # it is not saved
    assert "outputs differ" in sp.reopens(other, inputs).reason


@pytest.mark.parametrize(
    "name, layers, field, width",
    [
        ("falcon", ["transformer.h.{}.mlp.dense_h_to_4h"], "ffn_hidden_size", 128),
        ("bart", ["model.encoder.layers.{}.fc1"], "encoder_ffn_dim", 48),
        ("bart", ["model.decoder.layers.{}.fc1"], "decoder_ffn_dim", 48),
    ],
)
def test_hidden_units_of_one_stack_are_stated_in_its_field(name, layers, field, width):
    model, inputs = make(name), batch(name)
    names = [layer.format(index) for layer in layers for index in range(4)]
    small = edited(model, inputs, *(Edit("channels", layer, tuple(range(8)), width) for layer in names))
    before, after = model.config.to_dict(), small.config.to_dict()
    assert {key for key in after if before.get(key) != after[key]} == {field} and after[field] == width - 8
    outcome = sp.reopens(small, inputs)
    assert outcome.opens, outcome.reason


@pytest.mark.parametrize(
    "name, gone, field, value",
    [
        ("qwen2_moe", [1], "mlp_only_layers", [1]),
        ("qwen2_moe", [2], "mlp_only_layers", []),
        ("qwen3_moe", [0], "mlp_only_layers", [1]),
        ("qwen2", [0, 3], "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen2", [0], "max_window_layers", 1),
        ("gpt_neo", [0], "attention_layers", ["local", "global", "local"]),
        ("gemma2", [1], "layer_types", ["sliding_attention", "sliding_attention", "full_attention"]),
    ],
)
def test_fields_that_name_layers_follow(name, gone, field, value):
    model, inputs = make(name), batch(name)
    small = without(model, inputs, *(f"{stacks(name)[0]}.{layer}" for layer in gone))
    assert getattr(small.config, field) == value
    outcome = sp.reopens(small, inputs)
    assert outcome.opens, outcome.reason


@pytest.mark.parametrize(
    "kind, fields, gone, depths",
    [
        ("ConvNext", {"num_stages": 2, "patch_size": 4}, ("stages.0.layers.1", "stages.1.layers.0"), [1, 2]),
        ("ResNet", {"embedding_size": 8, "layer_type": "basic"}, ("stages.1.layers.2",), [2, 2]),
    ],
)
def test_depths_of_stages_follow(kind, fields, gone, depths):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16], "depths": [2, 3]}
    config = getattr(transformers, f"{kind}Config")(**sizes, **fields)
    model, inputs = (
        getattr(transformers, f"{kind}ForImageClassification")(config),
        {"pixel_values": torch.randn(2, 3, 32, 32)},
    )
    small = without(model.eval(), inputs, *(f"{kind.lower()}.encoder.{name}" for name in gone))
    assert (model.config.depths, small.config.depths) == ([2, 3], depths)
    outcome = sp.reopens(small, inputs)
    assert outcome.opens, outcome.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_opens(dtype):
    model, inputs = make("llama").to(dtype), batch("llama")
    outcome = sp.reopens(without(model, inputs, "model.layers.1"), inputs)
    assert outcome.opens, outcome.reason


def test_attention_to_an_encoder_leaves_the_cache_of_the_words_alone():
    words = transformers.BertConfig(**families.TOKENS, **families.SIZES)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(words, words)
    model = transformers.EncoderDecoderModel(config=config).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    with pytest.warns(UserWarning, match="from_pretrained cannot open the result"):
        small = without(model, batch("t5"), "decoder.bert.encoder.layer.1.crossattention")
    asked = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "input_ids": batch("t5")["input_ids"]}
    assert torch.equal(small.generate(**asked, use_cache=True), small.generate(**asked, use_cache=False))


def test_lists_that_have_nothing_to_do_with_layers_stay():
    model, inputs = make("llama", eos_token_id=[0, 1, 2, 3]), batch("llama")
    assert without(model, inputs, "model.layers.1").config.eos_token_id == [0, 1, 2, 3]


def test_compress_says_whether_transformers_open_the_result():
    model, inputs = make("llama"), batch("llama")
    inputs = {key: value.repeat(4, 1) for key, value in inputs.items()}
    inputs["input_ids"] = (inputs["input_ids"] + torch.arange(8)[:, None]) % 64
    result = sp.compress(model, calibration=[inputs], structures=("blocks",), budget={"macs": 0.8}, reconstruct="none")
    assert result.report["transformers"] == {"opens": True, "reason": "", "difference": 0.0}
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert "transformers" not in sp.compress(plain, calibration=[torch.randn(32, 4)]).report
    with pytest.raises(ValueError, match="expected a model of transformers; got a Sequential"):
        sp.reopens(plain, torch.randn(2, 4))


def test_a_full_disk_is_said_and_is_no_reason_why_a_model_does_not_open(tmp_path):
    class Model:
        config = SimpleNamespace(width=2)

        def save_pretrained(self, folder):
            self.config.width = 3
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model: Any = Model()
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        saved_in(model, str(tmp_path), ((), {}))
    assert model.config.width == 2
