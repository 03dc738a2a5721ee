"""What causal language models do with text: greedy continuations, and answers to multiple-choice questions.

Both run the models on tokens alone, without caches, so that a cache which pruning broke does not count here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, documents_of, output_mask_of, token_ids_of
from simprune.core.pretrained import load
from simprune.core.records import files_of, records
from simprune.functional._base import Gathered, Score, finite
from simprune.functional._models import GatheredMeasure
from simprune.trace.context import evaluation

AT_ONCE = 16  # sequences of one forward pass
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Speaking(GatheredMeasure):
    """A measure of two causal language models, with a row per sample."""

    def _require_causal(self, model: nn.Module, ids: Tensor) -> None:
        """ValueError unless the scores of a token are those of what follows it, whatever follows."""
        other = ids[:1].clone()
        other[:, -1] = torch.where(other[:, -1] == 0, 1, 0)
        a, b = (self._scores(model, tokens) for tokens in (ids[:1], other))
        error = (a[:, :-1] - b[:, :-1]).abs().max()
        precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        if error > 8 * torch.finfo(precision).eps * a.abs().max():
            raise ValueError(f"{self.id} needs a causal language model; here the last token changes scores before it")

    def _scores(self, model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, T, C) scores of the next token, in float32 at least."""
        batch = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask.long()}
        plain = mask is None and not hasattr(model, "config")
        scores = call(model, ids if plain else batch)
        expected = "token logits (N, T, C), as of a causal language model"
        return finite(scores, f"{self.id}: the output", expected, lambda x: x.ndim == 3, torch.float32)


@dataclass(frozen=True)
class GreedyContinuation(_Speaking):
    """Share of the original's greedy continuation that the pruned model continues alike, before the first difference.

    Mean over prompts, in [0, 1]; 1 means the same continuations. A prompt is the first `prompt` tokens of a test row,
    one per document where documents are known, and at most `prompts` of them; shorter rows are left out. `length`:
    tokens of a continuation. ValueError for rows that are too short, and for a model that is not causal.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    >>> GreedyContinuation(prompt=2, length=3)(model, model, torch.tensor([[3, 4], [5, 6]]))
    1.0
    """

    prompt: int = 16
    length: int = 16
    prompts: int = 64

    id = "greedy_continuation"
    larger_is_more_similar = True
    kind = "mean"
    source = "length of the common prefix of greedy continuations, as a share"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = min(self.prompt - 1, self.length, self.prompts)
        sizes = f"prompt={self.prompt}, length={self.length}, prompts={self.prompts}"
        self._require(least >= 1, f"prompts of at least two tokens and continuations of one are needed; got {sizes}")

    def gather(self, model_a: nn.Module, model_b: nn.Module, batches: Any) -> Gathered:
        """Rows (prompts,): the share of every continuation before the first difference.

        Args:
            model_a: the original.
            model_b: the pruned model.
            batches: of test texts, for prompts.

        Raises:
            ValueError: for batches of anything else than tokens, without a prompt, and for a model that is not causal.
        """
        prompts = self._prompts(batches)
        rows = []
        with evaluation(model_a, model_b):
            self._require_causal(model_a, prompts)
            for ids in prompts.split(AT_ONCE):
                for _ in range(self.length):
                    ids = torch.cat([ids, self._scores(model_a, ids)[:, -1:].argmax(2)], 1)
                # the original's choices are read again from the same pass as the other's: rounding is then alike
                a, b = (self._scores(model, ids[:, :-1]).argmax(2)[:, -self.length :] for model in (model_a, model_b))
                rows.append((a == b).long().cumprod(1).double().mean(1))
        return Gathered(torch.cat(rows))

    def _prompts(self, batches: Any) -> Tensor:
        """(prompts, tokens)."""
        chosen: list[Tensor] = []
        seen: set[int] = set()
        for batch in checked(batches, "test"):
            ids, mask, documents = token_ids_of(batch), output_mask_of(batch), documents_of(batch)
            if ids is None:
                raise ValueError(f"{self.id} needs batches of tokens: input_ids (N, T)")
            for row, tokens in enumerate(ids.cpu()):
                real = tokens if mask is None else tokens[mask[row].cpu()]
                source = (
                    None if documents is None else int(documents[row][0 if mask is None else mask[row]].flatten()[0])
                )
                if len(real) < self.prompt or source in seen:
                    continue
                if source is not None:
                    seen.add(source)
                chosen.append(real[: self.prompt].long())
                if len(chosen) == self.prompts:
                    return torch.stack(chosen)
        if not chosen:
            raise ValueError(
                f"{self.id}: no test row has prompt={self.prompt} tokens; give longer texts or a smaller one"
            )
        return torch.stack(chosen)


