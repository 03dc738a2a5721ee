"""Language models are checked as such without being asked: shifted or not by what the model does, labels made."""

import pytest
import torch
from torch import nn

from simprune.api import compress
from simprune.checks import default_gates, validate
from simprune.core.batches import TextBatch
from simprune.core.structures import Block
from simprune.core.tokens import is_causal, speaks
from simprune.repair.prepare import _is_language_model
from simprune.scores.blocks.at_output import divergences_without
from simprune.structures import structure
from simprune.trace.network import Network

WORDS = 11


class Next(nn.Module):
    """Scores of the next token from a token and those before it; of both sides where it is not causal."""

    def __init__(self, causal=True, classes=WORDS):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed, self.mix, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, 6), nn.Linear(6, classes)
        self.causal = causal

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = x * mask[..., None]
        seen = x.cumsum(1) if self.causal else x.sum(1, keepdim=True).expand(x.shape)
        return self.head(torch.relu(self.mix(seen)))


class Decoder(Next):
    """Reads one text and continues another."""

    def forward(self, input_ids, decoder_input_ids):
        return super().forward(decoder_input_ids) + self.head(self.embed(input_ids)).mean(1, keepdim=True)


def ids(rows=40, length=6, seed=0):
    return torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(side):
    mask = torch.ones_like(ids())
    mask[:, -3:] = 0
    return {"input_ids": ids(), "attention_mask": mask if side == "right" else mask.flip(1)}


BATCHES = {
    "tokens alone": ids(),
    "tokens in a pair": (ids(), None),
    "a mapping": {"input_ids": ids()},
    "padding behind": padded("right"),
    "padding before": padded("left"),
    "documents": TextBatch({"input_ids": ids()}, torch.zeros(40, 6)),
    "labels as transformers takes them": {"input_ids": ids(), "labels": ids().masked_fill(ids() == 3, -100)},
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_labels_are_shifted_where_later_tokens_do_not_count(batch, causal):
    gates = default_gates(Next(causal), [batch])
    assert [gate.measure for gate in gates] == ["perplexity_increase", "token_kl_divergence", "token_agreement"]
    assert all(gate.options == {"shift": causal} for gate in gates)


def test_labels_that_stand_below_their_scores_are_not_shifted():
    aligned = torch.cat([ids()[:, 1:], torch.full((40, 1), -100)], 1)
    gates = default_gates(Next(), [{"input_ids": ids(), "labels": aligned}])
    assert all(gate.options == {"shift": False} for gate in gates)


def test_a_decoder_is_asked_by_its_own_tokens():
    batch = {"input_ids": ids(seed=1), "decoder_input_ids": ids()}
    assert is_causal(Decoder(), batch) and not is_causal(Decoder(causal=False), batch)


def test_classes_of_tokens_have_no_perplexity():
    gates = default_gates(Next(classes=4), [{"input_ids": ids(), "labels": ids() % 4}])
    assert [gate.measure for gate in gates] == ["token_kl_divergence", "token_agreement"]


def test_the_verdict_is_that_of_the_set_and_has_no_note_on_labels():
    batch = BATCHES["padding behind"]
    verdict = validate(Next(), Next(), [batch])
    assert verdict == validate(Next(), Next(), [batch], {"name": "language_model", "shift": True})
    assert verdict.notes == ()
    assert verdict.results[0].value == 0


def test_compress_says_nothing_of_missing_labels_where_tokens_are_the_labels():
    options = {"structures": ["channels"], "score": "magnitude", "reconstruct": "none", "budget": {"macs": 0.9}}
    result = compress(Next(), calibration=[ids()], test=[ids()], **options)
    assert not [note for note in result.report["notes"] if "no labels" in note]
    assert result.verdict is not None
    assert {gate.gate.measure for gate in result.verdict.results} >= {"perplexity_increase"}
    other = compress(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), calibration=[torch.randn(40, 6)],
                     test=[torch.randn(40, 6)], **options)  # fmt: skip
    assert [note for note in other.report["notes"] if "no labels" in note]


class Added(nn.Linear):
    def forward(self, x):
        return x + torch.relu(super().forward(x))


class Pair(Next):
    """Writes one text after it has read another one, both by position."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Added(6, 6), Added(6, 6))

    def forward(self, read, written):
        return self.head(self.blocks(self.embed(written) + self.embed(read).mean(1, keepdim=True)))


@pytest.mark.parametrize("length", [6, 4, 9])
def test_scores_at_other_positions_than_the_tokens_are_read_alike(length):
    """Neither stage fails or decides otherwise where, by chance, both texts are equally long."""
    model, batch = Pair(), (ids(), ids(length=length, seed=1))
    output = model(*batch)
    assert speaks(model, (batch, None), output) and not speaks(model, (batch, None), output[:1])
    assert default_gates(model, [(batch, batch[1])])[0].measure == "perplexity_increase"
    assert not is_causal(model, (batch, None))
    network = Network.trace(model, (batch, None))
    blocks = [block for block in structure("blocks").find(network)[0] if isinstance(block, Block)]
    assert divergences_without(network, blocks)
    assert _is_language_model(network)
