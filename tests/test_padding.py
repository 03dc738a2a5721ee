"""Padding does not count: not in statistics, scores, repairs and training, whatever it holds and however long it is."""

import copy

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.repair.training import finetune
from tests.structures.architectures import build

PADDED = 4
REAL = 5


def batches(padding=0, seed=1, rows=16):
    """Two batches of the same real tokens, with so much padding behind them, whose tokens depend on the seed."""
    real, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    made = []
    for _ in range(2):
        ids = torch.randint(5, 60, (rows, REAL), generator=real)
        ids = torch.cat([ids, torch.randint(5, 60, (rows, padding), generator=other)], 1)
        made.append({"input_ids": ids, "attention_mask": (torch.arange(REAL + padding) < REAL).long().expand(rows, -1)})
    return made


def short(name):
    """A network of two layers."""
    model = build(name)[0].eval()
    if name == "llama":
        model.model.layers = model.model.layers[:2]
    else:
        model.bert.encoder.layer = model.bert.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    return model


@pytest.fixture(params=["llama", "bert"], scope="module")
def model(request):
    return short(request.param)


def figures(redundancy):
    """Every number that scores say, by structure."""
    said = {}
    for entry in (*redundancy.channels, *redundancy.blocks):
        for name in ("redundancy", "damage"):
            said[entry.name, name] = torch.as_tensor(getattr(entry, name), dtype=torch.float64)
    return said


CHOICES = [
    {"structures": ("channels",), "score": "second_order"},
    {"structures": ("channels",), "score": "taylor"},
    {"structures": ("channels",), "score": "predictability"},
    {"structures": ("heads",)},
    {"structures": ("blocks",), "block_score": "similarity"},
    {"structures": ("blocks",), "block_score": "greedy_leave_one_out"},
    {"structures": ("blocks",), "trials": [0.3]},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_padded_texts_are_scored_as_without_padding(model, choice):
    cut, padded = (figures(sp.analyze(model, batches(padding), **choice)) for padding in (0, PADDED))
    assert cut.keys() == padded.keys()
    for key, values in cut.items():
        torch.testing.assert_close(padded[key], values, rtol=1e-3, atol=1e-5, msg=f"{key} differs")


def repaired(model, plan, data, method):
    small = sp.apply(plan, model)
    errors = sp.reconstruct(small, plan, model, data, method=method)
    return small.state_dict() | {f"{refit.layer} {i}": torch.tensor(refit.after) for i, refit in enumerate(errors)}


@pytest.mark.filterwarnings("ignore:from_pretrained cannot open the result")
@pytest.mark.parametrize("replace", ["identity", "linear", "mean"])
def test_padded_texts_repair_as_without_padding(model, replace):
    redundancy = sp.analyze(model, batches(), structures=("blocks", "channels"), replace=replace, score="magnitude")
    plan = sp.plan(redundancy, budget={"macs": 0.6})
    cut, padded = (repaired(model, plan, batches(padding), "least_squares") for padding in (0, PADDED))
    for name, value in cut.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def test_what_padding_holds_does_not_matter_to_a_blockwise_repair(model):
    redundancy = sp.analyze(model, batches(), structures=("channels",), score="magnitude")
    plan = sp.plan(redundancy, budget={"macs": 0.8})
    one, two = (repaired(model, plan, batches(PADDED, seed), "blockwise") for seed in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def tuned(model, data, teacher, **options):
    small = copy.deepcopy(model)
    for parameter in small.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    losses = [epoch["loss"] for epoch in finetune(small, data, teacher, epochs=1, lr=0.01, **options)]
    return losses, small.state_dict()


@pytest.mark.parametrize("labelled", [False, True])
def test_padding_is_not_learned(labelled):
    model, results = short("llama"), []
    for padding in (0, PADDED):
        data = batches(padding)
        if labelled:
            data = [
                batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in data
            ]
        results.append(tuned(model, data, None if labelled else model))
    (cut_losses, cut), (losses, padded) = results
    assert losses == pytest.approx(cut_losses, rel=1e-4)
    for name, value in cut.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def test_the_loss_of_labels_is_that_of_transformers():
    model, (batch, _) = short("llama"), batches(PADDED)
    batch = batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    with torch.no_grad():
        expected = model(**batch).loss.item()
    losses, _ = tuned(model, [batch], None)
    small = copy.deepcopy(model)
    (epoch,) = finetune(small, [batch], None, epochs=1, lr=1e-12)
    assert epoch["loss"] == pytest.approx(expected, rel=1e-5)
    assert losses[0] != pytest.approx(expected, rel=1e-5)


def test_classes_of_tokens_are_not_shifted():
    model = nn.Sequential(nn.Embedding(60, 4), nn.Linear(4, 3))
    ids = torch.randint(5, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    labels = (ids % 3).masked_fill(torch.arange(5) == 4, -100)
    (epoch,) = finetune(copy.deepcopy(model), [(ids, labels)], None, epochs=1, lr=1e-12)
    expected = nn.functional.cross_entropy(model(ids)[:, :4].flatten(0, 1), labels[:, :4].flatten())
    assert epoch["loss"] == pytest.approx(expected.item(), rel=1e-5)
