"""The frontier on a small trained network, from outside."""

import csv
import io
import json

import pytest
import torch

import simprune as sp
from simprune import stages
from simprune.report.frontier import frontier_csv, render_frontier, save_frontier
from simprune.trace import timing
from simprune.tune.plan import plan as real_plan

BUDGETS = (0.5, 0.8, 0.2)  # in no order


@pytest.fixture(scope="module", autouse=True)
def quickly_timed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def found(trained):
    model, data = trained
    return sp.frontier(model, calibration=data, test=data, budgets=BUDGETS, control=2)


def test_every_curve_has_every_budget_and_costs_fall_along_it(found):
    assert list(found.data["curves"]) == ["joint", "depth", "width", "random"]
    assert [point["budget"] for point in found.points] == 4 * [0.8, 0.5, 0.2]
    for curve in found.data["curves"]:
        points = found.curve(curve)
        shares = [point["macs"] for point in points]
        assert shares == sorted(shares, reverse=True)
        assert all(point["macs"] <= point["budget"] for point in points)
        assert all(point["latency"] > 0 and point["latency_ms"] > 0 for point in points)


def test_a_point_is_what_compress_makes_of_its_plan(trained, found):
    model, data = trained
    for point in (found.curve("joint")[1], found.curve("width")[0]):
        alone = sp.compress(model, calibration=data, test=data, plan=found.plans[point["curve"], point["budget"]])
        original, last = alone.report["stages"][0], alone.report["stages"][-1]
        assert point["accuracy"] == last["accuracy"] and point["agreement"] == last["agreement"]
        assert (
            point["macs"] == last["macs"] / original["macs"] and point["params"] == last["params"] / original["params"]
        )
    joint = sp.compress(model, calibration=data, test=data, budget={"macs": 0.5})
    assert found.plans["joint", 0.5].to_yaml() == joint.plan.to_yaml()


def test_depth_removes_blocks_alone_and_width_none(found):
    for (curve, _), plan in found.plans.items():
        kinds = {edit.remove for edit in plan.edits}
        assert curve == "joint" or kinds == ({"block"} if curve == "depth" else {"channels"})


def test_random_is_the_mean_of_its_plans(trained, found):
    model, data = trained
    alone = [
        sp.compress(model, calibration=data, test=data, budget={"macs": 0.5}, planner={"name": "random", "seed": seed})
        for seed in (0, 1)
    ]
    rows = [result.report["stages"][-1] for result in alone]
    point = found.curve("random")[1]
    assert point["plans"] == 2 and point["accuracy_bounds"] is None
    assert point["agreement"] == pytest.approx(sum(row["agreement"] for row in rows) / 2)


def test_bounds_hold_their_value(found):
    for point in found.curve("joint"):
        low, high = point["accuracy_bounds"]
        assert low <= point["accuracy"] <= high and high - low > 0.001


def test_what_a_curve_cannot_reach_is_a_point_that_says_why(trained):
    model, data = trained
    found = sp.frontier(model, calibration=data, test=data, budgets=(0.6, 0.03), control=1)
    gone = [point for point in found.points if not point["reachable"]]
    assert ("depth", 0.03) in {(point["curve"], point["budget"]) for point in gone}
    assert all(point["accuracy"] is None and "cannot" in point["reason"] for point in gone)
    assert len(found.curve("joint")) >= 1 and len(found.points) == 8
    page = render_frontier(found.data)
    assert page.count("Not reachable") == len(gone)


def test_one_analysis_serves_all_points(trained, monkeypatch):
    model, data = trained
    calls, real = [], stages.estimate
    monkeypatch.setattr(stages, "estimate", lambda *args, **options: calls.append(1) or real(*args, **options))
    sp.frontier(model, calibration=data, budgets=(0.7,), structures=["channels"], control=1)
    assert len(calls) == 1


def test_one_kind_of_structure_is_one_curve_beside_the_control(trained):
    model, data = trained
    found = sp.frontier(model, calibration=data, budgets=(0.7,), structures=["channels"], control=1)
    assert list(found.data["curves"]) == ["joint", "random"]
    assert found.points[0]["accuracy"] is None and "no test batches" in found.data["notes"][0]


