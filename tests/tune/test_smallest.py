"""The smallest model that passes: which budgets are tried, what is kept of them, and going on after an interruption."""

import json
import math
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import simprune as sp
from simprune import stages
from simprune.checks import Gate, GateResult, Verdict
from simprune.core.checkpoint import Checkpoint
from simprune.core.plan import Edit, Plan
from simprune.repair.recovery import Recovered
from simprune.trace.network import Network
from simprune.tune.smallest import Attempt, NothingPassed, Procedure, Record, SearchSettings, smallest
from simprune.tune.smallest.attempts import next_budget
from tests.networks import Residual

MACS = 10**6


# ---- which budgets ----


def searched(passes, tolerance=0.02, keeps=lambda budget: budget):
    """Steps of a search in which `passes` says of a share kept whether the model passes."""
    steps: list[Attempt] = []
    while (budget := next_budget(steps, tolerance)) is not None:
        kept = 1.0 if not steps else keeps(budget)
        passed = passes(kept)
        steps.append(Attempt(budget, kept, "pass" if passed else "fail", passed))
    return steps


def bisection(threshold, tolerance):
    """The same, written down in the plainest way."""
    high, tried = 1.0, []
    while high > tolerance:
        tried.append(high / 2)
        if high / 2 < threshold:
            break
        high /= 2
    else:
        return high, tried
    low = high / 2
    while high - low > tolerance:
        middle = (low + high) / 2
        tried.append(middle)
        low, high = (low, middle) if middle >= threshold else (middle, high)
    return high, tried


@pytest.mark.parametrize("tolerance", [0.3, 0.05, 0.02, 0.001])
@pytest.mark.parametrize("threshold", [0.0, 0.003, 0.1, 0.25, 0.4999, 0.5, 0.613, 0.875, 0.99, 1.0])
def test_a_monotone_check_gives_exactly_the_bisection(threshold, tolerance):
    steps = searched(lambda kept: kept >= threshold, tolerance)
    found, tried = bisection(threshold, tolerance)
    assert [step.budget for step in steps[1:]] == tried
    assert min(step.kept for step in steps if step.passed) == found
    assert found - tolerance <= max(threshold, found / 2 if threshold == 0 else 0) <= found or found <= tolerance


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.02, 0.003])
def test_no_search_needs_more_checks_than_it_says(tolerance):
    made = {
        len(searched(lambda kept, t=t: kept >= t / 997, tolerance, lambda b, f=f: b * f)) - 1
        for t in range(0, 998, 3)
        for f in (1.0, 0.97, 0.7)
    }
    assert max(made) == SearchSettings(tolerance=tolerance).checks


def test_the_budget_follows_what_a_plan_keeps_where_structures_are_large():
    steps = searched(lambda kept: kept >= 0.3, keeps=lambda budget: math.floor(budget / 0.2) * 0.2)
    assert [round(step.kept, 1) for step in steps] == [1, 0.4, 0.2, *[0.2] * (len(steps) - 3)]
    assert min(step.kept for step in steps if step.passed) == 0.4


def test_where_the_original_does_not_pass_nothing_else_is_tried():
    assert len(searched(lambda kept: False)) == 1


# ---- the search with made-up models ----


class Weight(nn.Module):
    """A model that is its share of the cost."""

    def __init__(self, share):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(float(share)))


