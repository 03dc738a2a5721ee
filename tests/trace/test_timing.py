"""Latency: one rotation over all architectures, each timed once a turn, whatever rows share it."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.cli import console
from simprune.report import render
from simprune.trace import timing
from simprune.trace.timing import default_size, rotate


def network(width=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4)).eval()


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    """Timed calls, in order; the machine slows down by a tenth at every one, and a call takes its width."""
    seen = []

    def clock(module, args, kwargs):
        seen.append(module[0].out_features)
        return module[0].out_features * 1.1 ** len(seen)

    monkeypatch.setattr(timing, "clock", clock)
    return seen


def test_all_are_timed_in_turns_and_once_a_turn(calls):
    rotate([network(), network(8), network(4)], ((X,), {}))
    assert calls == [16, 8, 4] * timing.ROUNDS


def test_rows_of_one_architecture_share_one_measurement(calls):
    batches = [(X, torch.arange(64) % 4)]
    given = {"calibration": batches, "train": batches, "test": batches, "budget": {"macs": 0.5}}
    report = sp.compress(network(), **given, finetune=1, control=2).report
    rows = {row["name"]: row for row in report["stages"]}
    assert rows["pruned"]["latency_ms"] == rows["reconstructed"]["latency_ms"] == rows["fine-tuned"]["latency_ms"]
    turn = calls[: len(calls) // timing.ROUNDS]
    assert calls == turn * timing.ROUNDS and len(set(turn)) == len(turn)
    assert {16, 8} <= set(turn)  # the control has the plan's width
    low, high = rows["pruned"]["latency_spread_ms"]
    assert low <= rows["pruned"]["latency_ms"] <= high


def test_what_a_latency_depends_on_is_in_the_report_and_in_words():
    report = sp.compress(network(), calibration=[X], budget={"macs": 0.5}).report
    facts = report["timing"]
    assert facts["device"] == "cpu" and facts["name"] and facts["threads"] == torch.get_num_threads()
    assert facts["batch_size"] == 64
    (note,) = (note for note in report["notes"] if note.startswith("latency of a call with 64 inputs"))
    assert facts["name"] in note and " to " in console.stages(report).columns[-1]._cells[0]


@pytest.mark.parametrize("macs", [1, 1e4, 1e6, 3e7, 2e8, 1e12])
def test_the_default_batch_has_the_work_that_shows_differences(macs):
    size = default_size(macs)
    assert 2 <= size <= 64 and size & (size - 1) == 0
    assert size == 64 or size * macs >= 1e8
    assert size == 2 or size / 2 * macs < 1e8


def test_a_frontier_is_one_rotation(calls):
    found = sp.frontier(network(), calibration=[X], budgets=[0.8, 0.5], control=1)
    turn = calls[: len(calls) // timing.ROUNDS]
    assert calls == turn * timing.ROUNDS and len(set(turn)) == len(turn)
    assert any("among the same structures" in note for note in found.data["notes"])
    assert found.data["timing"]["turns"] == timing.ROUNDS


@pytest.mark.parametrize("spread, said", [((1.9, 2.1), True), ((0.4, 3.0), False), (None, True)])
def test_no_sentence_about_latency_where_its_spread_covers_the_difference(spread, said):
    cost = {"accuracy": 0.9, "agreement": 1.0, "params": 10, "bytes": 40}
    small = {"name": "pruned", **cost, "macs": 50, "latency_ms": 2.0}
    stages = [{"name": "original", **cost, "macs": 100, "latency_ms": 2.0}, small | {"latency_spread_ms": spread}]
    assert ("Latency does not follow the" in render({"stages": stages})) == said


def test_networks_that_take_long_are_timed_in_fewer_turns(monkeypatch):
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    assert {entry.turns for entry in rotate([network(), network(8)], ((X,), {}))} == {timing.LEAST}