def test_a_frontier_along_params_shows_that_axis_and_takes_trials(trained):
    model, data = trained
    found = sp.frontier(model, calibration=data, test=data, budgets=(0.7,), kind="params", control=1, trials=(0.3,))
    assert all(point["params"] <= 0.7 for point in found.points if point["reachable"])
    told = sp.compress(model, calibration=data, test=data, budget={"params": 0.7}, trials=(0.3,))
    assert found.plans["joint", 0.7].to_yaml() == told.plan.to_yaml()
    page = render_frontier(found.data)
    assert "against parameters kept" in page and "against latency" in page and "params 70%" in page


def test_a_frontier_along_latency_is_measured_plan_by_plan(trained, monkeypatch):
    model, data = trained
    asked = []

    def fake(redundancy, budget, *given, network=None, **options):
        asked.append((budget, network is not None))
        return real_plan(redundancy, {"macs": budget.get("latency", 1.0)}, *given, **options)

    monkeypatch.setattr(stages, "make_plan", fake)
    found = sp.frontier(model, calibration=data, budgets=(0.7,), kind="latency", structures=["channels"], control=1)
    assert asked == [({"macs": 1.0}, True), ({"latency": 0.7}, True), ({"latency": 0.7}, True)]
    assert found.data["kind"] == "latency"


def test_latency_is_of_the_planners_batch_size(trained, monkeypatch):
    model, data = trained
    sizes = set()
    monkeypatch.setattr(timing, "clock", lambda model, args, kwargs: sizes.add(len(args[0])) or 1.0)
    planner = {"name": "greedy", "batch_size": 7}
    sp.frontier(model, calibration=data, budgets=(0.7,), structures=["channels"], control=1, planner=planner)
    sp.compress(model, calibration=data, budget={"macs": 0.7}, planner=planner)
    assert sizes == {7}


def test_the_original_is_untouched(trained):
    model, data = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sp.frontier(model, calibration=data, test=data, budgets=(0.5,), control=1, finetune=1, train=data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"budgets": (1.5,)}, ValueError, r"expected a list of numbers in \(0, 1\]"),
        ({"budgets": ()}, ValueError, "the list is empty"),
        ({"kind": "memory"}, ValueError, "kind: unknown 'memory'; known: bytes, latency, macs, params"),
        ({"control": 0}, ValueError, "at least one random plan"),
        ({"planner": "gredy"}, KeyError, "greedy"),
        ({"planner": {"name": "greedy", "depth": 3}}, Exception, "depth"),
        ({"reconstruct": "magic"}, KeyError, "least_squares"),
    ],
)
def test_wrong_arguments_are_one_clear_error(trained, options, error, message):
    model, data = trained
    with pytest.raises(error, match=message):
        sp.frontier(model, calibration=data, test=data, **options)


# ---- page, CSV, figure ----


def test_the_page_shows_every_point_and_loads_nothing(found):
    page = render_frontier(found.data | {"model": "<Network>"})
    assert page.count("<tr") == 2 + len(found.points)
    assert "&lt;Network&gt;" in page and "<Network>" not in page and "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page == render_frontier(json.loads(json.dumps(found.data)) | {"model": "<Network>"})


def test_the_csv_reads_back(found):
    rows = list(csv.DictReader(io.StringIO(frontier_csv(found.data))))
    for row, point in zip(rows, found.points, strict=True):
        assert (row["curve"], float(row["budget"])) == (point["curve"], point["budget"])
        assert float(row["agreement"]) == point["agreement"]
        assert row["accuracy_low"] == ("" if point["accuracy_bounds"] is None else str(point["accuracy_bounds"][0]))


def test_the_figure_is_written_twice_and_the_same_each_time(found, tmp_path):
    first, again = (save_frontier(found.data, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["frontier.svg", "frontier.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert save_frontier(found.data | {"points": []}, tmp_path / "c") == [] and not (tmp_path / "c").exists()
