"""The protocol itself: registry, hyperparameters, labels, extras, statistics, asymmetry."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from simprune import measures
from simprune.core import registry
from simprune.measures import _products
from simprune.measures._base import Measure, Statistic
from simprune.measures._products import InnerProduct, Vector, centred


@dataclass(frozen=True)
class Spread(Statistic):
    """A toy statistic with labels; without an id it stays out of the registry."""

    power: float = 2.0
    needs_labels = True
    undefined = "there is one class"

    def _prepare(self, X, labels):
        means = torch.stack([X[labels == each].mean(0) for each in labels.unique()])
        return means.var(0).sum() if len(means) > 1 else float("nan")


@dataclass(frozen=True)
class Explained(InnerProduct):
    """A toy asymmetric measure: share of the first one's variance in the span of the second."""

    symmetric = False
    range = (0.0, 1.0)

    def _prepare(self, X):
        X = centred(X)
        return Vector(len(X), X.square().sum(), (X @ X.T, torch.linalg.qr(X).Q))

    def _rows(self, item, start, stop):
        return item.values[0][start:stop]

    def _second_rows(self, item, start, stop):
        basis = item.values[1]
        return basis[start:stop] @ basis.T

    def _score(self, inner, size_a, size_b):
        return inner / size_a


@dataclass(frozen=True)
class WithGradients(Measure):
    """A toy measure with one further input per representation."""

    extras = ("gradients",)
    symmetric = True

    def _prepare(self, X, gradients):
        return X.sum() * gradients.sum()

    def _compare(self, a, b):
        return a * b


for _toy in (Spread, Explained, WithGradients):
    _toy.id = _toy.__name__


