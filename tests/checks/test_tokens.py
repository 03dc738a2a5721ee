"""Checks of language models: padding does not count, tokens are labels, documents are the samples of bounds."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from simprune import functional
from simprune.checks import Gate, check, validate
from simprune.checks.evidence import Evidence
from simprune.checks.judging import Case
from simprune.core.batches import TextBatch
from simprune.functional import Gathered
from simprune.functional.tokens import TokenTargets
from tests.structures.architectures import build

WORDS, WIDTH = 11, 6
IDEAL = {"token_agreement": 1, "cosine_agreement": 1, "neighbour_overlap": 1}  # of equal models; of others it is 0


class Speaker(nn.Module):
    """Scores of the next token from the token alone, and something else at padding."""

    def __init__(self, at_padding=0.0, change=0.0):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random)
        self.head.weight.data += change * torch.randn(WORDS, WIDTH, generator=random)
        self.at_padding = at_padding

    def forward(self, input_ids, attention_mask=None):
        scores = self.head(self.words(input_ids))
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[..., None] == 0, self.at_padding)
        return scores


def texts(side="right", count=40, length=9, batches=2, seed=0):
    """Batches of rows of random tokens, 2 to `length` of them, padded on one side with a token that is used too."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        ids = torch.randint(1, WORDS, (count, length), generator=random)
        lengths = torch.randint(2, length + 1, (count, 1), generator=random)
        mask = torch.arange(length)[None] < lengths
        mask = mask.flip(1) if side == "left" else mask
        made.append({"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()})
    return made


def measured(a, b, test, *names, **options):
    gates = [Gate(name, 0.5, options=options) for name in names]
    return {result.gate.measure: result for result in validate(a, b, test, gates).results}


TOKEN_MEASURES = ("token_kl_divergence", "token_agreement", "perplexity_change", "perplexity_increase")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [50.0, math.nan])
@pytest.mark.parametrize("shift", [False, True])
def test_models_that_differ_at_padding_alone_pass_every_token_gate(side, padding, shift):
    results = measured(Speaker(), Speaker(padding), texts(side), *TOKEN_MEASURES, shift=shift)
    for name, result in results.items():
        assert result.value == IDEAL.get(name, 0)
        assert result.outcome == "pass"
    changed = measured(Speaker(), Speaker(padding, change=0.5), texts(side), *TOKEN_MEASURES, shift=shift)
    assert all(result.value != IDEAL.get(name, 0) for name, result in changed.items())


@pytest.mark.parametrize("side", ["left", "right"])
def test_models_that_differ_at_padding_alone_have_equal_vectors_and_no_evidence(side):
    evidence, gates = Evidence(class_scores=False), [Gate("cosine_agreement", 0.9), Gate("relative_error", 0.1)]
    gates.append(Gate("neighbour_overlap", 0.9))
    verdict = validate(Speaker(), Speaker(50.0), texts(side), gates, watch=evidence)
    assert [result.value for result in verdict.results] == pytest.approx([1, 0, 1])
    assert verdict.passed
    assert {example["change"] for example in evidence.to_dict()["examples"]} == {0.0}


@pytest.mark.parametrize("side", ["left", "right"])
def test_block_drift_leaves_padding_out(side):
    model, _ = build("llama")
    small, running = copy.deepcopy(model), {}
    small.register_forward_pre_hook(lambda _, args, kwargs: running.update(kwargs), with_kwargs=True)

    def disturb(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + 9 * (running["attention_mask"] == 0)[..., None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    small.model.layers[-1].register_forward_hook(disturb)
    gates = [Gate("block_drift", 0.1, options={"inputs": 16})]
    verdict = validate(model, small, texts(side), gates)
    assert verdict.results[0].value == pytest.approx(0, abs=1e-6)


def test_masked_positions_are_positions_that_are_not_there():
    """Scores of padded sequences are those of the same sequences cut to their length, one by one."""
    a, b, (batch,) = Speaker(), Speaker(7.0, change=0.5), texts(batches=1)
    rows = [ids[mask.bool()][None] for ids, mask in zip(*batch.values(), strict=True)]
    for shift in (False, True):
        padded = measured(a, b, [batch], *TOKEN_MEASURES, shift=shift)
        for name in TOKEN_MEASURES:
            measure = functional.get(name, shift=shift)
            cut = measure.reduce(torch.cat([measure.per_sample((a(row), b(row)), row) for row in rows]))
            assert padded[name].value == pytest.approx(cut)
            assert padded[name].count == len(rows)


@pytest.mark.parametrize("form", ["dict", "ids alone", "own labels"])
def test_plain_text_has_its_tokens_as_labels(form):
    a, b, test = Speaker(), Speaker(change=0.5), texts()
    losses = []
    for model in (a, b):
        logits = torch.cat([model(batch["input_ids"])[:, :-1] for batch in test])
        target = torch.cat(
            [batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100) for batch in test]
        )
        if form == "ids alone":
            target = torch.cat([batch["input_ids"][:, 1:] for batch in test])
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).item())
    if form == "ids alone":
        test = [batch["input_ids"] for batch in test]
    if form == "own labels":
        test = [
            batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in test
        ]
    results = measured(a, b, test, "perplexity_change", "perplexity_increase", shift=True)
    assert results["perplexity_change"].value == pytest.approx(math.exp(losses[1]) - math.exp(losses[0]), rel=1e-5)
    assert results["perplexity_increase"].value == pytest.approx(math.exp(losses[1] - losses[0]) - 1, rel=1e-5)


