"""The inputs of a layer as matrices and as rows, and the removal of units: the same numbers in either form."""

import pytest
import torch

from simprune.scores.channels import _elimination
from simprune.scores.channels._elimination import Elimination
from simprune.scores.channels._inputs import FEW, Gathered, Matrices, Rows

RIDGE = 1e-3


def both(rows: torch.Tensor) -> tuple[Matrices, Rows]:
    return Matrices(torch.cov(rows.T, correction=0), rows.mean(0)), Rows(rows)


def in_precision(inputs: Matrices, precision: torch.dtype) -> Matrices:
    return Matrices(inputs.covariance.to(precision), inputs.mean)


def one_by_one(covariance: torch.Tensor, weights: torch.Tensor, k: int) -> tuple[list[int], torch.Tensor]:
    """The units in order of removal, and the costs of every step, each time from the start."""
    damping = RIDGE * covariance.diagonal().mean() + 1e-12
    covariance = covariance + damping * torch.eye(len(covariance), dtype=covariance.dtype)
    left, order, steps = list(range(len(covariance) // k)), [], []
    while len(left) > 1:
        inputs = torch.cat([torch.arange(unit * k, unit * k + k) for unit in left])
        inverse = torch.linalg.inv(covariance[inputs][:, inputs])
        refitted = weights @ covariance[:, inputs] @ inverse  # the ridge is part of the covariance
        costs = torch.full((len(covariance) // k,), float("inf"), dtype=covariance.dtype)
        for place, unit in enumerate(left):
            own = slice(place * k, place * k + k)
            costs[unit] = torch.trace(refitted[:, own] @ torch.linalg.solve(inverse[own, own], refitted[:, own].T))
        steps.append(costs)
        order.append(int(costs.argmin()))
        left.remove(order[-1])
    return order, torch.stack(steps)


@pytest.mark.parametrize("count", [7, 20])
@pytest.mark.parametrize("k", [1, 3])  # inputs of a unit
@pytest.mark.parametrize("pending", [1, 4, 64])  # removed inputs that the rest waits for
def test_every_cost_is_that_of_a_refit_from_the_start(count, k, pending, monkeypatch):
    monkeypatch.setattr(_elimination, "PENDING", pending)
    torch.manual_seed(0)
    rows, weights = torch.randn(count, 12, dtype=torch.float64) + 3, torch.randn(3, 12, dtype=torch.float64)
    rows[:, 4] = rows[:, 5]  # one that another replaces
    rows[:, 7] = 1.0  # and one that never changes
    order, costs = one_by_one(torch.cov(rows.T, correction=0), weights, k)
    for inputs in both(rows):
        elimination = Elimination(inputs.inverse(torch.arange(12), RIDGE), weights, 12 // k)
        for unit, expected in zip(order, costs, strict=True):
            torch.testing.assert_close(elimination.costs(), expected, rtol=1e-5, atol=1e-7)
            elimination.remove(unit)


@pytest.mark.parametrize("k", [1, 3])
def test_inputs_are_removed_in_the_same_order_in_single_precision(k):
    torch.manual_seed(0)
    rows, weights = torch.randn(99, 5) @ torch.randn(5, 48), torch.randn(3, 48, dtype=torch.float64)
    rows = (rows + 0.03 * torch.randn(99, 48)).double() + 3
    orders, costs = [], []
    for precision in (torch.float64, torch.float32):
        inverse = in_precision(both(rows)[0], precision).inverse(torch.arange(48), RIDGE)
        assert inverse.blocks(k).dtype == precision
        elimination = Elimination(inverse, weights, 48 // k)
        orders.append([])
        for _ in range(48 // k - 1):
            costs.append(elimination.costs().clone())
            orders[-1].append(int(costs[-1].argmin()))
            elimination.remove(orders[-1][-1])
    assert orders[0] == orders[1]
    torch.testing.assert_close(costs[: len(orders[0])], costs[len(orders[0]) :], rtol=1e-2, atol=0)


def test_what_single_precision_cannot_invert_is_inverted_in_double():
    scale = 500 + 997 * torch.arange(48.0).square() % 1548
    covariance = torch.outer(scale, scale) + 0.25 * torch.eye(48)  # which single precision holds exactly
    assert torch.linalg.cholesky_ex(covariance).info > 0
    inverse = Matrices(covariance, torch.zeros(48)).inverse(torch.arange(48), 0.0).rows(slice(None))
    torch.testing.assert_close(inverse, torch.linalg.inv(covariance.double()), rtol=1e-6, atol=1e-6)


def test_units_may_be_some_of_the_inputs_in_any_order():
    torch.manual_seed(0)
    rows, weights = torch.randn(40, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    chosen = torch.tensor([6, 1, 4, 3])
    for inputs in both(rows):
        elimination = Elimination(inputs.inverse(chosen, RIDGE), weights[:, chosen], 4)
        whole = Elimination(inputs.inverse(torch.arange(8), RIDGE), weights, 8)
        for unit in (2, 0):
            torch.testing.assert_close(elimination.costs(), whole.costs()[chosen])
            elimination.remove(unit)
            whole.remove(int(chosen[unit]))


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_rows_and_matrices_refit_alike(count):
    torch.manual_seed(0)
    matrices, rows = both(torch.randn(count, 12, dtype=torch.float64) + 3)
    units = torch.arange(12).reshape(6, 2)
    torch.testing.assert_close(rows.mean, matrices.mean)
    torch.testing.assert_close(rows.blocks(units), matrices.blocks(units))
    weights, numbers = torch.randn(3, 12, dtype=torch.float64), torch.arange(12) * 5 % 12
    few, many = torch.randn(2, 12, dtype=torch.float64), torch.randn(9, 12, dtype=torch.float64)
    damping = RIDGE * matrices.covariance.diagonal().mean() + 1e-12
    for inputs in (rows.sequence(numbers), matrices.sequence(numbers)):
        for stay, refitted in zip((7, 2, 11), inputs.refits(weights, (7, 2, 11), RIDGE), strict=True):
            first, others = numbers[:stay], numbers[stay:]
            own = matrices.covariance[first][:, first] + damping * torch.eye(stay, dtype=torch.float64)
            wanted = matrices.covariance[first][:, others] @ weights[:, stay:].T
            change = torch.linalg.solve(own, wanted)
            torch.testing.assert_close(refitted, weights[:, :stay] + change.T, rtol=1e-6, atol=1e-6)
            for held in (few, many):
                given = inputs.replacing(weights, stay, held)(RIDGE)
                torch.testing.assert_close(given, held[:, :stay] @ change, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 11, 40])
def test_batches_are_gathered_in_the_smaller_form(count):
    torch.manual_seed(0)
    rows = torch.randn(count, 12, dtype=torch.float64)
    gathered = Gathered()
    for part in rows.split(5):
        gathered.add(part[..., None])
    inputs = gathered.inputs()
    assert isinstance(inputs, Matrices if FEW * count >= 12 else Rows)
    columns = torch.arange(12)[None]
    torch.testing.assert_close(inputs.blocks(columns)[0], torch.cov(rows.T, correction=0))
