"""Copies stitch without loss; layers of unlike kinds are left out; the motif share is that of the layer below."""

import pytest

from simprune.studies.images import read_images
from simprune.studies.networks import build, train
from simprune.studies.stitching import HALVES


@pytest.fixture(scope="module")
def images(images_file):
    return read_images(str(images_file))


@pytest.fixture(scope="module")
def findings(compute, images):
    model = train(build("vgg", images, depth=0.5), images, steps=60)
    measures = ["cka", {"name": "gbs", "k": 3}]
    return compute("stitching", models=[lambda: model] * 2, inputs=80, fit=128, epochs=1, measures=measures)


def cases(findings) -> list[dict]:
    table = findings.table("cases")
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_a_copy_stitches_without_loss_at_matching_depth(findings, images) -> None:
    matching = [case for case in cases(findings) if case["apart"] == 0]
    assert len(matching) == 2 * 3  # both orders of the two, three layers
    best = max(case["direct"] for case in matching)
    assert best > 0.9
    for case in matching:
        assert case["direct"] == pytest.approx(best, abs=0.02)
        assert case["cka"] == pytest.approx(1)
        assert case["gbs k=3"] == pytest.approx(1)


def test_maps_and_vectors_are_not_stitched(findings) -> None:
    joined = {(case["below"], case["above"]) for case in cases(findings)}
    vector = "classifier.1"
    assert (vector, vector) in joined
    assert not any((below == vector) != (above == vector) for below, above in joined)


def test_the_tables_hold_every_predictor_and_the_baselines(findings) -> None:
    ranks = findings.table("tau")
    assert {row[2] for row in ranks.rows} == {"motif", "match", "cka", "gbs k=3", "apart", "depth"}
    assert all(not abs(row[3][0]) > 1 for row in ranks.rows)  # NaN where all are equal
    assert findings.table("averages").column("halves") == ["trained/trained"]


def test_halves_and_classes_must_fit(run_study, images) -> None:
    with pytest.raises(ValueError, match="expected some of " + ", ".join(HALVES)):
        run_study("stitching", halves=["late/trained"])
    with pytest.raises(ValueError, match="no two of the same"):
        run_study("stitching", models=[lambda: build("vgg", images), lambda: build("residual", images)])


def test_a_random_bottom_is_worse(compute) -> None:
    halves = ("trained/trained", "random/trained")
    options = {
        "architectures": ("vgg",),
        "pairs": 1,
        "halves": halves,
        "inputs": 80,
        "fit": 128,
        "epochs": 1,
        "measures": ["cka"],
    }
    rows = {row[1]: row for row in compute("stitching", steps=60, **options).table("averages").rows}
    assert rows["random/trained"][2] < rows["trained/trained"][2]
    assert rows["random/trained"][4] < rows["trained/trained"][4], "and has fewer triangles within one class"
