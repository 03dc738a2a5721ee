"""Laws of mirrored calibration inputs."""

import pytest
import torch

from simprune.api import apply, reconstruct
from simprune.core.batches import TextBatch
from simprune.core.holdout import SHARE, held_out
from simprune.core.labels import labels_of
from simprune.core.plan import Edit
from simprune.repair.gauss_newton import JUDGING
from simprune.repair.mirror import mirrored
from tests.networks import build
from tests.structures.test_contract import plan_of


@pytest.mark.parametrize("method", ["least_squares", "blockwise"])
def test_a_repair_with_mirror_images_is_the_repair_with_both(method):
    model, x = build("Residual")
    model, x = model.double(), x.double()  # blockwise enlarges the rounding of single precision
    plan = plan_of(
        model, x, Edit("channels", "blocks.0.conv1", (0, 1), len(model.get_submodule("blocks.0.conv1").weight))
    )
    images = torch.randn(48, *x.shape[1:], dtype=x.dtype)
    both = torch.stack([images, images.flip(3)], 1).flatten(0, 1)
    unlike, by_option, by_hand = (apply(plan, model) for _ in range(3))
    reconstruct(unlike, plan, model, list(images.split(16)), method)
    reconstruct(by_option, plan, model, list(images.split(16)), method, mirror=3)
    reconstruct(by_hand, plan, model, list(both.split(32)), method)
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(by_option.state_dict()[name], tensor)
    assert any(not torch.equal(unlike.state_dict()[name], tensor) for name, tensor in by_hand.state_dict().items())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_every_tensor_of_a_batch_stays_with_its_image(dim):
    images, labels, weights = torch.randn(5, 3, 4, 6), torch.arange(5), torch.rand(5)
    for batch in ((images, labels), {"images": images, "weights": weights, "labels": labels, "scale": 2.0}):
        before = images.clone()
        (twice,) = mirrored([batch], dim)
        assert torch.equal(images, before)
        seen = twice[0] if isinstance(twice, tuple) else twice["images"]
        assert torch.equal(seen[::2], images)
        assert torch.equal(seen[1::2], images.flip(dim))
        assert torch.equal(labels_of(twice), labels.repeat_interleave(2))
        if isinstance(twice, dict):
            assert torch.equal(twice["weights"], weights.repeat_interleave(2))
            assert twice["scale"] == 2.0


@pytest.mark.parametrize("share", [SHARE, JUDGING])
def test_an_image_and_its_mirror_image_are_held_out_together(share):
    held = held_out(0, 2000, share=share)
    assert torch.equal(held[16::2], held[17::2])


@pytest.mark.parametrize(
    "batch", [torch.randn(4, 3, 8), torch.zeros(4, 3, 8, 8).long(), {"input_ids": torch.ones(4, 3).long()}]
)
def test_inputs_without_the_dimension_are_refused(batch):
    with pytest.raises(ValueError, match="mirror: expected a dimension of the inputs"):
        mirrored([batch], 3)


@pytest.mark.parametrize("dim", [0, -1])
def test_the_batch_is_not_mirrored(dim):
    with pytest.raises(ValueError, match="behind that of the batch"):
        mirrored([torch.randn(4, 3, 8, 8)], dim)


def test_text_beside_images_keeps_its_documents():
    batch = TextBatch(
        {"pixels": torch.randn(2, 3, 4, 4), "input_ids": torch.tensor([[1, 2], [3, 4]])}, torch.tensor([[0, 0], [1, 1]])
    )
    (twice,) = mirrored([batch], 3)
    assert twice["input_ids"].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert twice.documents.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
