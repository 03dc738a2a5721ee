"""Files of text become windows of tokens: every token once, in order, with its document."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from simprune.checks import Gate, validate
from simprune.core.batches import documents_of
from simprune.core.records import records
from simprune.sources.transformers import texts

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[END]", "[USER]", "[MODEL]", *"abcdefghijklmnopqrstuvwxyz"]
TEMPLATE = "{% for m in messages %}{{ '[USER] ' if m.role == 'user' else '[MODEL] ' }}{{ m.content }} {% endfor %}"


def tokenizer(folder, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[END]"} | options
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    """A folder with a tokenizer of single letters in it."""
    tokenizer(tmp_path / "words")
    return tmp_path


def written(folder, name, content):
    (folder / name).write_text(content)
    return str(folder / name)


def read(folder, path, split="calibration", **options):
    """Words of all windows of a split, one string a window, and the batches."""
    options = {"length": 4, "batch_size": 2, "tokenizer": str(folder / "words")} | options
    batches = list(getattr(texts(path=path, **options), split))
    ids = [row for batch in batches for row in batch["input_ids"].tolist()]
    return [" ".join(WORDS[number] for number in row) for row in ids], batches


def test_documents_are_packed_into_full_windows_with_an_end_token(folder, capsys):
    path = written(folder, "a.txt", "a b\nc d e\n\nf g h\n  \n\n\ni j\n")
    windows, batches = read(folder, path)
    assert windows == ["a b c d", "e [END] f g", "h [END] i j"]
    assert torch.cat([batch["attention_mask"] for batch in batches]).all()
    documents = torch.cat([documents_of(batch) for batch in batches])
    assert documents.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 2, 2]]
    assert [len(batch["input_ids"]) for batch in batches] == [2, 1]
    said = capsys.readouterr().err
    assert "calibration: 12 tokens of 1 file, 3 windows of 4, 3 documents; 1 tokens at the end fill no window" in said


@pytest.mark.parametrize(
    ("kind", "windows"),
    [
        ("lines", ["a b [END] c", "[END] d e [END]"]),
        ("blocks", ["a b c [END]", "d e [END] f"]),
        ("files", ["a b c d", "e [END] f [END]"]),
    ],
)
def test_what_a_document_is(folder, kind, windows):
    one, two = written(folder, "a.txt", "a b\nc\n\nd e"), written(folder, "b.txt", "f")
    assert read(folder, [one, two], documents=kind)[0][: len(windows)] == windows


def test_every_token_is_used_once_in_order(folder):
    """Whatever the length and the number of windows, the windows joined are the beginning of the text."""
    letters = [chr(97 + number % 26) for number in range(90)]
    path = written(folder, "a.txt", "\n\n".join(" ".join(letters[i : i + 7]) for i in range(0, 90, 7)))
    whole = " ".join(read(folder, path, length=2, rows=None)[0])
    for length in (3, 5, 16):
        for rows in (None, 2):
            windows, _ = read(folder, path, length=length, rows=rows)
            assert whole.startswith(" ".join(windows))
            assert rows is None or len(windows) == rows
            assert all(len(window.split()) == length for window in windows)


def test_strides_score_every_token_once(folder):
    path = written(folder, "a.txt", "a b c d e f g h i")
    windows, batches = read(folder, path, "test", test=path, length=4, stride=2)
    assert windows == ["a b c d", "c d e f", "e f g h", "g h i [END]"]
    labels = torch.cat([batch["labels"] for batch in batches])
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert labels[0].equal(ids[0])
    assert (labels[1:, :2] == -100).all()
    assert labels[1:, 2:].equal(ids[1:, 2:])
    scored = [WORDS[number] for number in labels[labels != -100].tolist()]
    assert scored == ["a", "b", "c", "d", "e", "f", "g", "h", "i", "[END]"]
    calibration = read(folder, path, "calibration", test=path, length=4, stride=2)
    assert calibration[0] == ["a b c d", "e f g h"]
    assert "labels" not in calibration[1][0]


def test_a_stride_gives_the_perplexity_of_every_token_in_its_longest_context(folder):
    """A model that only looks at the last two tokens has the same perplexity in one pass and in strides."""

    class LastTwo(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.words = nn.Embedding(len(WORDS), 5)
            self.head = nn.Linear(5, len(WORDS))
            for parameter in self.parameters():
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))

        def forward(self, input_ids, attention_mask=None):
            x = self.words(input_ids)
            return self.head(x + 0.5 * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1))

    path = written(folder, "a.txt", " ".join("abcdefghijklmnopqrstuvwxyz"[number % 7] for number in range(41)))
    values = []
    for length, stride in ((42, None), (6, 4), (12, 10)):
        _, batches = read(folder, path, "test", test=path, length=length, stride=stride)
        gates = [Gate("perplexity_change", 1, options={"shift": True})]
        values.append(validate(LastTwo(0), LastTwo(1), batches, gates).results[0].value)
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_records_of_json_and_chats(folder):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    records = [{"text": "c d"}, chat, "e", {"text": "f", "messages": chat["messages"]}]
    lines = written(folder, "a.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    expected = ["c d [END] [USER]", "a [MODEL] b [END]", "e [END] f [END]"]
    assert read(folder, lines)[0] == expected
    assert read(folder, written(folder, "a.json", json.dumps(records)))[0] == expected
    named = written(folder, "b.jsonl", json.dumps({"body": "a b c"}))
    assert read(folder, named, column="body")[0] == ["a b c [END]"]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\x1e"])
def test_only_line_ends_end_a_line(folder, mark):
    text = f"a{mark}b"
    lines = json.dumps({"text": text}, ensure_ascii=False)
    assert [value for _, value in records(Path(written(folder, "a.jsonl", f"{lines}\r\n{lines}\n")))] == [
        {"text": text}
    ] * 2
    plain = Path(written(folder, "a.txt", f"{text}\nc\n\nd"))
    assert [value for _, value in records(plain)] == [f"{text}\nc", "d"]
    assert [value for _, value in records(plain, "lines")] == [text, "c", "d"]


def test_parquet_is_read_by_datasets(folder, monkeypatch):
    path = written(folder, "a.parquet", "")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"a\.parquet: parquet needs the package datasets"):
        read(folder, path)
    asked = []

    def load_dataset(kind, **options):
        asked.append((kind, options["data_files"]))
        return [{"text": "a b c"}, {"text": "d"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read(folder, path)[0] == ["a b c [END]"]
    assert asked == [("parquet", path)]


def test_any_number_of_files_for_every_split(folder, capsys):
    for name, text in (("a", "a b c"), ("b", "d e f"), ("c", "g h i")):
        written(folder, f"{name}.txt", text)
    source = {"tokenizer": str(folder / "words"), "length": 4, "batch_size": 1}
    data = texts(
        path=str(folder / "*.txt"),
        train=[str(folder / "b.txt"), str(folder / "c.txt")],
        test=str(folder / "c.txt"),
        **source,
    )
    assert [len(list(batches)) for batches in (data.calibration, data.train, data.test)] == [3, 2, 1]
    assert "calibration: 12 tokens of 3 files" in capsys.readouterr().err
    documents = torch.cat([documents_of(batch) for batch in data.calibration])
    assert documents[:, 0].tolist() == [0, 1, 2]
    orders = [[batch["input_ids"][0, 0].item() for batch in data.train] for _ in range(8)]
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}
    assert len(set(map(tuple, orders))) == 2, "training windows are shuffled anew"


def test_padding_on_request(folder, capsys):
    path = written(folder, "a.txt", "a b\n\nc d e f g h\ni\n")
    windows, batches = read(folder, path, padding=True)
    assert windows == ["a b [PAD] [PAD]", "c d e f", "i [PAD] [PAD] [PAD]"]
    masks = torch.cat([batch["attention_mask"] for batch in batches])
    assert masks.sum(1).tolist() == [2, 4, 1]
    documents = torch.cat([documents_of(batch) for batch in batches])
    assert documents.eq(-1).equal(masks == 0)
    assert "7 tokens of 1 file, 3 texts padded to 4, 1 of which fill it or were cut" in capsys.readouterr().err
    assert read(folder, path, padding=True, rows=2)[0] == windows[:2]


def test_a_tokenizer_without_an_end_token_is_said(folder, capsys):
    tokenizer(folder / "endless", eos_token=None)
    path = written(folder, "a.txt", "a b c\n\nd e")
    assert read(folder, path, tokenizer=str(folder / "endless"))[0] == ["a b c d"]
    assert "no end token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "a b", {}, r"a\.txt: 3 tokens, less than one window of length=4; give more text, a smaller length"),
        ("a.txt", "\n\n", {"padding": True}, r"a\.txt has no text"),
        ("a.doc", "a b c d", {}, r"expected a file of type \.txt, \.jsonl, \.json, \.parquet; got '\.doc'"),
        ("a.jsonl", '{"txt": "a"}', {}, r"a\.jsonl, line 1: expected a text, or 'text' or 'messages'.*got keys txt"),
        ("a.jsonl", '"a"\n{"text"', {}, r"a\.jsonl, line 2 is not JSON"),
        ("a.json", '{"text": "a"}', {}, "expected a list of records; got dict"),
        ("a.txt", "a b c d", {"stride": 4}, "stride=4 does not fit; it must be from 1 to length - 1 = 3"),
        ("a.txt", "a b c d", {"stride": 2, "padding": True}, "stride=2 does not fit; padded windows have none"),
        ("a.txt", "a b c d", {"documents": "line"}, "unknown documents 'line'; did you mean 'lines'"),
        ("a.txt", "a b c d", {"length": 1}, "length must be at least 2"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(folder, name, content, options, message):
    with pytest.raises(ValueError, match=message):
        read(folder, written(folder, name, content), **options)


def test_missing_files_are_named_before_any_work(folder):
    path = written(folder, "a.txt", "a b c d")
    for missing in ("b.txt", "none/*.txt"):
        with pytest.raises(FileNotFoundError, match="no file"):
            texts(path=path, test=str(folder / missing), tokenizer=str(folder / "nowhere"))


def test_a_chat_needs_a_template(folder):
    path = written(folder, "a.jsonl", json.dumps({"messages": [{"role": "user", "content": "a"}]}))
    plain = tokenizer(folder / "plain")
    (folder / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"line 1: it has messages, and the tokenizer has no chat template"):
        read(folder, path, tokenizer=plain)
