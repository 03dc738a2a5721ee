"""What a picture shows is what the numbers say."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex

from simprune.report import figures, units

TIMES = "\N{MULTIPLICATION SIGN}"


def elements(markup, name, class_=None):
    found = ElementTree.fromstring(str(markup)).iter(name)
    return [e for e in found if class_ is None or class_ in e.get("class", "").split()]


def squares(strip, kind):
    """The channels that the dashed runs of one kind cover."""
    (path,) = elements(strip, "path", kind) or [None]
    if path is None:
        return []
    side = int(path.get("stroke-dasharray").split()[0])
    pitch, per_row = side + 2, 32 if side == 8 else 64
    found = []
    for x, y, length in re.findall(r"M(\d+) ([\d.]+)h(\d+)", path.get("d")):
        first = (int(x) - 1) // pitch + int(float(y) // pitch) * per_row
        found += range(first, first + (int(length) + 2) // pitch)
    return found


@pytest.mark.parametrize("of", [1, 2, 16, 32, 33, 128, 129, 1000])
def test_a_strip_shows_each_channel_once(of):
    removed = [i for i in range(of) if (i * i + i // 3) % 5 < 2]
    strip = figures.channel_strip(of, removed)
    assert squares(strip, "removed") == removed
    assert squares(strip, "kept") == [i for i in range(of) if i not in removed]


def test_a_strip_of_one_kind():
    assert squares(figures.channel_strip(40, []), "kept") == list(range(40))
    assert squares(figures.channel_strip(40, range(40)), "removed") == list(range(40))


def test_bars_are_sorted_and_split_by_kind():
    bars = figures.redundancy_bars([0.5, 1.0, None, 0.25], removed=[1])
    heights = {
        kind: [float(v) for v in re.findall(r"v-([\d.]+)", elements(bars, "path", kind)[0].get("d"))]
        for kind in ("kept", "removed")
    }
    assert heights == {"removed": [44.0], "kept": [22.0, 11.0, 1.0]}


def test_heatmap_cells_have_their_colour_and_title():
    names, values = ["a", "b"], [[1.0, 0.25], [None, 0.0]]
    titles = [f"{a} {TIMES} {b}: {v}" for a, b, v in ("aa1", ("a", "b", "0.25"), ("b", "a", units.DASH), "bb0")]
    cells = elements(figures.heatmap(names, values, ["b"]), "rect", "cell")
    assert [cell.find("title").text for cell in cells] == titles
    viridis = colormaps["viridis"]
    assert [cell.get("fill") for cell in cells] == [
        to_hex(viridis(1.0)),
        to_hex(viridis(0.25)),
        None,
        to_hex(viridis(0.0)),
    ]


def test_removed_layers_are_marked_on_both_axes():
    marked = elements(figures.heatmap(["a", "b"], [[1, 0], [0, 1]], ["b"]), "text", "removed")
    assert ["".join(text.itertext()) for text in marked] == ["b✕ b", "2", "2"]


@pytest.mark.parametrize("values", [[[0.7]], [[None]], [[0.0, 0.0]], [[-3.0, 250.0]], [[1e-9, 2e-9]]])
def test_the_scale_encloses_any_values(values):
    low, high = figures._bounds(values)
    assert low < high
    assert all(low <= v <= high for row in values for v in row if v is not None)


@pytest.mark.parametrize(
    "gate",
    [
        {"value": 0.01, "lower": 0.0, "upper": 0.03, "limit": 0.02},
        {"value": 0.01, "lower": None, "upper": 0.03, "limit": 0.02},
        {"value": 0.99, "lower": 0.97, "upper": None, "limit": 0.95},
        {"value": -0.5, "lower": -0.9, "upper": -0.1, "limit": 0.0},
        {"value": 0.0, "lower": 0.0, "upper": 0.0, "limit": 0.0},
    ],
)
def test_a_gate_keeps_the_order_of_its_numbers(gate):
    picture = figures.interval(gate)
    (dot,), (limit,), (bar,) = (elements(picture, *e) for e in (("circle",), ("line", "limit"), ("rect",)))
    start, width = float(bar.get("x")), float(bar.get("width"))
    place = {"value": float(dot.get("cx")), "limit": float(limit.get("x1")), "lower": start, "upper": start + width}
    known = sorted((key for key in place if gate[key] is not None), key=lambda key: gate[key])
    assert all(place[a] <= place[b] + 3 for a, b in pairwise(known))  # 3 px: the thinnest bar
    assert all(0 <= x <= 220 for x in place.values())
    assert (gate["lower"] is None) == (start == 0)
    assert (gate["upper"] is None) == (start + width == 220)


def test_a_gate_without_numbers_is_an_axis():
    assert elements(figures.interval({"value": None}), "circle") == []


def test_cost_above_the_original_stays_inside():
    bars = elements(figures.kept_bars([("Latency", 1.5, "3 ms"), ("Bytes", None, "")]), "rect")
    track, kept = (float(bar.get("width")) for bar in bars)
    assert kept == pytest.approx(1.5 * track, abs=0.02)
