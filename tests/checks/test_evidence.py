"""The evidence behind a verdict, and its page and JUnit XML."""

from xml.etree import ElementTree

import pytest
import torch
from scipy.stats import binomtest

from simprune import functional
from simprune.checks import Gate, check
from simprune.checks.evidence import Evidence, wilson
from simprune.report.verdict import junit, render_verdict


def outputs(count=90, classes=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    a = torch.randn(count, classes, generator=generator) + 2 * torch.eye(classes)[labels]
    return a, a + torch.randn(count, classes, generator=generator), labels


def collected(a, b, labels, images=None):
    evidence = Evidence()
    for rows in torch.arange(len(a)).split(32):
        x = torch.zeros(len(rows), 2) if images is None else images[rows]
        evidence((x, labels[rows]), a[rows], b[rows], labels[rows])
    return evidence.to_dict()


@pytest.mark.parametrize(("events", "count"), [(0, 9), (3, 9), (9, 9)])
def test_wilson_is_scipys(events, count):
    expected = binomtest(events, count).proportion_ci(0.95, method="wilson")
    assert wilson(events, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_evidence_agrees_with_the_measures():
    a, b, labels = outputs()
    found = collected(a, b, labels)
    assert found["changed"] / 90 == pytest.approx(functional.get("disagreement")(a, b))
    assert sum(map(sum, found["confusion"])) == 90
    assert sum(each["count"] for each in found["changes"]) == found["changed"]
    drop = max(row["before"] - row["after"] for row in found["recall"])
    assert drop == pytest.approx(functional.get("max_class_recall_drop")(a, b, labels))
    for name, logits in (("original", a), ("pruned", b)):
        bins = found["reliability"][name]
        ece = sum(each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / 90
        assert ece == pytest.approx(functional.get("ece").describe(logits, labels), abs=1e-6)


def test_the_inputs_that_changed_most_are_found_over_all_batches():
    a, b, labels = outputs()
    change = (a.double().softmax(1) - b.double().softmax(1)).abs().sum(1) / 2
    images = torch.rand(90, 1, 5, 5)
    examples = collected(a, b, labels, images)["examples"]
    assert [each["index"] for each in examples] == change.argsort(descending=True)[:12].tolist()
    assert all(each["picture"].startswith("data:image/png;base64,") for each in examples)
    assert all(each["picture"] is None for each in collected(a, b, labels)["examples"])


def test_outputs_that_are_no_class_scores_have_examples_alone():
    evidence = Evidence(class_scores=False)
    evidence(torch.zeros(3, 2), torch.eye(3), torch.eye(3) * torch.tensor([[1.0], [3.0], [2.0]]), None)
    found = evidence.to_dict()
    assert [(each["index"], each["change"]) for each in found["examples"]] == [(1, 2.0), (2, 1.0), (0, 0.0)]
    verdict = check(torch.eye(3), torch.eye(3), None, [Gate("disagreement", 0.1)]).to_dict()
    assert "changed most" in render_verdict(verdict, found)


def test_the_page_has_every_part_and_escapes():
    a, b, labels = outputs()
    verdict = check(a, b, labels).to_dict() | {"notes": ["<script>"]}
    page = render_verdict(verdict, collected(a, b, labels, torch.rand(90, 1, 5, 5)))
    for part in ('id="gates"', 'id="changes"', 'id="recall"', 'id="confidence"', 'id="examples"', "data:image/png"):
        assert part in page
    assert "<script" not in page


def test_junit_tells_gates_apart():
    a, b, labels = outputs()
    gates = [Gate("disagreement", limit, 0.9) for limit in (0.9, 0.01)] + [Gate("accuracy_drop", -0.01 + 0.15)]
    verdict = check(a, b, labels, gates)
    suite = ElementTree.fromstring(junit(verdict.to_dict()).encode())
    kinds = {"pass": "system-out", "fail": "failure", "inconclusive": "error"}
    assert [case[0].tag for case in suite] == [kinds[result.outcome] for result in verdict.results]
    assert {"pass", "fail"} <= {result.outcome for result in verdict.results}
    assert suite.get("failures") == "1" and suite.get("tests") == "3"
