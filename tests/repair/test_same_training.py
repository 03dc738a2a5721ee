"""Training depends on model, data and seed alone: a search that goes on in another process ends the same."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from simprune.core.peekable import Peekable
from simprune.repair.training import finetune
from simprune.sources import Batches
from tests.networks import Residual

LOADERS = {
    "ours": lambda x, y: Batches(x, y, batch_size=8, shuffle=0),
    "torch's generator": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True),
    "own generator": lambda x, y: DataLoader(
        TensorDataset(x, y), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("taught", [False, True])
def test_trainings_before_it_in_the_same_process_change_nothing(name, taught):
    torch.manual_seed(0)
    model = Residual(width=4, blocks=1)
    images, labels = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    teacher = copy.deepcopy(model).eval() if taught else None

    def trained(trainings):
        train = Peekable(LOADERS[name](images, labels), "train")
        assert len(train.first) == 2  # as of a run that looks whether the model runs on it
        for _ in range(trainings):
            small = copy.deepcopy(model)
            history = finetune(small, train, teacher=teacher, epochs=2, seed=3)
        return small.state_dict(), history

    torch.manual_seed(1)
    weights, history = trained(1)
    torch.manual_seed(2)
    again, other = trained(3)
    assert other == history
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
