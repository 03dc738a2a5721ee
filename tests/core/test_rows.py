"""Rows that grow are the batches one after another."""

import pytest
import torch

from simprune.core.rows import FIRST, Rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1,), (3, 0, 5), (FIRST - 1, 1, 1), (FIRST + 7, 5 * FIRST, 2), (400,) * 12])
def test_rows_are_the_batches_in_their_order(sizes, dtype):
    batches = [torch.randn(size, 3).to(dtype) for size in sizes]
    rows = Rows()
    for number, batch in enumerate(batches, 1):
        rows.add(batch)
        assert len(rows) == sum(sizes[:number])
    found = rows.tensor()
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat(batches))
    batches[0].zero_()
    found.zero_()
    assert torch.equal(rows.tensor()[sizes[0] :], torch.cat(batches)[sizes[0] :])
    assert rows.tensor()[: sizes[0]].any()


def test_what_is_read_in_inference_mode_can_be_trained_on():
    rows = Rows()
    with torch.inference_mode():
        rows.add(torch.ones(2, 3))
    weight = torch.ones(3, requires_grad=True)
    (rows.tensor() @ weight).sum().backward()
    assert weight.grad is not None
