"""Batches in pieces hold the same inputs, and figures do not depend on how batches are divided."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.batches import TextBatch, documents_of
from simprune.core.peekable import Peekable
from simprune.core.pieces import pieces

X, LABELS = torch.arange(14.0).reshape(7, 2), torch.arange(7)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_pieces_are_the_batch(size):
    inputs, labels = zip(*pieces((X, LABELS), size), strict=True)
    assert torch.equal(torch.cat(inputs), X) and torch.equal(torch.cat(labels), LABELS)
    assert max(map(len, inputs)) <= size
    batch = TextBatch({"input_ids": LABELS[:, None]}, documents=LABELS[:, None])
    assert torch.equal(torch.cat([documents_of(piece) for piece in pieces(batch, size)]), LABELS[:, None])


@pytest.mark.parametrize("batch", [{"x": X, "scale": torch.ones(3)}, ([X, X[:2]], None), {"x": X, "more": [X]}])
def test_a_batch_that_does_not_say_how_it_divides_stays_whole(batch):
    assert [*pieces(batch, 2)] == [batch]


def test_divided_batches_are_walked_again_and_again():
    batches = Peekable([X, X[:1]], "calibration")
    batches.divide(3)
    for _ in range(2):
        assert [len(piece) for piece in batches] == [3, 3, 1, 1]
    assert torch.equal(batches.first, X)


def test_a_verdict_does_not_depend_on_the_pieces(monkeypatch):
    torch.manual_seed(0)
    model, small = nn.Linear(2, 3), nn.Linear(2, 3)
    test = [(torch.randn(40, 2), torch.randint(3, (40,))) for _ in range(2)]
    whole = sp.validate(model, small, test).to_dict()
    monkeypatch.setattr("simprune.checks.validation.OUTPUTS", 12)
    assert sp.validate(model, small, test).to_dict() == whole
