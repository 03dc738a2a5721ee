"""Greedy continuations and multiple choice: against transformers' own generation and loss, on tiny random models."""

import copy
import json

import pytest
import torch

from simprune import functional
from simprune.checks import Gate, validate
from simprune.checks.sets import gates_of
from simprune.core.batches import TextBatch
from tests.sources.test_texts import tokenizer
from tests.structures.architectures import build

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models():
    """A Llama, and one with other weights in its last layer."""
    model = build("llama")[0].eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    other = copy.deepcopy(model)
    for parameter in other.model.layers[-1].mlp.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model, other


def batch(rows=12, length=9, side=None, seed=0):
    ids = torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if side is not None:
        mask[::2, : 3 if side == "left" else None] = 0
        mask[::2, 3 if side == "left" else 6 :] = 1 if side == "left" else 0
    return {"input_ids": ids, "attention_mask": mask}


def continued(model, prompts, length):
    options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)[:, prompts.shape[1] :]


def test_continuations_are_those_of_transformers(models):
    test, length = batch(), 8
    a, b = (continued(model, test["input_ids"][:, :5], length) for model in models)
    expected = (a == b).long().cumprod(1).double().mean().item()
    assert 0 < expected < 1, "the models differ somewhere, and not at once"
    score = functional.get("greedy_continuation", prompt=5, length=length)(*models, [test])
    assert score == pytest.approx(expected)
    assert score.count == 12


def test_prompts_are_the_first_real_tokens_of_a_row(models):
    measure = functional.get("greedy_continuation", prompt=5, length=4)
    for side in ("left", "right"):
        padded = batch(side=side)
        rows = [ids[mask.bool()][None] for ids, mask in zip(*padded.values(), strict=True)]
        assert measure(*models, [padded]) == measure(*models, [{"input_ids": row} for row in rows])
    short = functional.get("greedy_continuation", prompt=7, length=4)
    assert short(*models, [batch(side="right")]).count == 6, "rows that are shorter than a prompt are left out"


def test_one_prompt_a_document(models):
    plain, measure = batch(), functional.get("greedy_continuation", prompt=5, length=4)
    documents = torch.arange(12)[:, None].expand(12, 9) // 3
    score = measure(*models, [TextBatch(plain, documents)])
    assert score == measure(*models, [{key: value[::3] for key, value in plain.items()}])
    assert score.count == 4
    assert functional.get("greedy_continuation", prompt=5, length=4, prompts=3)(*models, [plain]).count == 3


def test_equal_models_continue_alike_and_pass(models):
    gates = [Gate("greedy_continuation", 0.7, options={"prompt": 4, "length": 5})]
    assert validate(models[0], copy.deepcopy(models[0]), [batch(rows=30)], gates).passed
    assert (
        validate(*models, [batch(rows=30)], [Gate("greedy_continuation", 0.99, options={"prompt": 4})]).outcome
        == "fail"
    )


def test_models_that_see_the_future_are_refused():
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )
    with pytest.raises(ValueError, match="greedy_continuation needs a causal language model"):
        functional.get("greedy_continuation", prompt=5)(bert, bert, [batch()])


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([{"input_ids": torch.ones(2, 3).long()}], "no test row has prompt=16 tokens"),
        ([torch.randn(2, 3)], "needs batches of tokens"),
    ],
)
def test_what_gives_no_prompt_is_one_clear_error(models, test, message):
    with pytest.raises(ValueError, match=message):
        functional.get("greedy_continuation")(*models, test)


QUESTIONS = [
    {"question": "a b c", "options": ["d", "e f", "g"], "answer": 0},
    {"question": "h i", "options": ["j", "k"], "answer": "B"},
    {"question": "l m n o", "options": ["p q r", "s", "t", "u"], "answer": "t"},
    *({"question": f"v {letter}", "options": ["w", "x", "y z"], "answer": 1} for letter in "abcdefghijk"),
]


@pytest.fixture
def folder(tmp_path):
    tokenizer(tmp_path / "words")
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    return tmp_path


def expected_accuracy(model, words, per_character):
    """By the loss of transformers, option by option."""
    right = 0
    for question in QUESTIONS:
        answer = {"B": 1, "t": 2}.get(question["answer"], question["answer"])
        values = []
        for option in question["options"]:
            before, ids = (
                words(text)["input_ids"] for text in (question["question"], f"{question['question']} {option}")
            )
            labels = torch.tensor([[-100] * len(before) + ids[len(before) :]])
            loss = model(input_ids=torch.tensor([ids]), labels=labels).loss.item()
            values.append(-loss * (len(ids) - len(before)) / (len(option) if per_character else 1))
        right += values.index(max(values)) == answer
    return right / len(QUESTIONS)


@pytest.mark.parametrize("per_character", [False, True])
def test_multiple_choice_is_the_likelihood_of_transformers(models, folder, per_character):
    words = transformers.AutoTokenizer.from_pretrained(folder / "words")
    options = {"path": str(folder / "questions.jsonl"), "tokenizer": str(folder / "words")}
    measure = functional.get("multiple_choice_drop", per_character=per_character, **options)
    with torch.no_grad():
        a, b = (expected_accuracy(model, words, per_character) for model in models)
    score = measure(*models, None)
    assert (score.details["original"], score.details["pruned"]) == pytest.approx((a, b))
    assert score == pytest.approx(a - b)
    assert score.count == len(QUESTIONS)
    gate = Gate("multiple_choice_drop", 0.5, options=options)
    assert validate(models[0], models[0], [batch()], [gate]).results[0].value == 0


def test_the_tokenizer_is_by_default_the_models_own(models, folder):
    models[0].name_or_path = str(folder / "words")
    path = str(folder / "questions.jsonl")
    named = functional.get("multiple_choice_drop", path=path, tokenizer=str(folder / "words"))(*models, None)
    assert functional.get("multiple_choice_drop", path=path)(*models, None) == named
    models[0].name_or_path = ""
    with pytest.raises(ValueError, match=r"set options\.tokenizer"):
        functional.get("multiple_choice_drop", path=path)(*models, None)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "a", "options": ["b", "c"]}, "line 1: expected a mapping with question, options and answer"),
        ({"question": "a", "options": ["b"], "answer": 0}, "at least two texts as options"),
        ({"question": "a", "options": "bc", "answer": 0}, "at least two texts as options"),
        ({"question": "a", "options": ["b", "c"], "answer": 2}, "an index from 0 to 1, a letter or an option; got 2"),
        (
            {"question": "a", "options": ["b", "c"], "answer": "C"},
            "an index from 0 to 1, a letter or an option; got 'C'",
        ),
    ],
)
def test_bad_questions_are_one_clear_error(models, folder, record, message):
    (folder / "bad.jsonl").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        functional.get("multiple_choice_drop", path=str(folder / "bad.jsonl"), tokenizer=str(folder / "words"))(
            *models, None
        )


def test_the_check_set_takes_both():
    plain = {"perplexity_increase": 0.1, "token_kl_divergence": 0.1, "token_agreement": 0.85}
    assert {gate.measure: gate.limit for gate in gates_of("language_model")} == plain
    assert all(gate.options == {"shift": True} for gate in gates_of("language_model"))
    chosen = {"name": "language_model", "shift": False, "continuation": 0.5, "questions": "q.jsonl", "agreement": 0.9}
    gates = {gate.measure: gate for gate in gates_of(chosen)}
    assert {name: gate.limit for name, gate in gates.items()} == plain | {
        "token_agreement": 0.9,
        "greedy_continuation": 0.5,
        "multiple_choice_drop": 0.02,
    }
    assert gates["token_agreement"].options == {"shift": False}
