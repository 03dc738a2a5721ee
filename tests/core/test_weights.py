"""Weights are loaded whole or not at all; a bundle's and a user's file differ in what they may leave out."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from simprune.core.weights import load_weights


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_a_tied_tensor_is_there_under_one_of_its_names(tmp_path, strict, name):
    save_file({name: torch.eye(3)}, tmp_path / "w.safetensors")
    model = Tied()
    load_weights(model, tmp_path / "w.safetensors", strict)
    assert torch.equal(model.a.weight, torch.eye(3)) and model.a.weight is model.b.weight


def test_only_a_users_file_may_lack_counts_and_have_another_dtype(tmp_path):
    tensors = {key: value for key, value in nn.BatchNorm1d(2).state_dict().items() if "num" not in key}
    save_file(tensors, tmp_path / "w.safetensors")
    save_file({"weight": torch.eye(2).double()}, tmp_path / "d.safetensors")
    load_weights(nn.BatchNorm1d(2), tmp_path / "w.safetensors", strict=False)
    model = nn.Linear(2, 2, bias=False)
    load_weights(model, tmp_path / "d.safetensors", strict=False)
    assert torch.equal(model.weight, torch.eye(2))
    with pytest.raises(ValueError, match="num_batches_tracked is missing"):
        load_weights(nn.BatchNorm1d(2), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"weight is torch\.float64, the model has torch\.float32"):
        load_weights(nn.Linear(2, 2, bias=False), tmp_path / "d.safetensors")


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_that_does_not_fit_is_not_changed(tmp_path, strict):
    save_file({"weight": torch.eye(2), "more": torch.eye(2)}, tmp_path / "w.safetensors")
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="more"):
        load_weights(model, tmp_path / "w.safetensors", strict)
    assert torch.equal(model.weight, before)
