"""The analysis: what it says follows from the model, its page is safe and whole, its figures and tables are written."""

import copy
import csv
import io
import json
import re

import numpy as np
import pytest
import torch

from simprune import api as pipeline
from simprune import measures
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.edit.apply import apply
from simprune.report.analysis import render_analysis, tables
from simprune.report.maps import profile, similarity_map, window_map
from simprune.report.paper import save_figures
from tests.networks import build


@pytest.fixture(scope="module")
def analysis():
    model, x = build("Residual")
    found = pipeline.analyze(model, [x], "cka", ("blocks", "channels"))
    other = copy.deepcopy(model)
    return pipeline.examine(model, [x], found, ["cka", "orthogonal_procrustes"], 5, 5, other=other)


def test_values_are_those_of_the_measures(analysis):
    model, x = build("Residual")
    with torch.no_grad():
        rows = [model.stem(x)]
        rows += [model.blocks[0](rows[0])]
        rows += [model.blocks[1](rows[1])]
    pooled = {name: value.mean((2, 3)) for name, value in zip(analysis["points"], rows, strict=True)}
    for each in analysis["similarity"]:
        expected = measures.matrix(each["measure"], pooled).values
        np.testing.assert_allclose(each["values"], expected, atol=1e-4)
    assert [block["order"] for block in analysis["blocks"]] != [None, None]
    assert sorted(block["order"] for block in analysis["blocks"]) == [1, 2]
    assert analysis["rows"] == len(x)


def test_an_equal_network_has_the_same_map(analysis):
    for own, other in zip(analysis["similarity"], analysis["other"]["similarity"], strict=True):
        np.testing.assert_allclose(own["values"], other["values"], atol=1e-5)


def test_what_is_left_of_a_removed_block_is_compared_at_its_place(analysis):
    model, x = build("Residual")
    plan = Plan((Edit("block", "blocks.0"),), fingerprint(model), describe(example_of(x)))
    found = pipeline.examine(
        model, [x], pipeline.analyze(model, [x], "cka", ("blocks",)), ["cka"], 0, 0, other=apply(plan, model)
    )
    assert found["other"]["points"] == found["points"] == ["blocks.0:input", "blocks.0", "blocks.1"]
    (own,), (other,) = (np.array([each["values"] for each in data["similarity"]]) for data in (found, found["other"]))
    np.testing.assert_allclose(other[:, 1], own[:, 0], atol=1e-6)
    assert other[0, 0] == pytest.approx(1, abs=1e-5)
    assert other[2, 2] < 0.9999


def test_networks_of_other_kinds_are_compared_at_their_own_layers():
    first, x = build("Residual")
    redundancy = pipeline.analyze(first, [x], "cka", ("blocks",))
    found = pipeline.examine(first, [x], redundancy, ["cka"], 0, 0, other=build("Flat")[0])
    assert found["other"]["points"] == ["conv1", "conv2", "fc1", "fc2"]
    assert len(found["other"]["similarity"][0]["values"]) == len(found["points"])


def test_a_network_without_blocks_is_described_by_its_layers():
    model, x = build("Flat")
    found = pipeline.examine(model, [x], pipeline.analyze(model, [x], "cka", ("blocks",)), ["cka"], 0, 0)
    assert found["points"] == ["conv1", "conv2", "fc1", "fc2"]
    assert found["blocks"] == []
    page = render_analysis(found)
    assert "no block that can be removed whole" in page
    assert call(model, x).shape == (12, 5)


def test_the_page_escapes_names_and_loads_nothing(analysis):
    evil = "</script><script>alert(1)</script>"
    data = json.loads(json.dumps(analysis).replace("blocks.0", evil.replace('"', "'")))
    page = render_analysis(data)
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"""(src|href)=|url\((?!#)|https?://""", page)
    assert "script-src 'sha256-" in page


def test_missing_values_and_plain_runs_are_shown(analysis):
    data = copy.deepcopy(analysis)
    for each in data["similarity"]:
        each["values"][0][1] = None
        for key in ("low", "high", "null_mean", "null_bound"):
            each.pop(key)
    for block in data["blocks"]:
        block["similarity"] = {key: {"value": None} for key in block["similarity"]}
    assert "<svg" in render_analysis(data)


def test_tables_hold_the_same_numbers(analysis):
    found = {name: list(csv.reader(io.StringIO(text))) for name, text in tables(analysis).items()}
    assert set(found) == {"similarity_cka.csv", "similarity_orthogonal_procrustes.csv", "blocks.csv", "windows.csv"}
    assert found["similarity_cka.csv"][0][1:] == analysis["points"]
    assert float(found["similarity_cka.csv"][1][2]) == analysis["similarity"][0]["values"][0][1]
    assert [row[0] for row in found["blocks.csv"][1:]] == [block["name"] for block in analysis["blocks"]]
    assert len(found["windows.csv"]) == 1 + 2 + 1


def test_figures_are_written_twice(analysis, tmp_path):
    written = save_figures(analysis, tmp_path / "figures")
    names = {path.name for path in written}
    assert {"similarity_cka.svg", "similarity_cka.png", "profile_distance.svg", "windows.png", "other_cka.svg"} <= names
    assert all(path.stat().st_size > 1000 for path in written)


def test_pictures_have_a_mark_for_every_value(analysis):
    values = analysis["similarity"][0]["values"]
    points = analysis["points"]
    drawn = similarity_map(points, points, values, "a label", [0, 0, 1])
    assert str(drawn).count('class="cell"') == 9
    assert str(drawn).count("segment") == 2
    assert str(window_map(analysis["windows"][0])).count('class="cell"') == 3
    assert str(profile(analysis["blocks"], ["cka"])).count("mark s0") == 2
