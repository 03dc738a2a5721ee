"""What a small picture shows is what the numbers say."""

import re
from itertools import pairwise

import pytest

from simprune.report import marks


def placed(markup, class_):
    """(left, width) in percent of every mark of a class."""
    styles = re.findall(rf'<i class="[^"]*\b{class_}\b[^"]*" style="left:([\d.]+)%(?:;width:([\d.]+)%)?"', str(markup))
    return [(float(left), float(width or 0)) for left, width in styles]


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
    drawn = marks.gate(gate)
    ((start, width),) = placed(drawn, "bounds")
    at = {"lower": start, "upper": start + width}
    at |= {"value": placed(drawn, "dot")[0][0], "limit": placed(drawn, "limit")[0][0]}
    known = sorted((key for key in at if gate[key] is not None), key=lambda key: gate[key])
    assert all(at[a] <= at[b] + 0.02 for a, b in pairwise(known))
    assert all(0 <= x <= 100 for x in at.values())
    assert (gate["lower"] is None) == (start == 0)
    assert (gate["upper"] is None) == (start + width == pytest.approx(100, abs=0.02))


def test_a_gate_without_numbers_is_a_line():
    assert "<i" not in marks.gate({"value": None})


def test_a_value_beyond_the_line_stays_inside():
    assert placed(marks.share(1.5), "kept") == [(0.0, 100.0)]
    assert placed(marks.share(-1), "kept") == [(0.0, 0.0)]
    assert placed(marks.share(None), "kept") == []


def test_before_and_after_stand_on_one_scale():
    drawn = marks.dots(0.4, 0.1, "error", high=0.8)
    assert placed(drawn, "ring") == [(50.0, 0)] and placed(drawn, "dot") == [(12.5, 0)]
    assert placed(drawn, "way") == [(12.5, 37.5)]


def heights(drawn):
    return [(kind, float(height)) for kind, height in re.findall(r'class="(\w+)" style="height:([\d.]+)%', str(drawn))]


def test_bars_are_sorted_and_split_by_kind():
    drawn = marks.bars([0.5, 1.0, None, 0.25], "r", removed=[1])
    assert heights(drawn) == [("removed", 100), ("kept", 50), ("kept", 25), ("kept", 0)]
    assert "1 down to 0.25" in drawn
    assert heights(marks.bars([4.0, 2.0], "loss", ordered=False, whole=4.0)) == [("kept", 100), ("kept", 50)]


@pytest.mark.parametrize("count", [0, 1, 48, 49, 1000])
def test_many_bars_are_thinned_out_evenly(count):
    shown = heights(marks.bars([i / 1000 for i in range(count)], "r"))
    assert min(count, 24) <= len(shown) <= marks.BARS
    if count:
        assert shown[0][1] == pytest.approx((count - 1) / 10)


def test_texts_are_escaped():
    evil = '"><script>'
    assert "<script" not in marks.track(evil, (evil, 0.5), outcome=evil)
