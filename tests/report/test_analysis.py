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
from simprune.api import apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.report.analysis import render_analysis, save_figures, tables
from simprune.scores.estimate import estimate
from simprune.trace.network import Network
from tests.networks import build


def examined(model, x, compared=("cka",), repeats=0, other=None, structures=("blocks",)):
    network = Network.trace(model, x)
    estimated = estimate(network, [x], measures.get("cka"), structures)
    return pipeline.examine([x], estimated, network, compared, repeats, repeats, other=other)


@pytest.fixture(scope="module")
def analysis():
    model, x = build("Residual")
    return examined(model, x, ["cka", "orthogonal_procrustes"], 5, copy.deepcopy(model), ("blocks", "channels"))


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
    found = examined(model, x, other=apply(plan, model))
    assert found["other"]["points"] == found["points"] == ["blocks.0:input", "blocks.0", "blocks.1"]
    (own,), (other,) = (np.array([each["values"] for each in data["similarity"]]) for data in (found, found["other"]))
    np.testing.assert_allclose(other[:, 1], own[:, 0], atol=1e-6)
    assert other[0, 0] == pytest.approx(1, abs=1e-5)
    assert other[2, 2] < 0.9999


def test_networks_of_other_kinds_are_compared_at_their_own_layers():
    first, x = build("Residual")
    found = examined(first, x, other=build("Flat")[0])
    assert found["other"]["points"] == ["conv1", "conv2", "fc1", "fc2"]
    assert len(found["other"]["similarity"][0]["values"]) == len(found["points"])


def test_a_network_without_blocks_is_described_by_its_layers():
    model, x = build("Flat")
    found = examined(model, x)
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
    beside = r"#|data:image/png|analysis\.json\"|recipe\.yaml\""
    assert not re.search(rf"""src=|href="(?!{beside})|url\((?!#)|https?://""", page)
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


def test_the_maps_of_the_page_can_be_pointed_at(analysis):
    """The script needs the groups, the geometry of the cells, and the values that it reads out."""
    page = render_analysis(analysis)
    maps = re.findall(r'<svg class="chart linked"[^>]*>', page)
    assert [re.search(r'data-group="(\w+)"', drawn)[1] for drawn in maps] == ["own", "own", "other", "other"]
    for drawn in maps:
        numbers = dict(re.findall(r'data-(left|top|cell)="([\d.]+)"', drawn))
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn).groups())
        left, top, cell = (float(numbers[key]) for key in ("left", "top", "cell"))
        count = len(analysis["points"])
        assert 0 < left < left + count * cell <= width and 0 < top < top + count * cell <= height
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert shown["own"]["similarity"] == analysis["similarity"]


def test_the_same_analysis_gives_the_same_page_and_the_same_figures(analysis, tmp_path):
    assert render_analysis(analysis) == render_analysis(json.loads(json.dumps(analysis)))
    first, again = (save_figures(analysis, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    names = {path.name for path in first}
    assert {"similarity_cka.svg", "similarity_cka.png", "profile_distance.svg", "windows.png", "other_cka.svg"} <= names
