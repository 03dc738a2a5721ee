"""Gates: bounds against references and simulations, the three outcomes, and running both models."""

import copy
import json
import math
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binomtest, norm
from torch import nn

from simprune import functional, measures
from simprune.checks import Gate, GateResult, Verdict, check, clopper_pearson, gates_of, rehearse, validate
from simprune.checks.intervals import bootstrap_mean, paired_difference, percentiles, resampled
from simprune.checks.judging import Case, judge_together
from simprune.core import registry
from simprune.core.registry import find, parts, register
from simprune.functional import FunctionalMeasure, Gathered, Outputs, Score
from simprune.zoo import ResidualCNN

ONE = np.zeros(10_000, dtype=np.int64)  # a single stratum


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (800,), generator=generator)
    scores = torch.randn(800, 10, generator=generator) + 8 * nn.functional.one_hot(labels, 10)
    return scores, labels


def flipped(scores, count):
    """The same scores, with another class on top in the first `count` rows."""
    other = scores.clone()
    other[:count] = other[:count].roll(1, dims=1)
    return other


# ---- bounds ----


@pytest.mark.parametrize(("events", "count"), [(0, 1), (1, 1), (0, 300), (3, 300), (299, 300), (300, 300), (40, 90)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_clopper_pearson_is_scipys_exact_interval(events, count, confidence):
    lower, upper = clopper_pearson(events, count, confidence)
    test = binomtest(events, count, alternative="less").proportion_ci(confidence, method="exact")
    assert upper == pytest.approx(test.high, abs=1e-10)
    test = binomtest(events, count, alternative="greater").proportion_ci(confidence, method="exact")
    assert lower == pytest.approx(test.low, abs=1e-10)


def test_paired_bounds_without_flips_are_clopper_pearson():
    assert paired_difference(0, 0, 300, 0.95) == pytest.approx((-(1 - 0.05 ** (1 / 300)), 1 - 0.05 ** (1 / 300)))


def test_paired_bounds_with_many_flips_are_those_of_the_standard_error():
    lost, gained, count = 30_000, 20_000, 1_000_000
    drop = (lost - gained) / count
    reach = norm.ppf(0.95) * math.sqrt(lost + gained - (lost - gained) ** 2 / count) / count
    assert paired_difference(lost, gained, count, 0.95) == pytest.approx((drop - reach, drop + reach), rel=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(10, 0), (0, 10), (5, 5), (1, 0), (9, 1)])
def test_paired_bounds_enclose_the_value_and_mirror(lost, gained):
    lower, upper = paired_difference(lost, gained, 10, 0.95)
    assert -1 <= lower <= (lost - gained) / 10 <= upper <= 1
    assert paired_difference(gained, lost, 10, 0.95) == pytest.approx((-upper, -lower))


@pytest.mark.parametrize("rates", [(0.01, 0.0), (0.0155, 0.001), (0.01, 0.01), (0.03, 0.01), (0.1, 0.08)])
def test_paired_bounds_cover(rates):
    lost, gained, _ = np.random.default_rng(0).multinomial(300, [*rates, 1 - sum(rates)], size=1500).T
    lower, upper = paired_difference(lost, gained, 300, 0.95)
    assert np.mean(lower <= rates[0] - rates[1]) >= 0.94
    assert np.mean(upper >= rates[0] - rates[1]) >= 0.94


def divergences(count):
    """Per-sample divergences as of a pruned model: skewed, most of them small."""
    generator = torch.Generator().manual_seed(0)
    a = 4 * torch.randn(count, 10, generator=generator)
    b = a + torch.randn(count, 10, generator=generator)
    return functional.get("jensen_shannon_divergence").per_sample([a, b]).numpy()


def test_bootstrap_of_a_mean_covers():
    population, random = divergences(200_000), np.random.default_rng(1)
    bounds = np.array([bootstrap_mean(random.choice(population, 200), ONE[:200], 0.95, s) for s in range(400)])
    mean = population.mean()
    assert np.mean(bounds[:, 0] <= mean) >= 0.94
    assert np.mean(bounds[:, 1] >= mean) >= 0.94


def test_bootstrap_within_strata_covers():
    random, strata = np.random.default_rng(2), np.repeat(np.arange(20), 10)
    means = random.normal(size=20)[strata]
    bounds = np.array([bootstrap_mean(means + random.normal(size=200), strata, 0.95, s) for s in range(400)])
    truth = means.mean()
    assert np.mean(bounds[:, 0] <= truth) >= 0.94
    assert np.mean(bounds[:, 1] >= truth) >= 0.94
    whole = bootstrap_mean(means + random.normal(size=200), ONE[:200], 0.95, 0)
    assert np.diff(bounds, axis=1).mean() < np.diff(whole), "strata remove the spread between classes"


def test_bootstrap_is_the_normal_interval_for_many_samples():
    values = np.random.default_rng(3).normal(size=5000)
    reach = norm.ppf(0.95) * values.std(ddof=1) / math.sqrt(5000)
    expected = (values.mean() - reach, values.mean() + reach)
    assert bootstrap_mean(values, ONE[:5000], 0.95, 0) == pytest.approx(expected, abs=0.1 * reach)
    assert percentiles(resampled(np.mean, values, ONE[:5000], 0), 0.95) == pytest.approx(expected, abs=0.1 * reach)


def test_bootstrap_depends_on_the_seed_alone():
    values = divergences(100)
    assert bootstrap_mean(values, ONE[:100], 0.95, 5) == bootstrap_mean(values, ONE[:100], 0.95, 5)
    assert bootstrap_mean(values, ONE[:100], 0.95, 5) != bootstrap_mean(values, ONE[:100], 0.95, 6)


def test_a_draw_without_a_value_counts_as_the_worst():
    def often_undefined(sample):
        return math.nan if sample[0] > 0 else sample.mean()

    values = np.random.default_rng(4).normal(size=50)
    assert percentiles(resampled(often_undefined, values, ONE[:50], 0), 0.95) == (-math.inf, math.inf)


# ---- outcomes ----


def test_a_model_against_itself_passes_everything(logits, monkeypatch):
    monkeypatch.setattr("simprune.checks.intervals.DRAWS", 100)
    scores, labels = logits
    verdict = check(scores, scores, labels)
    assert verdict.passed
    assert [r.gate for r in verdict.results] == gates_of()
    assert all(r.value == 0 and r.outcome == "pass" for r in verdict.results)
    scores[:400] = torch.randn(400, 10, generator=torch.Generator().manual_seed(1))  # now with errors in all classes
    for id, cls in functional.classes().items():
        if cls.form == "classes" and cls.gate and id != "prune_potential":  # takes class scores of a pair
            room = 0.05 if id == "max_class_recall_drop" else 0.02  # a class has 80 samples only
            limit = 0.98 if cls.larger_is_more_similar else max(0.0, cls.range[0]) + room
            assert check(scores, scores, labels, [Gate(id, limit)]).passed, id


def test_shuffled_logits_fail(logits):
    scores, labels = logits
    verdict = check(scores, scores[torch.randperm(800, generator=torch.Generator().manual_seed(1))], labels)
    assert verdict.outcome == "fail"
    assert {r.outcome for r in verdict.results} == {"fail"}


def test_few_samples_are_inconclusive(logits):
    scores, labels = logits
    verdict = check(scores[:30], scores[:30], labels[:30])
    assert verdict.outcome == "inconclusive"
    assert not verdict.passed
    assert "about 80 samples would decide" in verdict.results[1].detail  # (1 - 0.05 / 3) ** 80 is the first below 0.05
    alone = check(scores[:30], scores[:30], labels[:30], correction="none")
    assert "about 59 samples would decide" in alone.results[1].detail  # 0.95 ** 59 is the first below 0.05


def test_one_percent_flips_of_300_do_not_decide_one_percent(logits):
    scores = logits[0][:300]
    result = check(scores, flipped(scores, 3), None, [Gate("disagreement", 0.01)]).results[0]
    assert result.value == pytest.approx(0.01)
    assert result.lower < 0.01 < result.upper
    assert result.outcome == "inconclusive"
    assert "more samples alone would not decide" in result.detail


@pytest.mark.parametrize("shift", [0.0, 1e-12])
def test_no_number_of_samples_is_advised_where_a_value_lies_on_its_limit(shift):
    a = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    b = a + 0.1 * torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    value = check(a, b, None, [Gate("jensen_shannon_divergence", 1.0)]).results[0].value
    detail = check(a, b, None, [Gate("jensen_shannon_divergence", value + shift)]).results[0].detail
    assert "lies on its limit" in detail and "would decide" not in detail


def test_the_advised_number_of_samples_decides(logits):
    scores, gate = logits[0], Gate("disagreement", 0.02)
    result = check(scores[:200], flipped(scores[:200], 2), None, [gate]).results[0]
    assert result.outcome == "inconclusive"
    advised = int(result.detail.split("about ")[1].split()[0])
    assert clopper_pearson(0.01 * advised, advised, 0.95)[1] <= 0.02
    assert clopper_pearson(0.01 * (advised - 1), advised - 1, 0.95)[1] > 0.02


def test_zero_flips_of_300_certify_one_percent_and_no_less(logits):
    scores = logits[0][:300]
    assert check(scores, scores, None, [Gate("disagreement", 0.01)]).passed
    assert check(scores, scores, None, [Gate("disagreement", 0.009)]).outcome == "inconclusive"


def test_bounds_follow_the_confidence(logits):
    scores = logits[0]
    low, high = (
        check(scores, flipped(scores, 20), None, [Gate("disagreement", 0.03, c)]).results[0] for c in (0.8, 0.99)
    )
    assert high.lower < low.lower < low.upper < high.upper


def test_equal_samples_still_leave_room_for_others():
    scores = torch.tensor([[3.0, 0.0]])
    gate = Gate("jensen_shannon_divergence", 0.05)
    for count, outcome in ((1, "inconclusive"), (30, "inconclusive"), (100, "pass")):
        assert check(scores.repeat(count, 1), scores.repeat(count, 1), None, [gate]).outcome == outcome


def test_classes_with_few_samples_are_strata(logits):
    scores, labels = logits
    noisy = scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    gates = [Gate("jensen_shannon_divergence", 0.05)]
    assert "stratified" in check(scores[:200], noisy[:200], labels[:200], gates).results[0].detail
    assert "stratified" not in check(scores, noisy, labels, gates).results[0].detail
    rare = torch.arange(20) % 10
    assert "stratified" not in check(scores[:20], noisy[:20], rare, gates).results[0].detail


@dataclass(frozen=True)
class Agreement(FunctionalMeasure):
    """A measure that is larger for more similar models, reduced by its own formula; without an id."""

    range = (0.0, 1.0)
    larger_is_more_similar = True
    kind = "statistic"
    source = "test"

    def _rows(self, outputs, labels):
        return torch.stack([outputs[0].classes, outputs[1].classes], 1).double()

    def reduce(self, rows):
        return Score((rows[:, 0] == rows[:, 1]).double().mean().item(), count=len(rows))


@dataclass(frozen=True)
class Undefined(Agreement):
    def reduce(self, rows):
        return Score(math.nan, count=len(rows), reason="0/0")


def judged(monkeypatch, measure, a, b, limit):
    monkeypatch.setattr(Gate, "build", lambda self: measure)
    case = Case.of(Gate("stand-in", limit), Gathered(measure.per_sample([a, b])), ONE[: len(a)], 0)
    return judge_together([case], "none")[0]


@pytest.mark.parametrize(("limit", "outcome"), [(0.9, "pass"), (0.94, "inconclusive"), (0.99, "fail")])
def test_larger_is_more_similar_turns_the_gate_round(monkeypatch, logits, limit, outcome):
    scores = logits[0][:200]
    assert judged(monkeypatch, Agreement(), scores, flipped(scores, 10), limit).outcome == outcome


def test_infinite_values_are_no_exception():
    sure, unsure = (Outputs.from_probabilities([row] * 50) for row in ([0.0, 1.0], [0.5, 0.5]))
    assert check(unsure, sure, None, [Gate("kl_divergence", 0.1)]).outcome == "fail"
    ratio = Gate("error_corrected_disagreement", 0.1)  # no error of the first model was seen, but there may be some
    assert check(sure, torch.eye(2)[[0, 1] * 25], [1] * 50, [ratio]).outcome == "inconclusive"


def test_evidence_beside_the_values_is_not_bounded(logits):
    scores, labels = logits
    a, b = (
        check(scores, flipped(scores, 20), labels, [Gate(id, 0.05)]).results[0] for id in ("pie_rate", "disagreement")
    )
    assert (a.value, a.lower, a.upper, a.detail) == (b.value, b.lower, b.upper, b.detail)


def test_undefined_never_passes(monkeypatch, logits):
    scores = logits[0][:200]
    result = judged(monkeypatch, Undefined(), scores, scores, 0.0)
    assert result.outcome == "inconclusive"
    assert "0/0" in result.detail


# ---- several gates, several classes ----


def holm(p, alpha):
    """The textbook's: hypotheses rejected, from their p-values."""
    order, rejected = np.argsort(p), set()
    for step, i in enumerate(order):
        if p[i] > alpha / (len(p) - step):
            break
        rejected.add(int(i))
    return rejected


@pytest.mark.parametrize("seed", range(5))
def test_correction_across_gates_is_holms(seed):
    generator = np.random.default_rng(seed)
    a, count = torch.eye(4)[torch.randint(4, (400,))], 400
    flips = int(generator.integers(4, 20))
    b = flipped(a, flips)
    limits = generator.uniform(0.0, 0.1, 6)
    verdict = check(a, b, None, [Gate("disagreement", float(limit)) for limit in limits])
    above = np.array([binomtest(flips, count, limit, "less").pvalue for limit in limits])  # against "rate > limit"
    below = np.array([binomtest(flips, count, limit, "greater").pvalue for limit in limits])
    expected = ["inconclusive"] * 6
    for i in holm(above, 0.05):
        expected[i] = "pass"
    for i in holm(below, 0.05):
        expected[i] = "fail"
    assert [result.outcome for result in verdict.results] == expected


def test_one_gate_needs_no_correction(logits):
    scores = logits[0]
    gates = [Gate("disagreement", 0.05)]
    args = (scores, flipped(scores, 9), None, gates)
    assert check(*args, correction="holm") == check(*args, correction="none")
    with pytest.raises(ValueError, match="did you mean 'holm'"):
        check(*args, correction="hol")


def test_the_worst_classs_bounds():
    labels = torch.arange(10).repeat_interleave(100)
    a = torch.eye(10)[labels]
    b = flipped(a, 20)  # all in class 0
    result = check(a, b, labels, [Gate("max_class_recall_drop", 0.1)]).results[0]
    assert result.value == pytest.approx(0.2)
    assert result.lower == pytest.approx(paired_difference(20, 0, 100, 1 - 0.05 / 10)[0])
    assert result.upper == pytest.approx(paired_difference(20, 0, 100, 0.95)[1])
    assert "10 classes (Holm), worst is class 0: 20 lost and 0 gained of 100" in result.detail


@pytest.mark.parametrize("drops", [np.full(10, 0.05), np.r_[0.15, np.zeros(9)]])
def test_the_worst_classs_bounds_cover(monkeypatch, drops):
    monkeypatch.setattr("simprune.checks.judging._deciding_scale", lambda *_: None)  # not looked at, and slow
    random, count = np.random.default_rng(0), 60
    labels = torch.arange(10).repeat_interleave(count)
    a, held = torch.eye(10)[labels], []
    for _ in range(200):
        gone = torch.from_numpy(random.random(600) < np.repeat(drops, count))
        b = torch.where(gone[:, None], a.roll(1, 1), a)
        result = check(a, b, labels, [Gate("max_class_recall_drop", 0.1)]).results[0]
        held.append((result.lower <= drops.max(), drops.max() <= result.upper))
    assert np.mean(held, axis=0).min() >= 0.94


# ---- gates and verdicts ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("disagreement", 0.1, 0.95, {}, "nose_1"), ValueError, "did you mean 'noise_1'"),
        (("block_drift", 0.1, 0.95, {}, "noise_1"), ValueError, "measured on clean inputs"),
        (("block_drift", 0.1, 0.95, {"measur": "cka"}), ValueError, "did you mean 'measure'"),
        (("block_drift", 0.1, 0.95, {"measure": "angular_shape_metric"}), ValueError, "1 for equal outputs"),
        (("disagrement", 0.1), KeyError, "did you mean 'disagreement'"),
        (
            ("modeldiff", 0.1),
            ValueError,
            r"no confidence bounds; call .*modeldiff.*model, small",
        ),
        (("stitching_score", 0.1, 0.95, {"layer_a": "1"}), ValueError, "stitching_score cannot be a gate"),
        (("excess_error_difference", 0.1), ValueError, r"outputs of 4 models; call .*\.group"),
        (("disagreement", math.nan), ValueError, "limit of disagreement must be a finite number"),
        (("disagreement", "0.1"), ValueError, "finite number; got '0.1'"),
        (("disagreement", 0.1, 95), ValueError, "confidence must lie in"),
        (("disagreement", 0.1, 1.0), ValueError, "confidence must lie in"),
        (("disagreement", 0.1, 0.95, {"base": 2}), ValueError, "takes no option 'base'"),
    ],
)
def test_bad_gates_are_refused_when_made(arguments, error, message):
    with pytest.raises(error, match=message):
        Gate(*arguments)