def X(width, seed=0):
    return torch.randn(20, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_toys_are_not_registered():
    assert not {"Spread", "Explained", "WithGradients"} & set(measures.names())


def test_unknown_id_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'cka_debiased"):
        measures.get("cka_debiasd")
    with pytest.raises(KeyError, match="cka_rbf"):
        measures.matrix("xyz", {"a": X(2)})


@pytest.mark.parametrize(
    "hyper, message",
    [
        ({"treshold": 1.0}, "takes no option 'treshold'; did you mean 'threshold'"),
        ({"threshold": "1"}, "threshold must be float, got '1'"),
        ({"threshold": True}, "threshold must be float, got True"),
        ({"threshold": 0.0}, "must be positive"),
        ({"threshold": float("nan")}, "threshold must be float, got nan"),
        ({"debiased": 1}, "debiased must be bool, got 1"),
    ],
)
def test_bad_hyperparameters_are_refused(hyper, message):
    with pytest.raises(ValueError, match=message):
        measures.get("cka_rbf", **hyper)


def test_a_measure_is_listed_as_soon_as_its_dataclass_exists(monkeypatch):
    """Also one of another package; its hyperparameters are read when asked for, not when the class is registered."""
    monkeypatch.setattr(registry, "_parts", {kind: dict(known) for kind, known in registry._parts.items()})

    @dataclass(frozen=True)
    class Needy(Measure):
        """Needs a number."""

        epsilon: float
        id = "needy"
        source = "nobody"

    assert "needy" in measures.names() and measures.classes()["needy"] is Needy
    part = registry.find("measure", "needy")
    assert (part.summary, part.source, list(part.options)) == ("Needs a number.", "nobody", ["epsilon"])
    with pytest.raises(ValueError, match="needy needs epsilon"):
        measures.get("needy")
    assert measures.get("needy", epsilon=1).epsilon == 1


def test_an_id_belongs_to_one_class():
    with pytest.raises(ValueError, match="'cka' is taken by simprune"):
        type("Other", (Measure,), {"id": "cka"})
    assert measures.classes()["cka"].__name__ == "CKA"


def test_hyperparameters_change_declared_traits_of_that_object_only():
    assert measures.get("cka_rbf").range == (0.0, 1.0)
    assert measures.get("cka_rbf", debiased=True).range == (-1.0, 1.0)
    assert measures.get("cka_rbf", debiased=True).minimum_rows == 4
    assert measures.classes()["cka_rbf"].minimum_rows == 2


def test_options_of_matrix_are_hyperparameters_and_not_both():
    layers = {"a": X(3), "b": X(4, 1)}
    result = measures.matrix("cka_rbf", layers, threshold=0.3)
    assert np.array_equal(result.values, measures.matrix(measures.get("cka_rbf", threshold=0.3), layers).values)
    with pytest.raises(ValueError, match="hyperparameters already"):
        measures.matrix(measures.get("cka_rbf"), layers, threshold=0.3)


def test_similarity_matrix_is_read_only_readable_and_square():
    result = measures.matrix("cka", {"first": X(3), "second": X(4, 1)})
    with pytest.raises(ValueError, match="read-only"):
        result.values[0, 0] = 2.0
    assert result.measure == "cka"
    assert result.table().split()[:2] == ["first", "second"]
    with pytest.raises(ValueError, match="one row and column per name"):
        measures.SimilarityMatrix(("a",), np.eye(2))


def test_statistics_describe_one_and_compare_by_difference():
    labels = torch.arange(20) % 4
    spread = Spread()
    a, b = spread.describe(X(3), labels), spread.describe(2 * X(3), labels)
    assert b == pytest.approx(4 * a)
    assert spread(X(3), 2 * X(3), labels) == pytest.approx(3 * a)
    assert measures.matrix(spread, {"a": X(3), "b": 2 * X(3)}, labels).values[0, 1] == pytest.approx(3 * a)
    with pytest.warns(measures.UndefinedWarning, match="one class"):
        assert np.isnan(spread.describe(X(3), torch.zeros(20, dtype=torch.long)))
    with pytest.raises(ValueError, match="does not describe"):
        measures.get("cka").describe(X(3))


@pytest.mark.parametrize("labels", [None, torch.zeros(19, dtype=torch.long), torch.zeros(20), [[1]] * 20])
def test_labels_are_checked(labels):
    with pytest.raises(ValueError, match="labels"):
        Spread().prepare(X(3), labels)


def test_asymmetric_products_equal_their_pairs(monkeypatch):
    monkeypatch.setattr(_products, "TILE", 1)  # eight rows a tile, the last one shorter
    layers = {"a": X(3), "b": X(5, 1), "c": torch.cat([X(3), X(2, 2)], 1)}
    values = measures.matrix(Explained(), layers).values
    for i, A in enumerate(layers.values()):
        for j, B in enumerate(layers.values()):
            A0, B0 = A - A.mean(0), B - B.mean(0)
            residual = A0 - B0 @ torch.linalg.lstsq(B0, A0).solution
            expected = 1 - residual.square().sum() / A0.square().sum()
            assert values[i, j] == pytest.approx(float(expected))
            assert Explained()(A, B) == pytest.approx(float(expected))
    assert values[0, 2] == pytest.approx(1.0)
    assert values[2, 0] < 0.9


def test_extra_inputs_reach_prepare_one_by_one_or_together():
    toy, F, G = WithGradients(), X(3), X(2, 1)
    a = toy.prepare(F, gradients=G)
    assert a.data == F.sum() * G.sum()
    each = measures.matrix(toy, {"l": {"X": F, "gradients": G}, "m": {"X": 2 * F, "gradients": G}}).values
    common = measures.matrix(toy, {"l": F, "m": 2 * F}, gradients=G).values
    assert np.array_equal(each, common)
    assert each[1, 0] == pytest.approx(2 * float(a.data) ** 2)
    with pytest.raises(ValueError, match="expected the inputs X, gradients for X, got X"):
        toy.prepare(F)
    with pytest.raises(ValueError, match="gradients of X has 19 rows, expected 20"):
        toy.prepare(F, gradients=G[:19])
    with pytest.raises(ValueError, match="gradients of X must be finite"):
        toy.prepare(F, gradients=G / 0)
