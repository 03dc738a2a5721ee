"""A model is traced once: a network remembers what it has read, and a whole run reads the original no second time."""

from collections import Counter

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import simprune as sp
from simprune.checks import Gate
from simprune.repair import least_squares
from simprune.trace import network as traced
from simprune.trace.network import Network
from tests.networks import build

PARTS = ("visits", "order", "normalisers", "attentions", "coupling", "costs", "block_calls", "output", "fingerprint")
TRACES = ("CouplingGraph", "cost_model", "execution")


@pytest.fixture
def passes():
    """Names of the classes whose modules were run."""
    calls = []
    handle = register_module_forward_pre_hook(lambda module, _: calls.append(type(module).__name__))
    yield calls
    handle.remove()


@pytest.mark.parametrize("name", ["Residual", "Tokens"])
def test_every_part_is_read_once_and_remembered(name, passes):
    model, x = build(name)
    network = Network(model, ((x[:2],), {}))
    first = {part: getattr(network, part) for part in PARTS}
    assert passes
    passes.clear()
    assert all(getattr(network, part) is first[part] for part in PARTS)
    assert not passes


def test_a_refusal_is_remembered_too(monkeypatch):
    calls = []

    def refuse(*_):
        calls.append(1)
        raise traced.NotPrunable("no coupling")

    monkeypatch.setattr(traced, "CouplingGraph", refuse)
    model, x = build("Residual")
    network = Network(model, ((x[:2],), {}))
    for _ in range(2):
        with pytest.raises(traced.NotPrunable, match="no coupling"):
            network.coupling  # noqa: B018
    assert calls == [1]


@pytest.fixture
def counted(monkeypatch):
    """How often the trace of a network was made, by the kind of trace and the model."""
    counts = Counter()

    def counting(name, real):
        def trace(model, *args, **kwargs):
            counts[name, id(model)] += 1
            return real(model, *args, **kwargs)

        return trace

    for name in (*TRACES, "visit_lightly"):
        monkeypatch.setattr(traced, name, counting(name, getattr(traced, name)))
    prepare = least_squares.prepare
    monkeypatch.setattr(least_squares, "prepare", lambda *args: (counts.update(["repair"]), prepare(*args))[1])
    return counts


@pytest.fixture(scope="module")
def case():
    model, _ = build("Residual")
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator)) for _ in range(4)
    ]
    return model, batches


def compress(model, batches):
    sp.compress(model, calibration=batches, budget={"macs": 0.6}, control=1, planner={"name": "greedy", "finalists": 2})


def frontier(model, batches):
    sp.frontier(model, calibration=batches, budgets=(0.8, 0.6), control=1)


def search(model, batches):
    gates = [Gate("disagreement", limit=0.99)]
    search = {"tolerance": 0.3}
    sp.compress(model, calibration=batches, test=batches, budget="smallest", gates=gates, search=search)


@pytest.mark.parametrize("run", [compress, frontier, search])
def test_a_run_traces_the_original_once(run, case, counted):
    model, batches = case
    run(model, batches)
    assert {name: counted[name, id(model)] for name in TRACES} == dict.fromkeys(TRACES, 1)
    assert 1 <= counted["visit_lightly", id(model)] <= 1 + counted["repair"]  # which forgets the activations


class Walked:
    """Batches that count how often they are walked."""

    def __init__(self, batches):
        self.batches, self.walks = batches, 0

    def __iter__(self):
        self.walks += 1
        return iter(self.batches)


def test_an_analysis_walks_the_batches_three_times_at_most_and_a_repair_once(case):
    model, batches = case
    calibration = Walked(batches)
    found = sp.analyze(model, calibration)
    assert 1 <= calibration.walks <= 3
    plan = sp.plan(found, {"macs": 0.6})
    small = sp.apply(plan, model)
    calibration = Walked(batches)
    assert sp.reconstruct(small, plan, model, calibration)
    assert calibration.walks == 1
