"""Models and texts of transformers from a local folder."""

import json

import pytest
import torch

from simprune.cli.main import main
from simprune.sources.transformers import pretrained, texts
from tests.structures.architectures import build

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "slept"]


@pytest.fixture
def folder(tmp_path):
    """A small Llama with a tokenizer beside it, and a file of sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "model")
    build("llama")[0].save_pretrained(tmp_path / "model")
    lines = ["the cat sat on a mat", "a mat and the cat", "the cat slept", "", "on a mat the cat sat and slept"]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    return tmp_path


def test_a_model_and_its_texts_come_from_a_folder(folder):
    model = pretrained(str(folder / "model"), "causal_lm")
    assert not model.training
    source = {"path": str(folder / "text.txt"), "tokenizer": str(folder / "model")}
    data = texts(**source, batch_size=3, length=8, padding=True)
    batches = list(data.calibration)
    assert [batch["input_ids"].shape for batch in batches] == [(3, 8), (1, 8)]
    assert batches[0]["attention_mask"].sum(1).tolist() == [6, 5, 3]
    assert model(**batches[0]).logits.shape == (3, 8, 64)
    assert torch.equal(batches[0]["input_ids"][2, :4], torch.tensor([2, 3, 9, 0]))


def test_the_recipe_for_a_folder_analyzes_its_layers(folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = ["recipe=language_model_depth", "model.pretrained=./model", "data.path=text.txt", "data.length=8"]
    recipe += ["data.padding=true", "structures=[blocks,sub_blocks]"]
    assert main(["analyze", *recipe, "analysis.chance=2", "analysis.bootstrap=0", "analysis.figures=false"]) == 0
    (found,) = folder.glob("outputs/**/analysis.json")
    blocks = json.loads(found.read_text())["blocks"]
    assert [block["name"] for block in blocks if not block["inside"]] == [f"model.layers.{i}" for i in range(4)]
    assert len([block for block in blocks if block["inside"]]) == 8


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'causal_lm'"):
        pretrained("x", "causal_llm")
    with pytest.raises(ValueError, match=r"no folder \./nowhere"):
        pretrained("./nowhere")
    with pytest.raises(ValueError, match="test_transformers.py is a file; expected a folder"):
        pretrained(__file__)


@pytest.mark.parametrize(
    "damaged, content", [("config.json", b"{}"), ("config.json", b"\xff"), ("model.safetensors", b"")]
)
def test_a_damaged_folder_is_one_line(tmp_path, damaged, content):
    build("llama")[0].save_pretrained(tmp_path)
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path} cannot be loaded: .+") as caught:
        pretrained(str(tmp_path), "causal_lm")
    assert "\n" not in str(caught.value) and "network" not in str(caught.value)


def test_a_hub_that_is_not_reached_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("We could not connect.\nCheck your internet connection.")

    monkeypatch.setattr("transformers.AutoModelForMaskedLM.from_pretrained", offline)
    with pytest.raises(ValueError, match="^some/model cannot be loaded: We could not connect.*local folder") as caught:
        pretrained("some/model", "masked_lm")
    assert "\n" not in str(caught.value)
