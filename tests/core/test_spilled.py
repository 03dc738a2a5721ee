"""Rows on disk are the rows in memory."""

import pytest
import torch
from torch import nn

from simprune.core import spilled
from simprune.core.spilled import Collecting, Spilled, chunks
from simprune.trace.answers import agreement, answer, errors_of_inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("limit", [0, 60, 2**28])
def test_collected_rows_come_back_bit_for_bit_and_in_order(monkeypatch, dtype, limit):
    monkeypatch.setattr(spilled, "IN_MEMORY", limit)
    monkeypatch.setattr(spilled, "CHUNK", 10)
    parts = [torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)).to(dtype) for rows in (4, 1, 7)]
    collecting = Collecting()
    for part in parts:
        collecting.add(part)
    result = collecting.result()
    assert isinstance(result, Spilled) == (limit < 2**28)
    assert torch.equal(torch.cat([*chunks(result)]), torch.cat(parts))
    assert result.shape == (12, 3)


def test_figures_of_models_are_the_same_from_disk(monkeypatch):
    torch.manual_seed(0)
    models, test = [nn.Linear(6, 4), nn.Linear(6, 4)], [(torch.randn(9, 6), torch.randint(4, (9,))) for _ in range(3)]
    in_memory = [answer(model, test) for model in models]
    monkeypatch.setattr(spilled, "IN_MEMORY", 0)
    monkeypatch.setattr(spilled, "CHUNK", 12)
    on_disk = [answer(model, test) for model in models]
    assert isinstance(on_disk[0].logits, Spilled)
    assert agreement(*on_disk) == pytest.approx(agreement(*in_memory), rel=1e-12)
    torch.testing.assert_close(errors_of_inputs(*on_disk), errors_of_inputs(*in_memory))
