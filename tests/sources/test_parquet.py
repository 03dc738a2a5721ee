"""Texts of a parquet file by way of `datasets`, the real one."""

import pytest

from simprune.sources.transformers import texts
from tests.sources.test_texts import WORDS, tokenizer

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets", reason="parquet is read by the optional package datasets")


def test_texts_of_parquet_files_are_read_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, rows in {"a": ["a b c", "d e f g"], "b": ["h i j"]}.items():
        datasets.Dataset.from_dict({"text": rows, "more": [1] * len(rows)}).to_parquet(tmp_path / f"{name}.parquet")
    source = {"tokenizer": tokenizer(tmp_path / "words"), "length": 4, "batch_size": 3}
    data = texts(path=str(tmp_path / "*.parquet"), test=str(tmp_path / "b.parquet"), **source)
    rows = [row for batch in data.calibration for row in batch["input_ids"].tolist()]
    assert [" ".join(WORDS[token] for token in row) for row in rows] == ["a b c [END]", "d e f g", "[END] h i j"]
    said = capsys.readouterr().err
    assert "calibration: 12 tokens of 2 files" in said and "test: 4 tokens of 1 file" in said
