"""Graphs along depth: shuffled labels have no classes, copies match at any number of edges, attacks beat noise."""

import pytest

from simprune.studies.images import read_images
from simprune.studies.networks import build, train


@pytest.fixture(scope="module")
def findings(compute, images_file):
    images = read_images(str(images_file))
    model = train(build("vgg", images, width=0.5), images, steps=60)
    options = {"models": [lambda: model] * 2, "inputs": 80, "counts": (40,), "degrees": (3, 6), "edges": (2, 20, 500)}
    return compute("graph_views", attack=0.2, **options)


def test_classes_are_in_the_graphs_unless_labels_are_shuffled(findings) -> None:
    rows = [dict(zip(findings.table("depth").columns, row, strict=True)) for row in findings.table("depth").rows]
    assert {(row["k"], row["images"]) for row in rows} == {(3, 40), (3, 80), (6, 40), (6, 80)}
    for row in rows:
        chance = 0.0 if row["statistic"] == "graph_modularity" else 1 / 16
        assert row["labels shuffled"] == pytest.approx(chance, abs=0.12)
        assert row["last layer"] > 3 * abs(row["labels shuffled"])


def test_copies_match_with_all_edges_and_numbers_beyond_the_images_are_left_out(findings) -> None:
    rows = findings.table("edges").rows
    assert sorted({row[2] for row in rows}) == [2, 20, 80]
    assert [row[3][0] for row in rows if row[2] == 80] == [1.0, 1.0]


def test_an_attack_does_more_than_noise_and_from_a_copy_it_transfers_whole(findings) -> None:
    rows = {row[1]: row[2:] for row in findings.table("attacks").rows}
    assert rows["PGD"][0] <= rows["FGSM"][0] < rows["noise"][0]
    assert rows["PGD of another seed"] == rows["PGD"]
    assert rows["PGD"][-1] < rows["noise"][-1], "the last layer's graph changes more"


def test_maps_compare_a_layer_with_itself_as_equal(findings) -> None:
    maps = [figure.data["values"] for figure in findings.figures if figure.chart == "similarity_map"]
    assert len(maps) == 3
    for values in maps:
        assert [values[i][i] for i in range(len(values))] == pytest.approx([1.0] * len(values))


def test_an_attack_has_a_size(run_study) -> None:
    with pytest.raises(ValueError, match="attack must be above 0"):
        run_study("graph_views", attack=0)
