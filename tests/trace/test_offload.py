"""Models that accelerate has offloaded give what the same models give with their weights in place."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.trace.offload import at_hand

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
ON_DISK = ("model.layers.1", "model.norm")
KINDS = ("cpu", "disk", "both")


def build(tied: bool = True) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config).eval()


def offloaded(kind: str, folder, model: nn.Module) -> nn.Module:
    device = torch.device("cpu")
    if kind == "cpu":
        return accelerate.cpu_offload(model, device)
    if kind == "disk":
        return accelerate.disk_offload(model, str(folder), device)
    parts = [
        "model.embed_tokens",
        "model.rotary_emb",
        "model.norm",
        "lm_head",
        *(f"model.layers.{i}" for i in range(3)),
    ]
    where = {name: "disk" if name in ON_DISK else "cpu" for name in parts}
    return accelerate.dispatch_model(model, where, main_device="cpu", offload_dir=str(folder))


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(64, (4, 12), generator=generator)} for _ in range(2)]


@pytest.fixture(scope="module")
def usual(batches):
    """Redundancy, plan, repaired model and verdict of the model with its weights in place."""
    return steps(build(), batches)


def steps(model, batches):
    redundancy = sp.analyze(model, batches, structures=["channels", "blocks"])
    plan = sp.plan(redundancy, {"params": 0.85})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches)
    return redundancy, plan, small, sp.validate(model, small, batches, "language_model")


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_gives_what_it_gives_with_the_weights_in_place(kind, tmp_path, batches, usual):
    model = offloaded(kind, tmp_path, build())
    empty = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    assert empty
    redundancy, plan, small, verdict = steps(model, batches)
    assert plan.edits == usual[1].edits
    assert [entry.damage for entry in redundancy.blocks] == pytest.approx([e.damage for e in usual[0].blocks])
    with torch.no_grad():
        torch.testing.assert_close(small(**batches[0]).logits, usual[2](**batches[0]).logits)
        torch.testing.assert_close(model(**batches[0]).logits, build()(**batches[0]).logits)  # it runs as before
    assert verdict.outcome == usual[3].outcome
    assert empty == [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    assert all(parameter.device.type == "cpu" for parameter in small.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_at_hand_are_tied_as_they_were_and_have_no_hooks(kind, tied, tmp_path):
    plain = at_hand(offloaded(kind, tmp_path, build(tied)))
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    assert not any(hasattr(module, "_hf_hook") or "forward" in vars(module) for module in plain.modules())
    for name, tensor in build(tied).state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor)


def test_half_precision_on_disk_comes_back(tmp_path):
    model = build().to(torch.bfloat16)
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    assert torch.equal(at_hand(offloaded("disk", tmp_path, model)).model.layers[0].mlp.up_proj.weight, weight)


def test_weights_on_the_cpu_are_shared_and_not_copied():
    model = build()
    before = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in at_hand(accelerate.cpu_offload(model)).parameters()} == before


def test_a_model_without_weights_is_refused_in_one_line(batches):
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match=r"^model: \S+ is on the meta device and has no values") as error:
        sp.analyze(model, batches)
    assert "\n" not in str(error.value)