@dataclass(frozen=True)
class Question:
    """A question with its options, and the index of the right one."""

    question: str
    options: tuple[str, ...]
    answer: int

    @classmethod
    def of(cls, record: Any, where: str) -> "Question":
        """From a record with "question", "options" and "answer": an index from 0, a letter, or the option itself.

        ValueError, which says `where`, for anything else.

        >>> Question.of({"question": "1 + 1 =", "options": ["1", "2"], "answer": "B"}, "line 1").answer
        1
        """
        if not isinstance(record, Mapping) or not {"question", "options", "answer"} <= set(record):
            raise ValueError(f"{where}: expected a mapping with question, options and answer; got {record!r:.80}")
        question, options, answer = record["question"], record["options"], record["answer"]
        texts = isinstance(options, Sequence) and all(isinstance(option, str) for option in options)
        if not isinstance(question, str) or isinstance(options, str) or not texts or len(options) < 2:
            raise ValueError(f"{where}: expected a text as question and at least two texts as options")
        if isinstance(answer, str) and options.count(answer) == 1:
            index = options.index(answer)
        elif isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS:
            index = LETTERS.index(answer.upper())
        else:
            index = answer
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
            most = len(options) - 1
            raise ValueError(
                f"{where}: answer must be an index from 0 to {most}, a letter or an option; got {answer!r}"
            )
        return cls(question, tuple(options), index)


@dataclass(frozen=True)
class MultipleChoiceDrop(_Speaking):
    """Accuracy of a minus that of b on multiple-choice questions from a local file, in [-1, 1]; negative: b is better.

    A model answers with the option of the largest log-likelihood behind the question and a blank; with `per_character`,
    of the largest one per character. `path`: a .jsonl, .json or .parquet file of records with question, options and
    answer (an index from 0, a letter, or the option). `tokenizer`: a name or folder; "" for that which the original
    model was loaded from. Test batches are not used. `details`: "original" and "pruned" accuracy. ValueError for
    another file, and for a model that is not causal.

    >>> MultipleChoiceDrop("questions.jsonl").id
    'multiple_choice_drop'
    """

    path: str
    tokenizer: str = ""
    per_character: bool = False

    id = "multiple_choice_drop"
    range = (-1.0, 1.0)
    kind = "difference"
    source = "paired difference of accuracies by log-likelihood, as in lm-evaluation-harness"

    def ready(self) -> None:
        """Raise FileNotFoundError or ValueError for a file that has no such questions."""
        self._questions()

    def gather(self, model_a: nn.Module, model_b: nn.Module, batches: Any) -> Gathered:
        """Rows (questions, 3): the difference, and whether a and b are right.

        Args:
            model_a: the original.
            model_b: the pruned model.
            batches: not used.

        Raises:
            FileNotFoundError: for a missing file.
            ValueError: for a file of anything else, a missing tokenizer, and for a model that is not causal.
        """
        questions = self._questions()
        name = self.tokenizer or getattr(model_a, "name_or_path", "")
        if not name:
            raise ValueError(f"{self.id}: the model does not say what it was loaded from; set options.tokenizer")
        pairs = list(self._pairs(load("AutoTokenizer", name), questions))
        with evaluation(model_a, model_b):
            self._require_causal(model_a, torch.tensor([pairs[0][0]]))
            likelihoods = [self._likelihoods(model, pairs) for model in (model_a, model_b)]
        rows, done = [], 0
        for question in questions:
            sizes = torch.tensor([len(option) if self.per_character else 1 for option in question.options])
            part = slice(done, done + len(sizes))
            a, b = (float(int((values[part] / sizes).argmax()) == question.answer) for values in likelihoods)
            rows.append([a - b, a, b])
            done += len(sizes)
        return Gathered(torch.tensor(rows, dtype=torch.float64))

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        _, a, b = rows.mean(0).tolist()
        score.details.update(original=a, pruned=b)
        return score

    def _questions(self) -> list[Question]:
        questions = [Question.of(record, where) for file in files_of(self.path) for where, record in records(file)]
        if not questions:
            raise ValueError(f"{self.path} has no questions; give at least one")
        return questions

    def _pairs(self, tokenizer: Any, questions: Sequence[Question]) -> Iterator[tuple[list[int], int]]:
        """The tokens of every question with every option, and how many of them are the question's."""
        for question in questions:
            before = len(tokenizer(question.question, verbose=False)["input_ids"])
            for option in question.options:
                ids = tokenizer(f"{question.question} {option}", verbose=False)["input_ids"]
                if not 1 <= before < len(ids):
                    raise ValueError(
                        f"{self.path}: the tokenizer gives no token of its own to {option!r}, or none before"
                    )
                yield list(ids), before

    def _likelihoods(self, model: nn.Module, pairs: Sequence[tuple[list[int], int]]) -> Tensor:
        """(pairs,) log-likelihood of what is behind the question."""
        values = torch.zeros(len(pairs), dtype=torch.float64)
        order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]))  # little padding
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            longest = max(len(pairs[index][0]) for index in chosen)
            ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids, dtype=torch.bool)
            for row, index in enumerate(chosen):
                tokens = pairs[index][0]
                ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), True
            scores = self._scores(model, ids, mask)
            for row, index in enumerate(chosen):
                tokens, before = pairs[index]
                logs = scores[row, before - 1 : len(tokens) - 1].double().log_softmax(1)
                values[index] = logs.gather(1, ids[row, before : len(tokens), None]).sum()
        return values
