"""Folders of transformers: sharded, with tokenizer and settings; refused where no configuration says the shapes."""

import json

import pytest
import torch

import simprune as sp
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.edit.apply import apply
from simprune.trace.network import Network
from tests.disk import files_of_at_most
from tests.sources.test_texts import tokenizer

transformers = pytest.importorskip("transformers")


def llama(layers=2):
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


BATCH = {"input_ids": torch.arange(1, 61).reshape(6, 10), "attention_mask": torch.ones(6, 10, dtype=torch.int64)}


def without(model, *edits):
    network = Network.trace(model, BATCH)
    return apply(Plan(edits, fingerprint(model), {}), network)


def test_a_folder_holds_shards_tokenizer_settings_and_a_card(tmp_path):
    model = llama()
    model.generation_config.max_new_tokens = 7
    small = without(model, Edit("block", "model.layers.0"))
    words = tokenizer(tmp_path / "words")
    choice = {"name": "transformers", "tokenizer": words, "max_shard_size": "8KB"}
    written = sp.export(small, tmp_path / "out", choice, inputs=BATCH)
    assert written.difference == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(opened(**BATCH).logits, small(**BATCH).logits)
    assert opened.config.num_hidden_layers == 1 and opened.generation_config.max_new_tokens == 7
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b")["input_ids"] == [5, 6]
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()
    with files_of_at_most(6000), pytest.raises(OSError, match=r"too large: '.*out"):
        sp.export(small, tmp_path / "out", choice, inputs=BATCH)
    files = json.loads((tmp_path / "out" / "export.json").read_text())["files"]
    assert sorted([*files, "export.json"]) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_local_path_is_not_named_in_the_card_and_a_missing_tokenizer_is_said(tmp_path):
    model = llama(1)
    model.name_or_path = str(tmp_path / "secret")
    written = sp.export(model, tmp_path / "out", inputs=BATCH)
    assert "base_model" not in (tmp_path / "out" / "README.md").read_text()
    assert any(note.startswith("no tokenizer was written") for note in written.notes)
    model.name_or_path = ""
    written = sp.export(model, tmp_path / "out", inputs=BATCH)
    assert any("does not say what it was loaded from" in note for note in written.notes)
    with pytest.raises(ValueError, match="tokenizer: "):
        sp.export(model, tmp_path / "other", {"name": "transformers", "tokenizer": "./nowhere"}, inputs=BATCH)
    assert not (tmp_path / "other").exists()


def test_what_no_configuration_says_is_refused_and_has_other_formats(tmp_path):
    model = llama()
    small = without(model, Edit("channels", "model.layers.0.mlp.gate_proj", (0, 1, 2), 24))
    with pytest.raises(ValueError, match="from_pretrained does not open this model, because .*; keep the bundle"):
        sp.export(small, tmp_path / "out", inputs=BATCH)
    assert list(tmp_path.iterdir()) == []
    written = sp.export(small, tmp_path / "out", "torch", inputs=BATCH)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    with torch.no_grad():
        for rows, length in ((1, 10), (5, 4)):  # other numbers of texts, and other lengths
            ids = BATCH["input_ids"][:rows, :length]
            (logits,) = program(ids, torch.ones_like(ids))
            assert torch.allclose(logits, small(ids).logits, atol=1e-5)
    assert written.notes == ()
