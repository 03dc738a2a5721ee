"""A chart shows its numbers, in a page as in a paper; it escapes, and takes the page's colours."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from simprune.report import charts
from simprune.report.units import DASH, MINUS

TIMES = "\N{MULTIPLICATION SIGN}"
EVIL = "</text><script>a</script>$x^{2$ \\frac"
VALUES = [[1.0, 0.25, -0.5], [0.25, 1.0, None], [-0.5, None, 1.0]]


def parsed(markup):
    return ElementTree.fromstring(str(markup).replace("<svg", '<svg xmlns:xlink="x"', 1))


def drawn_map(names=("a", "b", "c"), **options):
    return charts.similarity_map(VALUES, names, names, "cka", **options)


def blocks(count):
    entry = {"value": 0.9, "low": 0.8, "high": 0.95, "null": 0.1}
    return [
        {"name": f"b{i}", "point": i + 1, "chain": i // 3, "share": 0.1, "similarity": {"cka": entry, "cca": entry}}
        for i in range(count)
    ]


def point(curve, macs, rate):
    return {"curve": curve, "macs": macs, "accuracy": rate, "accuracy_bounds": None if rate is None else (0.8, 0.99)}


FRONTIER = {
    "curves": {"joint": "", "random": ""},
    "original": {"accuracy": 0.98},
    "points": [point("joint", 0.7, 0.97), point("joint", 0.3, 0.9), point("random", 0.5, None)],
}
CURVE = {"x": [1, 2, 4], "y": [0.5, None, 0.7], "low": [0.4, None, 0.6], "high": [0.6, None, 0.8]}
BINS = [{"confidence": 0.8, "accuracy": 0.75, "bounds": (0.6, 0.85), "count": 12}]
CHARTS = {
    "map": lambda: drawn_map(segments=[0, 0, 1], gone=["b"]),
    "distances": lambda: drawn_map(reverse=True),
    "windows": lambda: charts.window_map({"blocks": ["a", "b"], "distances": [[0.2, 0.1], [0.3]]}),
    "profile": lambda: charts.profile(blocks(7), ["cka", "cca"], "similarity"),
    "frontier": lambda: charts.frontier(FRONTIER, {"macs": "multiply-adds kept"}, ["accuracy"]),
    "reliability": lambda: charts.reliability(BINS, "pruned"),
    "dots": lambda: charts.dots(["a", "b"], {"one": [(0.5, 0.4, 0.6), None], "b": [(0.1, None, None)] * 2}, "rate", 0),
    "lines": lambda: charts.lines("n", "rate", {"one": CURVE, "a name that is longer than most": CURVE}, log=True),
    "scatter": lambda: charts.scatter("n", "rate", {str(number): CURVE for number in range(5)}, diagonal=True),
}


@pytest.fixture(params=CHARTS)
def chart(request):
    return CHARTS[request.param]


def test_a_chart_in_a_page_is_well_formed_named_and_loads_nothing(chart):
    drawn = charts.inline(chart(), "name")
    picture = parsed(drawn)
    assert picture.get("role") == "img" and picture.get("aria-label")
    ids = [each.get("id") for each in picture.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    for used in re.findall(r'href="([^"]*)"|url\(([^)]*)\)', drawn):
        target = "".join(used)
        assert target.startswith("data:image/png") or target.removeprefix("#") in ids
    assert not re.search(r"https?://|<style|<metadata", drawn)


def test_colours_follow_the_page(chart):
    drawn = charts.inline(chart(), "name")
    assert "var(--ink)" in drawn
    assert not [colour for colour in charts.VARIABLES if colour in drawn]


def test_two_charts_of_one_page_share_no_id(chart):
    first, second = (re.findall(r'\bid="([^"]+)"', charts.inline(chart(), name)) for name in ("a", "b"))
    assert not set(first) & set(second)


def test_the_same_chart_gives_the_same_bytes_whatever_the_settings_of_matplotlib(chart, tmp_path):
    before, page = charts.save({"x": chart()}, tmp_path / "a"), charts.inline(chart(), "x")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        after = charts.save({"x": chart()}, tmp_path / "b")
        assert charts.inline(chart(), "x") == page
        assert matplotlib.rcParams["font.size"] == 30
    assert [path.name for path in before] == ["x.svg", "x.png"]
    assert [path.read_bytes() for path in before] == [path.read_bytes() for path in after]
    assert "<text" in before[0].read_text()


def test_names_are_escaped_and_no_formulas():
    names = (EVIL, "b", "c")
    drawn = charts.inline(charts.similarity_map(VALUES, names, names, EVIL), "x")
    assert not list(parsed(drawn).iter("script"))
    assert any(EVIL in (title.text or "") for title in parsed(drawn).iter("title"))


@pytest.mark.parametrize("size, least", [(3, 0.0), (20, 0.0), (90, 0.0), (90, 7.5)])
def test_the_cells_of_a_map_are_where_the_page_says(size, least):
    names = [f"encoder.layers.{i}.output" for i in range(size)]
    chart = charts.similarity_map(np.eye(size).tolist(), names, names, "cka", least=least)
    width, height = 72 * chart.figure.get_size_inches()
    x, y, w, h = chart.figure.axes[0].get_position().bounds
    assert (x * width, (1 - y - h) * height) == pytest.approx((chart.left, chart.top))
    assert (w * width, h * height) == pytest.approx((size * chart.cell, size * chart.cell))
    assert width <= charts.COLUMN + 1 or least


def test_a_map_says_every_pair_its_numbers_and_what_is_gone():
    picture = parsed(charts.inline(drawn_map(gone=["b"]), "x"))
    titles = [title.text for title in picture.iter("title")]
    assert len(titles) == 9 and f"a {TIMES} c: {MINUS}0.5" in titles and f"b {TIMES} c: {DASH}" in titles
    texts = [text.text for text in picture.iter("text")]
    assert {"1.00", ".25", f"{MINUS}.50"} <= set(texts) and "\N{MULTIPLICATION X} b  2" in texts
    assert [text.text for text in picture.iter("text") if "var(--gone)" in text.get("style")] == [
        "\N{MULTIPLICATION X} b  2"
    ]


def test_the_colours_of_distances_are_turned_round():
    images = {key: drawn_map(reverse=key).figure.axes[0].images[0] for key in (False, True)}
    assert images[False].cmap(0.0) == images[True].cmap(1.0)
    assert images[False].get_clim() == images[True].get_clim() == (-0.5, 1.0)


def test_curves_stand_at_their_points():
    axes = CHARTS["frontier"]().figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["joint"].get_xydata(), [[70, 97], [30, 90]])
    assert len(lines["random"].get_xydata()) == 0
    assert lines["joint"].get_marker() != lines["random"].get_marker()  # colour is never the only sign


@pytest.mark.parametrize("values", [[[0.7]], [[None]], [[0.0, 0.0]], [[-3.0, 250.0]], [[1e-9, 2e-9]]])
def test_the_scale_encloses_any_values(values):
    low, high = charts.scale(values)
    assert low < high
    assert all(low <= v <= high for row in values for v in row if v is not None)


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, json, simprune.report.analysis, simprune.report.verdict, simprune.report.frontier; "
    code += "print(json.dumps('matplotlib' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) is False