@pytest.mark.parametrize("types", [0, 3])
def test_outputs_that_are_no_tokens_of_the_model_get_no_labels(types):
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3))  # classes of tokens
    model[0].types = nn.Embedding(types, WIDTH)  # as many types of segments as classes, as in BERT
    with pytest.raises(ValueError, match="perplexity_change needs labels"):
        validate(model, model, [batch["input_ids"] for batch in texts()], [Gate("perplexity_change", 1)])


def test_the_outputs_of_a_decoder_have_the_mask_of_the_decoder():
    class Translator(Speaker):
        def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
            return super().forward(decoder_input_ids, decoder_attention_mask)

    source, target = texts(seed=1), texts(seed=2)
    test = [
        one | {f"decoder_{key}": value for key, value in two.items()} for one, two in zip(source, target, strict=True)
    ]
    results = measured(Translator(), Translator(50.0), test, *TOKEN_MEASURES, shift=True)
    assert [results[name].value for name in TOKEN_MEASURES] == [0, 1, 0, 0]
    expected = measured(Speaker(), Speaker(change=0.5), target, "perplexity_change", shift=True)
    assert measured(Translator(), Translator(change=0.5), test, "perplexity_change", shift=True) == expected


def test_outputs_come_with_a_mask():
    a, b, (batch,) = Speaker(), Speaker(50.0), texts(batches=1)
    logits = a(batch["input_ids"]), b(**batch)
    gates = [Gate("token_kl_divergence", 0.1), Gate("cosine_agreement", 0.9)]
    verdict = check(*logits, gates=gates, mask=batch["attention_mask"].bool())
    assert [result.value for result in verdict.results] == pytest.approx([0, 1])
    assert check(*logits, gates=gates).outcome == "fail"


def test_documents_are_the_samples():
    """Tokens of a document in two windows count as one sample; the value is that of all tokens."""
    a, b = Speaker(), Speaker(change=0.5)
    ids = torch.randint(1, WORDS, (40, 8), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(40 * 8).reshape(40, 8) // 5
    apart = measured(a, b, [{"input_ids": ids}], *TOKEN_MEASURES, shift=True)
    joint = measured(a, b, [TextBatch({"input_ids": ids}, documents)], *TOKEN_MEASURES, shift=True)
    for name in TOKEN_MEASURES:
        assert joint[name].value == pytest.approx(apart[name].value)
        assert (apart[name].count, joint[name].count) == (40, 64)
        assert "64 documents" in joint[name].detail
    halves = [TextBatch({"input_ids": ids[i : i + 10]}, documents[i : i + 10]) for i in range(0, 40, 10)]
    again = measured(a, b, halves, *TOKEN_MEASURES, shift=True)
    assert [again[name].upper for name in TOKEN_MEASURES] == pytest.approx(
        [joint[name].upper for name in TOKEN_MEASURES]
    )


def test_few_documents_are_said_to_be_few():
    ids = torch.randint(1, WORDS, (40, 8), generator=torch.Generator().manual_seed(0))
    batch = TextBatch({"input_ids": ids}, torch.zeros(40, 8).long())
    result = measured(Speaker(), Speaker(change=0.5), [batch], "token_agreement")["token_agreement"]
    assert "40 windows of 1 documents (the bounds speak of these alone)" in result.detail


def drawn(random, alike, documents, tokens):
    """Rows of agreement: tokens of a document agree with its own probability; `alike` is their correlation."""
    scale = 1 / alike - 1
    own = random.beta(0.9 * scale, 0.1 * scale, size=documents)
    sizes = random.integers(tokens // 2, 2 * tokens, size=documents)
    return torch.tensor(np.stack([random.binomial(sizes, own), sizes, np.arange(documents)], 1)).double()


@pytest.mark.parametrize("measure", ["token_agreement", "token_kl_divergence"])
def test_bounds_cover_where_tokens_of_a_document_are_alike(measure):
    """One-sided bounds at 95 % are wrong in about one draw of twenty, on either side, whatever the correlation."""
    random, wrong, draws = np.random.default_rng(0), np.zeros(2), 150
    for _ in range(draws):
        rows = drawn(random, alike=0.2, documents=40, tokens=50)
        if measure == "token_kl_divergence":
            rows[:, 0] = rows[:, 1] - rows[:, 0]
        truth = 0.9 if measure == "token_agreement" else 0.1
        case = Case.of(Gate(measure, 0.5), Gathered(rows), np.zeros(0), 0)
        low, high = case.bounds(1.0, 0.95)
        wrong += [low > truth, high < truth]
    assert (wrong / draws <= 0.11).all()
    assert wrong.sum() > 0, "bounds that are never wrong are too wide"


def test_bounds_of_independent_tokens_are_those_of_tokens():
    random = np.random.default_rng(0)
    widths = []
    for alike in (0.001, 0.5):
        case = Case.of(Gate("token_agreement", 0.5), Gathered(drawn(random, alike, 60, 50)), np.zeros(0), 0)
        low, high = case.bounds(1.0, 0.95)
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.645 * math.sqrt(0.09 / (60 * 62)), rel=0.4)
    assert widths[1] > 3 * widths[0]


def test_targets_that_do_not_fit_are_one_clear_error():
    logits = torch.zeros(2, 3, 4)
    measure = functional.get("token_agreement")
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 3\); got \(2, 2\)"):
        measure(logits, logits, TokenTargets(mask=torch.ones(2, 2)))
    with pytest.raises(ValueError, match="perplexity_change needs labels"):
        functional.get("perplexity_change")(logits, logits, TokenTargets(mask=torch.ones(2, 3)))
