import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simprune.core import moments
from simprune.core.moments import Collected, Moments


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e3, 1e3), st.randoms(use_true_random=False))
def test_any_batching_and_order_gives_the_covariance(sizes, offset, order):
    rows = torch.randn(sum(sizes), 3) + offset
    parts = list(rows.split(sizes))
    order.shuffle(parts)
    found = Moments.empty(3)
    for part in parts:
        found.update(part)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.double().mean(0), rtol=1e-12, atol=1e-12)
    expected = np.cov(rows.double().numpy().T, bias=True)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-9, atol=1e-9)


def test_merging_with_nothing_changes_nothing():
    rows = torch.randn(4, 2)
    assert torch.equal(Moments.of(rows).merge(Moments.empty(2)).scatter, Moments.of(rows).scatter)
    assert Moments.empty(2).merge(Moments.empty(2)).count == 0


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 2, 2)])
def test_what_is_not_rows_is_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        Moments.of(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_whose_squares_are_no_numbers_are_one_line(dtype):
    collected = Collected()
    collected.add(torch.tensor([[1.0, 2.0], [1e25, 0.0]], dtype=dtype))
    with pytest.raises(ValueError, match="a layer reads numbers of 5e.24, whose squares are beyond float32"):
        collected.moments()


def test_widths_must_match():
    with pytest.raises(ValueError, match="width"):
        Moments.empty(2).merge(Moments.empty(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[1, 2, 4], [30, 1, 40], [200]])
def test_rows_that_come_in_parts_have_the_same_moments(sizes, dtype):
    rows = (torch.randn(sum(sizes), 8) + 3).to(dtype)
    collected = Collected()
    for part in rows.split(sizes):
        collected.add(part.clone())
    stored, made = collected.rows(), collected.moments()
    assert (stored is None) == (len(rows) * dtype.itemsize > 8 * 8)
    expected = Moments.of(rows)
    assert made.count == collected.count == len(rows) and made.scatter.dtype == torch.float64
    torch.testing.assert_close(made.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.covariance, expected.covariance, rtol=1e-4, atol=1e-5)


def test_products_of_wide_rows_take_half_and_constant_columns_have_no_variance(monkeypatch):
    monkeypatch.setattr(moments, "WIDE", 8)
    rows = torch.randn(500, 8) + 100
    rows[:, 2] = 0.1
    collected = Collected()
    for part in rows.split(90):
        collected.add(part.clone())
    assert collected._moments is not None and collected._moments.scatter.dtype == torch.float32
    covariance = collected.moments().covariance
    assert not covariance[2].any()
    torch.testing.assert_close(covariance, Moments.of(rows).covariance, rtol=1e-4, atol=1e-4)
