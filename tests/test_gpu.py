"""The whole path on a GPU gives what it gives on the CPU."""

import copy

import pytest
import torch

import simprune as sp
from simprune.zoo.residual import ResidualCNN
from tests.networks import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is false")


@pytest.fixture(autouse=True)
def full_precision():
    """Products of matrices and convolutions in float32 as on the CPU, not in TF32."""
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


def networks():
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(8, 16), depths=(2, 2), classes=5)
    return {
        "residual": (model.eval(), torch.randn(64, 3, 16, 16)),
        **{name: build(name) for name in ("Flat", "Tokens")},
    }


@pytest.mark.parametrize("name", ["residual", "Flat", "Tokens"])
def test_redundancy_and_plan_are_those_of_the_cpu(name):
    model, x = networks()[name]
    on_cpu = sp.analyze(model, list(x.chunk(2)))
    on_gpu = sp.analyze(copy.deepcopy(model).cuda(), list(x.chunk(2)))
    assert on_gpu.costs == on_cpu.costs
    for a, b in zip(on_cpu.entries, on_gpu.entries, strict=True):
        assert torch.allclose(torch.tensor(a.redundancy), torch.tensor(b.redundancy), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["residual", "Flat", "Tokens"])
@pytest.mark.parametrize("method", ["least_squares", "blockwise", "fold"])
def test_the_same_plan_repaired_answers_alike(name, method):
    model, x = networks()[name]
    plan = sp.plan(sp.analyze(model, [x]), {"macs": 0.7})
    answers = []
    for device in ("cpu", "cuda"):
        original = copy.deepcopy(model).to(device)
        small = sp.apply(plan, original)
        sp.reconstruct(small, plan, original, [x], method)
        assert {parameter.device.type for parameter in small.parameters()} == {device}
        with torch.no_grad():
            answers.append(small(x.to(device)).cpu())
    scale = float(answers[0].abs().max())
    assert (answers[0] - answers[1]).abs().max() <= 5e-2 * scale


def test_compress_validate_save_and_load(tmp_path):
    model, x = networks()["residual"]
    model = model.cuda()
    labels = model(x.cuda()).argmax(1).cpu()
    data = [(x[:32], labels[:32]), (x[32:], labels[32:])]
    result = sp.compress(
        model,
        calibration=data,
        train=data,
        test=data,
        budget={"macs": 0.6},
        reconstruct="blockwise",
        finetune=1,
        control=1,
        planner={"name": "greedy", "finalists": 2},
    )
    assert result.verdict is not None
    assert next(result.model.parameters()).is_cuda
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(again(x.cuda()), result.model(x.cuda()))
    budget = sp.compress(model, calibration=data, budget={"latency": 0.9, "memory": 0.95})
    assert budget.plan.expected["latency_ms"] > 0


def test_a_transformer_on_the_gpu():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().cuda()
    ids = torch.randint(64, (16, 12))
    batches = [{"input_ids": ids[:8]}, {"input_ids": ids[8:]}]
    result = sp.compress(model, calibration=batches, budget={"macs": 0.8}, structures=("channels", "heads", "blocks"))
    with torch.no_grad():
        assert result.model(input_ids=ids.cuda()).logits.shape == (16, 12, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fine_tuning_and_repair_in_place_stay_on_the_gpu(dtype):
    model, x = networks()["residual"]
    model = model.to("cuda", dtype)
    data = [(x[:32].to(dtype), torch.arange(32) % 5), (x[32:].to(dtype), torch.arange(32) % 5)]
    plan = sp.plan(sp.analyze(model, data), {"macs": 0.6})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, data)
    history = sp.finetune(small, data, teacher=model, epochs=1, lr=1e-3)
    assert len(history) == 1
    assert {(parameter.device.type, parameter.dtype) for parameter in small.parameters()} == {("cuda", dtype)}
    assert sp.validate(model, small, data, [sp.Gate("disagreement", limit=1.0)]).outcome == "pass"


def test_bfloat16_is_saved_and_loaded_bit_by_bit(tmp_path):
    model, x = networks()["residual"]
    model, x = model.to("cuda", torch.bfloat16), x.bfloat16()
    result = sp.compress(model, calibration=[x], budget={"macs": 0.6})
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(again(x.cuda()), result.model(x.cuda()))


@pytest.mark.parametrize("budget", [{"latency": 0.9}, {"memory": 0.95}])
def test_measured_budgets_are_measured_on_the_gpu(budget):
    model, x = networks()["residual"]
    model = model.cuda()
    plan = sp.plan(sp.analyze(model, [x]), budget, model=model)
    (kind,) = budget
    figure = "latency_ms" if kind == "latency" else kind
    assert 0 < plan.expected[figure] <= plan.original[figure]


def test_measures_that_stream_live_on_the_gpu():
    rows = {name: torch.randn(50, 6, device="cuda") for name in "ab"}
    values = sp.measures.matrix("cka_debiased", rows).values
    host = sp.measures.matrix("cka_debiased", {name: value.cpu() for name, value in rows.items()}).values
    assert abs(values - host).max() < 1e-6
