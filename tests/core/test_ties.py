"""Rounding decides nothing: what differs by it alone is equal, and the first counts."""

import numpy as np
import pytest

from simprune.core.ties import TIE, first_least, levelled


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_changes_neither_the_least_nor_the_order(scale, sign):
    draw = np.random.default_rng(0)
    values = sign * scale * np.repeat(draw.uniform(1, 2, 40), 3)[draw.permutation(120)]
    noisy = values * (1 + 1e-7 * draw.normal(size=120))
    assert first_least(noisy) == first_least(values) == int(values.argmin())
    assert levelled(noisy).argsort(kind="stable").tolist() == values.argsort(kind="stable").tolist()


def test_a_row_of_small_steps_is_not_one_value():
    values = (1 + TIE / 2) ** np.arange(1000)
    levels = levelled(values)
    assert len(set(levels.tolist())) > 300
    assert (levels <= values).all() and (values <= levels * (1 + 2 * TIE)).all()


def test_what_no_output_shows_is_equal():
    assert first_least([2e-10, 1e-10, 0.5], floor=1e-9) == 0
    assert levelled([2e-10, 0.0, 0.5], floor=1e-9).tolist() == [0.0, 0.0, 0.5]


def test_infinite_values_come_last():
    assert first_least([np.inf, 3.0, np.inf]) == 1 and first_least([np.inf, np.inf]) == 0
    assert levelled([np.inf, 3.0]).tolist() == [np.inf, 3.0]
    assert levelled([]).tolist() == []
