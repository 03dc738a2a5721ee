"""Every stage on a GPU, in single and half precision: it stays there, and gives what the CPU gives.

Where there is no GPU, `SIMPRUNE_TEST_DEVICE=cpu pytest tests/test_gpu.py` runs the same lines on the CPU.
"""

import copy
import os

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.zoo import ResidualCNN
from tests.networks import build

DEVICE = os.environ.get("SIMPRUNE_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is false"
)
BUDGET = {"macs": 0.6}


@pytest.fixture(autouse=True)
def full_precision():
    """Products of matrices and convolutions in float32 as on the CPU, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def data(dtype):
    """Batches on the CPU, where loaders leave them."""
    x, labels = torch.randn(64, 3, 16, 16).to(dtype), torch.arange(64) % 5
    return [(x[:32], labels[:32]), (x[32:], labels[32:])]


@pytest.fixture
def host(dtype) -> nn.Module:
    torch.manual_seed(0)
    return ResidualCNN(in_channels=3, widths=(8, 16), depths=(2, 2), classes=5).eval().to(dtype)


@pytest.fixture
def model(host) -> nn.Module:
    return copy.deepcopy(host).to(DEVICE)


def stays(module: nn.Module, dtype: torch.dtype) -> bool:
    return {(value.device.type, value.dtype) for value in module.parameters()} == {(DEVICE, dtype)}


def answers(module: nn.Module, data) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(x.to(next(module.parameters()).device)).cpu() for x, _ in data]).float()


def test_analyze_finds_the_redundancy_that_the_cpu_finds(host, model, data, dtype):
    here, there = sp.analyze(host, data), sp.analyze(model, data)
    assert here.costs == there.costs
    off = 1e-3 if dtype == torch.float32 else 5e-2
    for one, other in zip(here.entries, there.entries, strict=True):
        torch.testing.assert_close(torch.tensor(one.redundancy), torch.tensor(other.redundancy), rtol=1e-2, atol=off)


def test_plan_of_the_same_redundancy_is_the_same_with_the_model_on_the_gpu(host, model, data):
    redundancy = sp.analyze(host, data)
    assert sp.plan(redundancy, BUDGET, model=model).to_yaml() == sp.plan(redundancy, BUDGET, model=host).to_yaml()
    tried = sp.plan(redundancy, BUDGET, finalists=2, model=model, calibration=data)
    assert tried.expected["macs"] <= 0.6 * tried.original["macs"]


def test_apply_gives_the_same_weights_as_on_the_cpu(host, model, data, dtype):
    plan = sp.plan(sp.analyze(host, data), BUDGET)
    here, there = sp.apply(plan, host), sp.apply(plan, model)
    assert stays(there, dtype) and stays(model, dtype)
    for one, other in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
        assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("method", ["least_squares", "blockwise", "fold", "norms"])
def test_reconstruct_answers_as_on_the_cpu(host, model, data, dtype, method):
    plan = sp.plan(sp.analyze(host, data), BUDGET)
    small = {module: sp.apply(plan, module) for module in (host, model)}
    for original, edited in small.items():
        sp.reconstruct(edited, plan, original, data, method)
    assert stays(small[model], dtype)
    here, there = answers(small[host], data), answers(small[model], data)
    scale = float(answers(host, data).std())
    assert float((here - there).square().mean().sqrt()) <= (0.05 if dtype == torch.float32 else 0.3) * scale


def test_finetune_trains_on_the_gpu_and_comes_nearer_to_the_teacher(host, model, data, dtype):
    plan = sp.plan(sp.analyze(host, data), BUDGET)
    small = sp.apply(plan, model)
    before = float((answers(small, data) - answers(model, data)).square().mean())
    history = sp.finetune(small, data, teacher=model, epochs=5, lr=1e-2, distill=1.0)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5] and stays(small, dtype)
    assert float((answers(small, data) - answers(model, data)).square().mean()) <= before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("dtype", [torch.float32], ids=str)
def test_finetune_in_mixed_precision_trains_weights_of_single_precision(model, data, dtype, precision):
    pytest.importorskip("accelerate")
    if (DEVICE, precision) == ("cpu", "fp16"):
        pytest.skip("fp16 is for GPUs")
    start = copy.deepcopy(model)
    history = sp.finetune(model, data, epochs=5, lr=1e-2, precision=precision, clip=1.0, select="last")
    assert stays(model, dtype) and history[-1]["loss"] < history[0]["loss"]
    assert not torch.equal(answers(model, data), answers(start, data))


def test_validate_says_what_it_says_on_the_cpu(host, model, data, dtype):
    plan = sp.plan(sp.analyze(host, data), {"macs": 0.9})
    gates = [sp.Gate("disagreement", limit=1.0), sp.Gate("jensen_shannon_divergence", limit=1.0)]
    verdicts = [sp.validate(module, sp.apply(plan, module), data, gates) for module in (host, model)]
    assert [verdict.outcome for verdict in verdicts] == ["pass", "pass"]
    for one, other in zip(*(verdict.results for verdict in verdicts), strict=True):
        assert other.value == pytest.approx(one.value, abs=1e-3 if dtype == torch.float32 else 0.1)


def test_save_and_load_give_the_same_bits_on_the_gpu_and_open_on_the_cpu(host, model, data, dtype, tmp_path):
    result = sp.compress(model, calibration=data, test=data, budget=BUDGET, gates=[sp.Gate("disagreement", limit=1.0)])
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=copy.deepcopy(model))
    assert stays(again, dtype)
    assert torch.equal(answers(again, data), answers(result.model, data))
    opened = sp.load(tmp_path / "bundle", model=host)
    assert {value.device.type for value in opened.parameters()} == {"cpu"}


@pytest.mark.parametrize("kind, figure", [("latency", "latency_ms"), ("memory", "memory")])
def test_a_budget_is_measured_on_the_gpu(model, data, kind, figure):
    plan = sp.plan(sp.analyze(model, data), {kind: 0.95}, model=model)
    assert 0 < plan.expected[figure] <= 0.95 * plan.original[figure] * (1 + 1e-6)


@pytest.mark.parametrize("name", ["Flat", "Tokens", "Concat"])
def test_other_layouts_go_through_all_stages(name):
    model, x = build(name)
    model = model.to(DEVICE)
    result = sp.compress(model, calibration=[x], budget={"macs": 0.7}, trials=[0.3], reconstruct="blockwise", control=1)
    assert {value.device.type for value in result.model.parameters()} == {DEVICE}


def test_a_transformer_goes_through_all_stages(dtype):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().to(DEVICE, dtype)
    ids = torch.randint(64, (16, 12))
    batches = [{"input_ids": ids[:8]}, {"input_ids": ids[8:]}]
    result = sp.compress(model, calibration=batches, budget={"macs": 0.8}, structures=("channels", "heads", "blocks"))
    with torch.no_grad():
        assert result.model(input_ids=ids.to(DEVICE)).logits.shape == (16, 12, 64)


def test_measures_that_stream_give_what_they_give_on_the_cpu():
    rows = {name: torch.randn(50, 6, device=DEVICE) for name in "ab"}
    values = sp.measures.matrix("cka_debiased", rows).values
    host = sp.measures.matrix("cka_debiased", {name: value.cpu() for name, value in rows.items()}).values
    assert abs(values - host).max() < 1e-6