def plan_of(share, size=1024):
    """A plan that keeps the share of a layer of `size` channels, rounded down."""
    kept = math.floor(share * size)
    edits = (Edit("channels", "layer", tuple(range(size - kept)), size),) if kept < size else ()
    return Plan(edits, "none", {}, original={"macs": MACS}, expected={"macs": kept * MACS // size})


class Follow:
    """Instead of a recovery: counts, and makes the model that its plan describes."""

    def __init__(self):
        self.followed = []

    def follow(self, plan, network, watch, folder):
        share = plan.expected["macs"] / MACS
        self.followed.append(share)
        small = Weight(share)
        watch("pruned", small)
        return Recovered(small, [], [])


class StagesOf:
    """Instead of the table of stages of the original."""

    def __init__(self, rows=({"name": "original", "accuracy": 1.0, "agreement": 1.0, "latency_ms": 1.5},)):
        self.rows = [*rows]

    def beside(self):
        return StagesOf(())

    def add(self, name, model):
        share = model.share.item()
        self.rows.append({"name": name, "accuracy": share, "agreement": share, "latency_ms": None})


def verdict(outcome, value=0.0):
    gate = Gate("disagreement", limit=0.1)
    return Verdict((GateResult(gate, value, value, value, outcome, 100, "made up"),), 100)


def trial(outcome_of, choose=plan_of, **options):
    """`outcome_of`: from the share kept to pass, fail or inconclusive."""

    def judge(model):
        return verdict(outcome_of(model.share.item()))

    return Procedure(Network(Weight(1), ((), {})), choose, Follow(), judge, StagesOf(), SearchSettings(**options))


def falls_at(threshold):
    return lambda share: "pass" if share >= threshold else "fail"


@pytest.mark.parametrize("threshold", [0.07, 0.35, 0.66, 0.97])
def test_the_model_passes_and_the_next_smaller_one_that_was_tried_failed(threshold):
    made = trial(falls_at(threshold))
    found = smallest(made, {})
    share = found.followed.model.share.item()
    next_one = max(step.kept for step in found.steps if not step.passed)
    assert share >= threshold > next_one and share - next_one <= 0.02
    assert found.plan.expected["macs"] == pytest.approx(share * MACS)
    assert found.verdict.passed and found.rows[-1]["accuracy"] == pytest.approx(share)


@pytest.mark.parametrize(
    "inconclusive, expected", [("fail", 0.6), ("pass", 0.4)]
)  # passes from 0.6, cannot be decided from 0.4
def test_inconclusive_counts_as_failed_unless_told_otherwise(inconclusive, expected):
    def outcome(share):
        return "pass" if share >= 0.6 else "inconclusive" if share >= 0.4 else "fail"

    found = smallest(trial(outcome, inconclusive=inconclusive), {})
    assert expected <= found.followed.model.share.item() < expected + 0.02


def test_the_same_plan_is_not_made_twice():
    made = trial(falls_at(0.7), choose=lambda share: plan_of(share, size=4))
    found = smallest(made, {})
    assert made.recovery.followed == [0.5, 0.75]
    assert found.followed.model.share.item() == 0.75
    repeated = [step for step in found.steps if step.same_as is not None]
    assert repeated and all(
        step.outcome == "fail" and step.same_as == 1 and step.reason == "as step 1" for step in repeated
    )


def test_a_search_by_latency_ends_and_goes_on_whatever_the_clock_reads(tmp_path, monkeypatch):
    """Plans of one budget keep more or less each time; finished steps are not measured again."""
    draw = random.Random(0)

    def choose(share):
        made = plan_of(share * draw.uniform(0.9, 1), size=32)
        return replace(made, original={**made.original, "latency_ms": 2.0}, expected={**made.expected, "latency_ms": (
            2.0 * made.expected["macs"] / MACS * draw.uniform(0.98, 1.0)
        )})  # fmt: skip

    first, again = (trial(falls_at(0.4), choose, kind="latency") for _ in range(2))
    found = smallest(first, {}, Record(tmp_path / "search"))
    assert 0.4 <= found.followed.model.share.item() <= 0.5
    assert all(step.kept <= step.budget for step in found.steps)
    monkeypatch.setattr(Record, "model", lambda self, step, plan, original: Weight(found.steps[step].kept))
    resumed = smallest(again, {}, Record(tmp_path / "search"))
    assert resumed.steps == found.steps and not again.recovery.followed


class FollowAndTrain(Follow):
    """Stores a training in the folder of the step, which no other plan can go on from."""

    def follow(self, plan, network, watch, folder):
        Checkpoint(folder / "state", plan.expected).save("training", {"weight": torch.ones(1)})
        return super().follow(plan, network, watch, folder)


def test_a_search_by_latency_leaves_an_interrupted_training_where_the_clock_gives_another_plan(tmp_path):
    def at(speed, judge):
        def choose(share):
            made = plan_of(share * speed)
            latency = {"latency_ms": made.expected["macs"] / MACS}
            return replace(made, original={**made.original, "latency_ms": 1.0}, expected={**made.expected, **latency})

        made = trial(falls_at(0.4), choose, kind="latency")
        return replace(made, recovery=FollowAndTrain(), judge=judge or made.judge)

    def interrupted(model):
        if model.share.item() < 1:
            raise KeyboardInterrupt
        return verdict("pass")

    with pytest.raises(KeyboardInterrupt):
        smallest(at(0.99, interrupted), {}, Record(tmp_path))
    assert (tmp_path / "step-1" / "state").is_dir()
    smallest(at(0.95, None), {}, Record(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_cannot_be_reached_ends_the_bracket():
    def choose(share):
        if share < 0.3:
            raise ValueError(f"budget: macs {share} cannot be reached")
        return plan_of(share)

    found = smallest(trial(falls_at(0), choose), {})
    assert 0.3 <= found.followed.model.share.item() <= 0.32
    assert {step.outcome for step in found.steps if not step.passed} == {"unreachable"}


def test_a_wrong_argument_is_not_taken_for_a_budget_out_of_reach():
    def choose(share):
        raise ValueError("planner: no option depth")

    with pytest.raises(ValueError, match="no option depth"):
        smallest(trial(falls_at(0), choose), {})


def test_nothing_removable_is_an_error_that_says_so():
    def choose(share):
        if share < 1:
            raise ValueError("cannot be reached; 0 blocks are removable")
        return plan_of(share)

    with pytest.raises(ValueError, match="nothing can be made smaller.*0 blocks"):
        smallest(trial(falls_at(0), choose), {})


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_when_nothing_passes_the_mildest_budget_and_its_check_are_named(outcome):
    with pytest.raises(
        NothingPassed, match=rf"mildest budget tried, macs 0.984, .*{outcome} by disagreement"
    ) as caught:
        smallest(trial(lambda share: "pass" if share == 1 else outcome), {})
    assert caught.value.verdict.outcome == outcome
    with pytest.raises(NothingPassed, match=f"not even the original .*{outcome} by disagreement"):
        smallest(trial(lambda share: outcome), {})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "mac"}, "search.kind: unknown 'mac'; did you mean 'macs'"),
        ({"tolerance": 0}, r"\[0.0001, 0.5\]; got 0"),
        ({"tolerance": math.nan}, "got nan"),
        ({"tolerance": "fine"}, "search.tolerance: expected a number"),
        ({"inconclusive": "maybe"}, "search.inconclusive: unknown 'maybe'"),
        ({"correction": "holm"}, "search.correction: unknown 'holm'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**options)


def test_bonferroni_divides_the_risk_among_all_checks_that_can_be_made():
    gates = [Gate("disagreement", limit=0.1), Gate("accuracy_drop", limit=0.1, confidence=0.9)]
    strict = SearchSettings(tolerance=0.02, correction="bonferroni").gates(gates)
    assert [1 - gate.confidence for gate in strict] == pytest.approx([0.05 / 6, 0.1 / 6])
    assert SearchSettings().gates(gates) == gates


# ---- the real thing, and its folder ----

GATES = [Gate("disagreement", limit=0.08)]


def compress(trained, folder=None, **options):
    model, data = trained
    given = {"gates": GATES, "search": {"tolerance": 0.1}, "finetune": 1, "train": data} | options
    return sp.compress(model, calibration=data, test=data, budget="smallest", folder=folder, **given)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """An uninterrupted search: its result and folder."""
    folder = tmp_path_factory.mktemp("whole") / "search"
    return compress(trained, folder), folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logs(steps):
    """The training logs of a search: of every step but the original, those that made no model aside."""
    made = (number for number, step in enumerate(steps) if number and step["same_as"] is None)
    return {f"step-{number}/training.jsonl" for number in made if steps[number]["outcome"] != "unreachable"}


def test_the_chosen_model_passes_validate_and_the_next_did_not(trained, whole):
    result, _ = whole
    model, data = trained
    search = result.report["search"]
    assert sp.validate(model, result.model, data, GATES).to_dict() == result.verdict.to_dict()
    assert result.verdict.passed
    chosen, failed = (search["steps"][search[key]] for key in ("chosen", "failed"))
    assert chosen["passed"] and not failed["passed"] and failed["decided_by"][0]["measure"] == "disagreement"
    assert 0 < chosen["kept"] - failed["budget"] <= 0.1
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report
    rows = {row["name"]: row for row in result.report["stages"]}
    assert list(rows) == ["original", "pruned", "reconstructed", "fine-tuned"]
    assert rows["fine-tuned"]["macs"] == result.plan.expected["macs"]
    assert "70" not in search["note"] and f"at most {SearchSettings(tolerance=0.1).checks} checks" in search["note"]


def test_the_folder_holds_the_state_the_chosen_weights_and_a_log_of_every_training(whole):
    result, folder = whole
    (weights,) = folder.glob("*.safetensors")
    trainings = logs(result.report["search"]["steps"])
    assert trainings and contents(folder).keys() == {"state.json", weights.name} | trainings
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {Path(name).parent.name for name in trainings}
    kept, made = load_file(weights), result.model.state_dict()
    assert all(torch.equal(kept[name], made[name]) for name in kept)


def test_interrupted_anywhere_and_resumed_is_the_same_byte_for_byte(trained, whole, tmp_path, monkeypatch):
    result, expected = whole
    real, count = stages.validate, len(result.report["search"]["steps"])
    folder, calls = tmp_path / "search", 0

    def interrupted(*args, **options):
        nonlocal calls
        calls += 1
        if calls % 2 == 0:  # every second check is interrupted: one step is finished at a time
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(stages, "validate", interrupted)
    for _ in range(count + 1):  # the stored model of a finished search is checked once more
        try:
            again = compress(trained, folder)
            break
        except KeyboardInterrupt:
            state = json.loads((folder / "state.json").read_text())
            going_on = f"step-{len(state['steps'])}"  # its training is stored, its check is not
            stored = {name for name in contents(folder) if not name.startswith(f"{going_on}/")}
            assert stored == {"state.json"} | ({state["weights"]} - {None}) | logs(state["steps"])
    assert calls > count
    assert contents(folder) == contents(expected)
    assert again.plan.to_yaml() == result.plan.to_yaml()
    assert again.verdict.to_dict() == result.verdict.to_dict()
    for row, other in zip(again.report["stages"], result.report["stages"], strict=True):
        figures = {key: row[key] == other[key] for key in row if not key.startswith("latency")}
        assert row.keys() == other.keys() and all(figures.values())
    sp.save(tmp_path / "a", again)
    sp.save(tmp_path / "b", result)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_interrupted_while_weights_are_written_nothing_is_half_written(trained, whole, tmp_path, monkeypatch):
    from simprune.tune.smallest import record

    folder, real = tmp_path / "search", record.save_model

    def half(model, path):
        real(model, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "save_model", half)
    with pytest.raises(KeyboardInterrupt):
        compress(trained, folder)
    assert not list(folder.glob("*.safetensors*"))
    assert json.loads((folder / "state.json").read_text())["weights"] is None
    monkeypatch.setattr(record, "save_model", real)
    compress(trained, folder)
    assert contents(folder) == contents(whole[1])


def test_without_training_the_steps_of_a_search_have_no_folders(trained, tmp_path):
    compress(trained, tmp_path / "search", finetune=None)
    assert not [path for path in (tmp_path / "search").iterdir() if path.is_dir()]


def test_a_finished_search_is_not_made_again_but_its_model_is_judged_again(trained, whole, monkeypatch):
    real, judged = stages.validate, []

    def counted(model, small, *rest):
        judged.append(small)
        return real(model, small, *rest)

    monkeypatch.setattr(stages, "validate", counted)
    again = compress(trained, whole[1])
    assert again.verdict.to_dict() == whole[0].verdict.to_dict()
    assert judged == [again.model]
    monkeypatch.setattr(stages, "validate", lambda *_: verdict("fail"))
    with pytest.raises(ValueError, match="does not pass its checks again"):
        compress(trained, whole[1])


def zeroed(path):
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [zeroed, flipped, Path.unlink, lambda path: path.write_bytes(b"")])
def test_weights_that_have_changed_are_refused(trained, whole, tmp_path, damage):
    folder = shutil.copytree(whole[1], tmp_path / "search")
    (weights,) = folder.glob("*.safetensors")
    damage(weights)
    with pytest.raises(ValueError, match="missing or has changed since it was stored"):
        compress(trained, folder)


def test_a_state_that_has_changed_is_refused(trained, whole, tmp_path):
    folder = shutil.copytree(whole[1], tmp_path / "search")
    state = folder / "state.json"
    state.write_text(state.read_text().replace('"passed": false', '"passed": true'))
    with pytest.raises(ValueError, match="it has changed since it was written"):
        compress(trained, folder)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
@pytest.mark.parametrize("name", ["state.json", "step-2", "step-1/training.jsonl"])
def test_links_in_a_search_that_goes_on_are_refused_and_what_they_name_stays(whole, tmp_path, name):
    folder, outside = shutil.copytree(whole[1], tmp_path / "search"), tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is a link"):
        Record(folder).load({})  # which every search begins with
    assert contents(tmp_path) == before


def test_another_search_is_refused_in_one_line(trained, whole, tmp_path):
    _, data = trained
    before = contents(whole[1])
    for options, name in [
        ({"search": {"tolerance": 0.2}}, "search.tolerance: 0.1 there, 0.2 now"),
        ({"seed": 1}, "seed"),
        ({"gates": [Gate("disagreement", limit=0.09)]}, "gates"),
        ({"planner": "uniform"}, "planner"),
    ]:
        with pytest.raises(ValueError, match=f"was made with other settings \\(.*{name}") as caught:
            compress(trained, whole[1], **options)
        assert "\n" not in str(caught.value)
    other = Residual(width=8, blocks=3).eval()
    with pytest.raises(ValueError, match="other settings"):
        compress((other, data), whole[1])
    assert contents(whole[1]) == before


@pytest.mark.parametrize("text", ["", "{}", '{"simprune_search": 2, "settings": {}, "steps": []}', "[1]"])
def test_a_damaged_state_is_refused(trained, tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="is not the state of a search"):
        Record(tmp_path).load({})


def test_a_folder_of_something_else_is_refused(trained, tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="holds no search"):
        compress(trained, tmp_path)


def test_a_search_corrected_for_its_checks_passes_the_plain_checks_too(trained):
    model, data = trained
    strict = compress(trained, search={"tolerance": 0.1, "correction": "bonferroni"}, finetune=None)
    levels = {gate["confidence"] for gate in strict.report["verdict"]["gates"]}
    assert levels == {1 - 0.05 / SearchSettings(tolerance=0.1).checks}
    assert sp.validate(model, strict.model, data, GATES).passed
    assert any("the choice as a whole is at 95 %" in note for note in strict.report["notes"])


def test_nothing_passed_carries_the_report(trained):
    with pytest.raises(NothingPassed, match="not even the original") as caught:
        compress(trained, gates=[Gate("disagreement", limit=0.001)])
    report = caught.value.report
    assert report["search"]["chosen"] is None and report["verdict"]["outcome"] == "inconclusive"
    from simprune.report import render

    page = render(report)
    assert "No smaller model passed" in page and "How the smallest model was found" in page


@pytest.mark.parametrize(
    "options, message",
    [
        ({"budget": "smalest"}, "did you mean 'smallest'"),
        ({"test": None}, "needs test batches"),
        ({"plan": plan_of(0.5)}, "leave out the plan"),
    ],
)
def test_wrong_arguments(trained, options, message):
    model, data = trained
    with pytest.raises(ValueError, match=message):
        sp.compress(model, **({"calibration": data, "test": data, "budget": "smallest"} | options))


def test_the_page_shows_every_step(whole):
    from simprune.report import render

    page = render(whole[0].report)
    steps = whole[0].report["search"]["steps"]
    section = page[page.index("How the smallest model was found") : page.index("What was removed, and why")]
    assert section.count('class="track"') == len(steps) and section.count("<tr") == len(steps) + 1
    assert "disagreement" in section and "<script" not in page
