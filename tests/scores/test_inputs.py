"""The inputs of a layer as matrices and as rows: the same numbers, whichever takes less memory."""

import pytest
import torch

from simprune.scores.channels import _inputs
from simprune.scores.channels._inputs import Gathered, Matrices, Rows

RIDGE = 1e-3


def both(rows: torch.Tensor) -> tuple[Matrices, Rows]:
    covariance = torch.cov(rows.T, correction=0)
    return Matrices(covariance, rows.mean(0), RIDGE), Rows(rows, RIDGE)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
@pytest.mark.parametrize("pending", [1, 3, 64])  # rows of changes that the inverse waits for
def test_rows_and_matrices_agree_while_inputs_go(count, pending, monkeypatch):
    monkeypatch.setattr(_inputs, "PENDING", pending)
    torch.manual_seed(0)
    rows = torch.randn(count, 12, dtype=torch.float64) + 3
    rows[:, 4] = rows[:, 5]  # one that another replaces
    rows[:, 7] = 1.0  # and one that never changes
    matrices, factored = both(rows)
    units = torch.arange(12).reshape(6, 2)
    torch.testing.assert_close(factored.mean, matrices.mean)
    torch.testing.assert_close(factored.blocks(units), matrices.blocks(units))
    weight = torch.randn(3, 12, dtype=torch.float64)
    gone = torch.zeros(12, dtype=torch.bool)
    for unit in (2, 0, 5):
        left = units[[each for each in range(6) if not gone[units[each]].any()]]
        torch.testing.assert_close(factored.inverse_blocks(left), matrices.inverse_blocks(left), rtol=1e-6, atol=1e-6)
        one, other = factored.remove(units[unit]), matrices.remove(units[unit])
        torch.testing.assert_close(one[:, ~gone], other[:, ~gone], rtol=1e-6, atol=1e-6)
        gone[units[unit]] = True
        one, other = (inputs.refit(weight, ~gone, RIDGE) for inputs in (factored, matrices))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [5, 11, 12, 40])
def test_batches_are_gathered_in_the_smaller_form(count):
    torch.manual_seed(0)
    rows = torch.randn(count, 12, dtype=torch.float64)
    gathered = Gathered()
    for part in rows.split(5):
        gathered.add(part[..., None])
    found = gathered.inverted(RIDGE)
    assert isinstance(found, Matrices if count >= 12 else Rows)
    columns = torch.arange(12)[None]
    torch.testing.assert_close(found.blocks(columns)[0], torch.cov(rows.T, correction=0))
