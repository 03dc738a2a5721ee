import pytest
import torch
from torch import nn

from simprune.core.batches import call, checked, inputs_of
from simprune.core.labels import labels_of
from simprune.trace.context import evaluation


class Named(nn.Module):
    def forward(self, a, b=None):
        return {"logits": a if b is None else a + b}


X, Y = torch.ones(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "batch, labels",
    [
        (X, None),
        ((X, Y), Y),
        ((X, None), None),
        ([X, Y], Y),
        (((X, X), Y), Y),
        ({"a": X, "labels": Y}, Y),
        ({"a": X, "b": X}, None),
    ],
)
def test_every_kind_of_batch_runs_and_gives_its_labels(batch, labels):
    assert call(Named(), batch).shape == X.shape
    found = labels_of(batch)
    assert found is labels or torch.equal(found, labels)


def test_a_batch_of_three_parts_is_refused_with_the_way_to_write_it():
    with pytest.raises(ValueError, match=r"\(\(input_1, input_2\), labels\)"):
        inputs_of((X, X, Y))


class WithLoss(nn.Module):
    def forward(self, a):
        return {"loss": None, "logits": a}


def test_an_output_may_begin_with_no_loss():
    assert torch.equal(call(WithLoss(), X), X)


def test_a_tensor_or_a_dict_is_one_batch():
    assert checked(X, "test") == [X]
    batch = {"a": X}
    assert checked(batch, "test") == [batch]


def test_a_generator_is_refused_before_it_is_used_up():
    generator = (batch for batch in [X])
    with pytest.raises(ValueError, match="more than once"):
        checked(generator, "calibration")
    assert next(generator) is X


def test_evaluation_restores_each_module_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    model.train()
    model[1].eval()
    with pytest.raises(IndexError), evaluation(model):
        [][int(model[0].training)]
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not torch.is_inference_mode_enabled()
