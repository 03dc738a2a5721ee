"""Embeddings of texts: one vector from the tokens, padding left out."""

import pytest
import torch

from simprune.checks import gates_of, validate
from simprune.functional import get

MEASURES = ("cosine_agreement", "relative_error", "neighbour_overlap")


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("pooling, reduce", [("mean", lambda x: x[:, :3].mean(1)), ("first", lambda x: x[:, 0])])
def test_pooled_tokens_are_the_embedding_and_padding_does_not_count(name, pooling, reduce):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(30, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    a[:, 3:], b[:, 3:] = 0, 0
    assert float(get(name, pooling=pooling)(a, b)) == pytest.approx(float(get(name)(reduce(a), reduce(b))))
    vectors = a[:, 0], b[:, 0]
    assert get(name, pooling=pooling)(*vectors) == get(name)(*vectors)


def test_left_padding_is_not_the_first_token():
    tokens = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]])
    assert get("cosine_agreement", pooling="first")(tokens, tokens[:, 1:]) == pytest.approx(1)


def test_the_check_set_pools():
    class Tokens(torch.nn.Module):
        def __init__(self, at_padding):
            super().__init__()
            self.at_padding = at_padding

        def forward(self, input_ids, attention_mask):
            tokens = torch.nn.functional.one_hot(input_ids, 12).float() + 1
            return tokens + self.at_padding * (1 - attention_mask[..., None])

    ids = torch.randint(12, (40, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    verdict = validate(Tokens(0), Tokens(5), [batch], {"name": "embedding", "pooling": "mean"})
    assert [result.value for result in verdict.results] == pytest.approx([1, 0, 1])
    assert {gate.options["pooling"] for gate in gates_of({"name": "embedding", "pooling": "first"})} == {"first"}
    with pytest.raises(ValueError, match="pooling must be mean, first or empty; got 'max'"):
        gates_of({"name": "embedding", "pooling": "max"})