def test_default_gates_without_labels_say_what_was_left_out(logits):
    verdict = check(logits[0], logits[0])
    assert [r.gate.measure for r in verdict.results] == ["disagreement", "jensen_shannon_divergence"]
    assert verdict.notes == ("no labels: accuracy_drop was left out",)
    assert "accuracy_drop was left out" in verdict.table()


def test_a_gate_asked_for_is_not_left_out(logits):
    with pytest.raises(ValueError, match="accuracy_drop needs labels"):
        check(logits[0], logits[0], None, [Gate("accuracy_drop", 0.02)])


def test_no_gate_is_an_error(logits):
    with pytest.raises(ValueError, match="no gate to check"):
        check(logits[0], logits[0], None, [])


def result(outcome, value=0.1):
    return GateResult(Gate("disagreement", 0.1), value, 0.0, math.inf, outcome, 9, "a [bracketed] detail")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
        ([], "inconclusive"),
    ],
)
def test_the_worst_gate_decides(outcomes, expected):
    verdict = Verdict(tuple(map(result, outcomes)), 9)
    assert verdict.outcome == expected
    assert verdict.passed == (expected == "pass")


def test_verdict_survives_json(logits):
    scores, labels = logits
    gates = [*gates_of(), Gate("jensen_shannon_divergence", 0.1, 0.9, {"base": 10})]
    verdict = check(scores, flipped(scores, 9), labels, gates, seed=3)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict


