"""Scores see a source that has learnt the target's classes; a score equal to the truth has correlation 1."""

import pytest

from simprune.studies.summaries.transferability import TRUTHS, findings_of
from simprune.studies.tools.transfer import SCORES


@pytest.fixture(scope="module")
def findings(compute):
    sources = ("all classes", "untrained")
    options = {"architectures": ("vgg",), "sources": sources, "steps": 80, "tune_steps": 10, "tune_seeds": 1}
    return compute("transferability", target_images=80, **options)


def networks(findings) -> dict[str, dict[str, float]]:
    table = findings.table("networks")
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def test_a_trained_source_scores_above_an_untrained_one(findings) -> None:
    trained, untrained = networks(findings)["vgg, all classes"], networks(findings)["vgg, untrained"]
    assert trained["probe on test"] > untrained["probe on test"]
    for score in SCORES:
        assert trained[score] > untrained[score], score


def test_every_score_has_its_rank_correlation_and_its_cost(findings) -> None:
    ranks = findings.table("tau").rows
    assert {row[2] for row in ranks} == {*SCORES, "parameters", "random score"}
    assert {row[0] for row in ranks} == set(TRUTHS)
    assert next(row[3][0] for row in ranks if row[:3] == ["probe on test", "all", "LogME"]) == 1
    seconds = {row[0]: row[1:] for row in findings.table("seconds").rows}
    assert seconds["fine-tuned"][1] == 1
    assert all(share > 0 for _, share in seconds.values())
    assert {row[1] for row in findings.table("layers").rows} == {*SCORES, "depth"} - {"LEEP"}


def test_a_score_equal_to_the_truth_has_correlation_one_and_its_opposite_minus_one() -> None:
    rows = []
    for number in range(8):
        scores = dict.fromkeys(SCORES, 0.1 * number) | {"LEEP": -number}
        truths = dict.fromkeys(TRUTHS, 0.05 * number)
        seconds = dict.fromkeys((*SCORES, "fine-tuned"), 1.0)
        one = {"name": str(number), "architecture": "ab"[number % 2], "parameters": 5}
        rows.append(one | {"scores": scores, "truths": truths, "seconds": seconds})
    layers = [{"name": "0", "architecture": "a", "layers": [[str(i), i, dict.fromkeys(SCORES, i)] for i in range(3)]}]
    findings = findings_of(rows, layers, seed=0)
    taus = {tuple(row[:3]): row[3] for row in findings.table("tau").rows}
    for group in ("all", "a", "b"):
        assert taus["fine-tuned", group, "motif share"] == [1.0, 1.0, 1.0]
        assert taus["fine-tuned", group, "LEEP"] == [-1.0, -1.0, -1.0]
        assert taus["fine-tuned", group, "parameters"][0] != taus["fine-tuned", group, "parameters"][0]  # NaN
    assert findings.table("layers").rows[0][2][0] == 1


def test_sources_have_names(run_study) -> None:
    with pytest.raises(ValueError, match="expected some of same classes"):
        run_study("transferability", sources=["imagenet"])
