"""What the benchmark of language models shares: the model, windows of text, prompts, and a comparison of answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH = 128  # tokens of a window
BATCH = 8  # windows

# One answer each: the next token must be it, digit by digit or bracket by bracket.
ARITHMETIC = "1 + 1 = 2\n5 + 3 = 8\n9 - 4 = 5\n6 + 1 = 7\n8 - 2 = 6\n{a} {sign} {b} ="
BRACKETS = {"(": ")", "[": "]", "{": "}"}


def load_language_model(folder: Path, gguf: str | None) -> tuple[nn.Module, Any]:
    """A causal model in float32 and its tokenizer, from a folder of transformers, or of a GGUF file in it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {} if gguf is None else {"gguf_file": gguf}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    model.config.use_cache = False
    return model, AutoTokenizer.from_pretrained(folder, **options)


def windows(tokenizer: Any, path: Path) -> Tensor:
    """(windows, LENGTH) token ids of a text, without the rest that fills no window."""
    ids = torch.tensor(tokenizer(path.read_text())["input_ids"])
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def batches(ids: Tensor, size: int = BATCH) -> list[dict[str, Tensor]]:
    """Windows as batches of transformers."""
    return [{"input_ids": part} for part in ids.split(size)]


def drawn(ids: Tensor, count: int, draw: int) -> Tensor:
    """`count` windows of a text: the first ones for draw 0, others, that follow each other, for other draws."""
    first = (draw * 10 * count) % max(len(ids) - count, 1)
    return ids[first : first + count]


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, and the token that is right next."""

    ids: Sequence[Tensor]
    answers: Sequence[int]

    @torch.no_grad()
    def right(self, model: nn.Module) -> list[bool]:
        """Which prompts a model continues with the right token."""
        outputs = (model(input_ids=ids[None]).logits[0, -1] for ids in self.ids)
        return [int(logits.argmax()) == answer for logits, answer in zip(outputs, self.answers, strict=True)]


def skills(tokenizer: Any) -> dict[str, Prompts]:
    """Prompts of arithmetic, sums and differences of single digits, and of brackets that have to be closed."""
    sums = [(a, "+", b, a + b) for a in range(1, 8) for b in range(1, 8) if a + b < 10]
    rest = [(a, "-", b, a - b) for a in range(2, 10) for b in range(1, 8) if a > b]
    arithmetic = [(ARITHMETIC.format(a=a, sign=sign, b=b), f" {answer}") for a, sign, b, answer in (sums + rest)[::3]]
    inner = ["x", "a, b", "n + 1", "key", "1, 2, 3", "name", "i", "left and right"]
    brackets = [
        (f"f(x) [x] {{x}} f(a, b) [a, b] {{a, b}} {start}{text}", end)
        for text in inner
        for start, end in BRACKETS.items()
    ]
    return {"arithmetic": _prompts(tokenizer, arithmetic), "brackets": _prompts(tokenizer, brackets)}


def _prompts(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Prompts:
    """Prompts that end where the last token of their answer begins."""
    ids, answers = [], []
    for prompt, answer in pairs:
        whole = tokenizer(prompt + answer)["input_ids"]
        ids.append(torch.tensor(whole[:-1]))
        answers.append(whole[-1])
    return Prompts(ids, answers)


class Judge:
    """Compares smaller models with the original on texts and prompts; the original runs once.

    Args:
        model: the original.
        texts: windows by name.
        prompts: by skill; only those that the original can do count.
    """

    def __init__(self, model: nn.Module, texts: dict[str, Tensor], prompts: dict[str, Prompts]) -> None:
        self.texts = texts
        self.logits = {name: [part.half() for part in _logits(model, ids)] for name, ids in texts.items()}
        self.prompts = {}
        for skill, all_of_them in prompts.items():
            able = [number for number, right in enumerate(all_of_them.right(model)) if right]
            known = Prompts([all_of_them.ids[i] for i in able], [all_of_them.answers[i] for i in able])
            self.prompts[skill] = known

    def compare(self, small: nn.Module) -> dict[str, Any]:
        """By text: the ratio of perplexities, the standard error of its logarithm over windows, divergence, agreement.

        Divergence is that of Kullback and Leibler in nats per token, agreement the share of tokens with the same most
        likely successor. By skill: the share of the prompts, of those that the original can do, still done.
        """
        figures: dict[str, Any] = {}
        for name, ids in self.texts.items():
            losses, divergences, same = [], [], []
            for number, logits in enumerate(_logits(small, ids)):
                before, after = (F.log_softmax(part.float(), -1) for part in (self.logits[name][number], logits))
                targets = ids[number * BATCH : number * BATCH + len(logits), 1:, None]
                change = (before - after)[:, :-1].gather(-1, targets)[..., 0]
                losses.append(change.mean(1))
                divergences.append((before.exp() * (before - after)).sum(-1).mean())
                same.append((before.argmax(-1) == after.argmax(-1)).float().mean())
            loss = torch.cat(losses)
            figures[name] = {
                "ratio": float(loss.mean().exp()),
                "error": float(loss.std() / len(loss) ** 0.5),
                "kl": float(torch.stack(divergences).mean()),
                "agreement": float(torch.stack(same).mean()),
            }
        for skill, known in self.prompts.items():
            right = known.right(small)
            figures[skill] = sum(right) / max(len(right), 1)
        return figures


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Iterator[Tensor]:
    for part in ids.split(BATCH):
        yield model(input_ids=part).logits