def test_values_that_json_lacks_survive_too():
    text = json.dumps(Verdict((result("inconclusive", math.nan),), 9).to_dict(), allow_nan=False)
    read = Verdict.from_dict(json.loads(text)).results[0]
    assert math.isnan(read.value)
    assert read.upper == math.inf


@pytest.mark.parametrize("width", [40, 80, 100])
def test_table_is_plain_and_fits(logits, width):
    scores, labels = logits
    table = check(scores, flipped(scores, 9), labels).table(width)
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= width
    if width == 100:
        assert all(gate.measure in table for gate in gates_of())


def test_table_shows_details_as_they_are():
    assert "[bracketed]" in Verdict((result("pass"),), 9).table(120)


# ---- running the models ----


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    network.train()
    network[1].eval()
    return network


def batches(model, labels=True):
    with torch.no_grad():
        inputs = [torch.randn(64, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        frozen = [model.training, *(m.training for m in model)]
        model.eval()
        made = [(x, model(x).argmax(1)) if labels else x for x in inputs]
        for module, mode in zip((model, *model), frozen, strict=True):
            module.training = mode
    return made


def test_validate_runs_both_models_as_in_deployment(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    verdict = validate(model, model, batches(model))
    assert verdict.passed
    assert verdict.count == 192
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_validate_finds_a_broken_model(model):
    broken = nn.Sequential(*model[:-1], nn.Linear(16, 4))
    assert validate(model, broken, batches(model)).outcome == "fail"


def test_validate_needs_no_labels(model):
    assert validate(model, model, batches(model, labels=False)).notes


def test_validate_is_check_on_the_logits(model):
    small = nn.Sequential(*model[:-1], nn.Linear(16, 4))
    test = batches(model)
    verdict = validate(model, small, test, seed=4)
    model.eval()
    small.eval()
    with torch.no_grad():
        a, b = (torch.cat([network(x) for x, _ in test]) for network in (model, small))
    assert verdict == check(a, b, torch.cat([y for _, y in test]), seed=4)


class Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken on purpose")


def test_modes_come_back_after_an_error(model):
    small = nn.Sequential(Breaks())
    with pytest.raises(RuntimeError, match="on purpose"):
        validate(model, small, batches(model))
    assert [m.training for m in model] == [True, False, True, True, True]
    assert small.training


class Maps(nn.Module):
    def forward(self, x):
        return x[:, :, None]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([], "test set is empty"),
        ((x for x in ()), "more than once"),
        ([torch.zeros(2, 4), (torch.zeros(2, 4), torch.tensor([0, 1]))], "1 of 2 test batches have labels"),
        ([torch.zeros(2, 4), torch.zeros(2, 5)], "batches must be alike"),
        ([torch.full((2, 4), math.nan)], "logits_a must be finite"),
        ([(torch.zeros(2, 4), torch.tensor([0, 9]))], "labels must lie in"),
    ],
)
def test_bad_test_sets_are_one_clear_error(test, message):
    with pytest.raises(ValueError, match=message):
        validate(nn.Identity(), nn.Identity(), test)


def test_outputs_that_are_not_class_scores_are_refused():
    with pytest.raises(ValueError, match=r"needs class scores \(N, C\).*shape \(2, 4, 1\)"):
        validate(Maps(), Maps(), [torch.zeros(2, 4)], "default")
    with pytest.raises(ValueError, match="one shape"):
        validate(nn.Identity(), nn.Linear(4, 3), [torch.zeros(2, 4)])


# ---- other forms of outputs, shifted inputs, inner layers ----


def of_yaml(name):
    content = yaml.safe_load((Path(__file__).parents[2] / "conf" / "check" / f"{name}.yaml").read_text())
    return [Gate(**gate) for gate in content["gates"]]


SETS = ("default", "strict", "embedding", "language_model", "robustness", "representation", "unlabelled")


def test_check_sets_are_parts():
    assert set(SETS) <= set(parts("check"))


@pytest.mark.parametrize("name", SETS)
def test_built_in_sets_are_gates(name):
    gates = gates_of(name)
    assert len(gates) == len(set(map(str, gates)))
    assert find("check", name).summary


def test_a_check_set_is_named_like_any_part(logits):
    scores, labels = logits
    assert check(scores, scores, labels, "strict") == check(scores, scores, labels, gates_of("strict"))
    assert check(scores, scores, labels, {"name": "default"}) == check(scores, scores, labels)
    assert gates_of("default") == gates_of()


@pytest.mark.parametrize(
    ("gates", "error", "message"),
    [
        (Gate("disagreement", 0.1), ValueError, r"put it into a list, \[Gate\(...\)\]"),
        ("strikt", KeyError, "no check set named 'strikt'; did you mean 'strict'"),
        ({"name": "strict", "limit": 0.1}, ValueError, "takes no option 'limit'"),
        (["disagreement"], ValueError, r"list of Gate\(measure, limit=...\); got 'disagreement'"),
        (3, ValueError, "got 3: pass a list"),
    ],
)
def test_wrong_gates_are_one_line(logits, gates, error, message):
    for call in (lambda: check(logits[0], logits[0], None, gates), lambda: rehearse(nn.Identity(), [logits[0]], gates)):
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


# ---- parts of other packages ----


@pytest.fixture
def own_parts(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_parts", {kind: dict(known) for kind, known in registry._parts.items()})


def test_a_check_with_bounds_of_its_own_is_one_dataclass(own_parts, logits):
    @dataclass(frozen=True)
    class Furthest(FunctionalMeasure):
        """Largest change of any class score; its bounds are the value itself and twice that."""

        id = "furthest"
        range = (0.0, math.inf)
        kind = "statistic"
        source = "test"

        def _rows(self, outputs, labels):
            return (outputs[0].scores - outputs[1].scores).abs().amax(1)

        def reduce(self, rows):
            return Score(rows.max().item(), count=len(rows))

        def bounds(self, rows, strata, seed):
            largest = rows.max().item()
            return lambda scale, confidence: (largest, 2 * largest), "twice"

    scores, _ = logits
    result = check(scores, scores + 0.25, None, [Gate("furthest", 0.6)]).results[0]
    assert (result.value, result.lower, result.upper) == pytest.approx((0.25, 0.25, 0.5), abs=1e-5)
    assert result.outcome == "pass" and result.detail == "twice"


def test_a_check_that_reads_inside_of_models_is_one_dataclass(own_parts, model):
    @dataclass(frozen=True)
    class WeightDrift(FunctionalMeasure):
        """Largest distance of a parameter of both models, relative; as many samples as there are batches."""

        id = "weight_drift"
        range = (0.0, math.inf)
        kind = "statistic"
        form = "models"
        source = "test"

        def _rows(self, outputs, labels):
            raise ValueError("weight_drift reads models")

        def gather(self, model_a, model_b, batches):
            pairs = {k: v.double() for k, v in model_a.state_dict().items()}
            row = [float((pairs[k] - v).norm() / (pairs[k].norm() + 1e-9)) for k, v in model_b.state_dict().items()]
            return Gathered(torch.tensor([row for _ in batches]).double(), tuple(pairs))

        def reduce(self, rows):
            return Score(rows.mean(0).max().item(), count=len(rows))

    small = copy.deepcopy(model)
    small[4].weight.data.mul_(1.5)
    result = validate(model, small, batches(model), [Gate("weight_drift", 0.1)]).results[0]
    assert result.outcome == "fail" and result.value == pytest.approx(0.5)
    assert "most in 4.weight" in result.detail
    with pytest.raises(ValueError, match="needs the models"):
        check(torch.eye(2), torch.eye(2), None, [Gate("weight_drift", 0.2)])


def test_a_corruption_of_another_package_is_an_input_of_gates(own_parts):
    @register("corruption", "invert")
    def invert(images, severity, generator):
        return 1 - images

    @register("corruption", "against", attack=True)
    def against(images, labels, model, limits):
        return images.flip(0)

    net, seen = small_network(), []

    class Sees(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return net(x)

    test = images(net, count=1)
    validate(net, Sees(), test, [Gate("disagreement", 1.0, inputs=name) for name in ("invert_2", "against")])
    clean, flipped_, inverted = seen
    low, high = clean.min(), clean.max()
    torch.testing.assert_close(inverted, low + high - clean)
    torch.testing.assert_close(flipped_, clean.flip(0))


def test_a_check_set_of_another_package_takes_options(own_parts, logits):
    @register("check", "changed")
    def changed(*, share: float = 0.1):
        return [Gate("disagreement", share)]

    scores, _ = logits
    assert check(scores, scores, None, {"name": "changed", "share": 0.2}).results[0].gate.limit == 0.2


def test_every_gate_is_usable_by_a_verdict(monkeypatch):
    """What says of itself that it can be a gate gives a result; see the other forms above."""
    monkeypatch.setattr("simprune.checks.intervals.DRAWS", 20)
    a = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    labels = a.argmax(1)
    options = {"prune_potential": {"ratios": [0.5]}, "representational_similarity": {"measure": measures.get("cka")}}
    for id, cls in functional.classes().items():
        if cls.gate and cls.form in ("classes", "vectors"):
            gate = Gate(id, 0.5, options=options.get(id, {}))
            assert check(a, a + 0.1, labels, [gate]).results[0].outcome in ("pass", "fail", "inconclusive")


class Scaled(nn.Module):
    """The same features for all, with noise that depends on the input alone."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        return x + self.noise * torch.sin(31 * x.flip(-1))


def test_embeddings(monkeypatch):
    monkeypatch.setattr("simprune.checks.intervals.DRAWS", 200)
    test = [torch.randn(50, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    gates = gates_of("embedding")
    assert validate(Scaled(), Scaled(), test, gates).passed
    assert validate(Scaled(), Scaled(2.0), test, gates).outcome == "fail"


def test_tokens(monkeypatch):
    monkeypatch.setattr("simprune.checks.intervals.DRAWS", 200)
    random = torch.Generator().manual_seed(0)
    test = [(torch.randn(20, 6, 5, generator=random), torch.randint(5, (20, 6), generator=random)) for _ in range(5)]
    gates = gates_of("language_model")
    assert validate(Scaled(), Scaled(), test, gates).passed
    assert validate(Scaled(), Scaled(3.0), test, gates).outcome == "fail"
    whole = check(torch.cat([x for x, _ in test]), Scaled(3.0)(torch.cat([x for x, _ in test])),
                  torch.cat([y for _, y in test]), gates)  # fmt: skip
    assert [r.value for r in whole.results] == pytest.approx(
        [r.value for r in validate(Scaled(), Scaled(3.0), test, gates).results]
    )


def test_several_labels_per_sample():
    test = [torch.randn(100, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    gates = [Gate("labelwise_disagreement", 0.05)]
    assert validate(Scaled(), Scaled(), test, gates).passed
    assert validate(Scaled(), Scaled(3.0), test, gates).outcome == "fail"


def test_outputs_are_not_kept(model):
    alive = []

    def watch(batch, a, b, labels):
        alive.append(weakref.ref(a))
        assert sum(each() is not None for each in alive) <= 2

    validate(model, model, batches(model) * 3, watch=watch)
    assert len(alive) == 9


def small_network():
    torch.manual_seed(0)
    return ResidualCNN(in_channels=1, classes=3, widths=(4, 8), depths=(3, 2)).eval()


def images(model, count=2, size=64):
    made = [torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x in made]


def test_robustness_of_a_model_against_itself():
    net = small_network()
    verdict = validate(net, net, images(net), gates_of("robustness"))
    assert verdict.passed and len(verdict.results) == 17
    assert "accuracy_drop on pgd" in verdict.table()


def test_robustness_is_measured_on_the_corrupted_images():
    net, test = small_network(), images(small_network())
    gate = Gate("disagreement", 0.5, inputs="contrast_3")
    seen = []

    class Sees(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return net(x)

    validate(net, Sees(), test[:1], [gate])
    clean, other = seen
    torch.testing.assert_close(clean, test[0][0])
    torch.testing.assert_close(other.std((1, 2, 3)), 0.4 * clean.std((1, 2, 3)), rtol=0.01, atol=0)


def test_corruptions_of_other_inputs_are_refused(model):
    with pytest.raises(ValueError, match="need images"):
        validate(model, model, batches(model), gates_of("robustness"))


def test_shifted_gates_need_the_models(logits):
    with pytest.raises(ValueError, match="needs the models"):
        check(logits[0], logits[0], None, [Gate("disagreement", 0.1, inputs="noise_1")])


def test_block_drift_is_a_functional_measure():
    net = small_network()
    assert functional.classes()["block_drift"].gate
    small, f = copy.deepcopy(net), functional.get("block_drift")
    assert f(net, small, images(net, count=2)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="runs the models"):
        f.per_sample([torch.zeros(2, 3)] * 2)


def test_drift_of_kept_blocks():
    net = small_network()
    test = images(net, count=3, size=80)
    small = copy.deepcopy(net)
    gates = gates_of("representation")
    verdict = validate(net, small, test, gates)
    assert verdict.passed and verdict.results[0].value == pytest.approx(0, abs=1e-9)
    assert verdict.results[0].count == 3, "three whole groups of 64 among 240 inputs"
    nn.init.normal_(small.layer2[1].conv1.weight, std=20)
    worse = validate(net, small, test, gates).results[0]
    assert worse.value > 0.2 and "most in layer2.1" in worse.detail
