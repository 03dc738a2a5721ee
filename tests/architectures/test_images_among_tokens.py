"""Models that need certain whole numbers among their inputs, as models with images among their tokens do."""

import pytest
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.core.example import check_description

IMAGE, WIDTH = 9, 8  # the token in whose place a patch of the image goes


class Captioner(nn.Module):
    """Puts patches of an image in the place of tokens that stand for them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.patches = nn.Embedding(10, WIDTH), nn.Linear(5, WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, input_ids: Tensor, patches: Tensor) -> Tensor:
        places = input_ids == IMAGE
        if int(places.sum()) != patches.shape[0] * patches.shape[1]:
            raise ValueError("images and tokens of images do not match")
        x = self.tokens(input_ids).masked_scatter(places[..., None], self.patches(patches))
        return self.head(x + self.down(self.up(x).relu()))


def make_model() -> Captioner:
    torch.manual_seed(0)
    return Captioner().eval()


def batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 9, (8, 4), generator=generator)
    ids = torch.cat([torch.full((8, 3), IMAGE), words], 1)
    return {"input_ids": ids, "patches": torch.randn(8, 3, 5, generator=generator)}


def test_a_bundle_of_a_model_with_images_among_its_tokens_opens(tmp_path):
    result = sp.compress(make_model(), calibration=[batch(0), batch(1)], test=[batch(2)], budget={"macs": 0.8})
    assert result.plan.inputs["kwargs"]["input_ids"]["values"] == batch(0)["input_ids"][:2].flatten().tolist()
    assert "values" not in result.plan.inputs["kwargs"]["patches"]
    sp.save(tmp_path / "bundle", result)
    assert torch.equal(sp.load(tmp_path / "bundle", model=make_model)(**batch(2)), result.model(**batch(2)))


@pytest.mark.parametrize("entry", [
    {"dtype": "int64", "values": [1, 2]}, {"dtype": "int64", "values": 3}, {"dtype": "int64", "values": [1, 2, "x"]},
    {"dtype": "uint8", "values": [1, 2, 256]}, {"dtype": "bool", "values": [0, 1, 2]},
    {"dtype": "float32", "values": [1, 2, 3]}, {"dtype": "int64", "values": [1, 2, 2**70]},
])  # fmt: skip
def test_values_that_do_not_fit_are_one_line(entry):
    with pytest.raises(ValueError, match="plan: inputs: values: expected 3 whole numbers that fit"):
        check_description({"args": [{"shape": [3], **entry}], "kwargs": {}}, "plan: inputs")
