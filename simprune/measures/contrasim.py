"""ContraSim: similarity in a space that was learned to bring together what different networks say of one input."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Measure, require_finite
from simprune.measures._products import centred

HIDDEN = 128
BATCH = 256


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network of two layers whose first is one matrix per width D of representation; equal if its weights are."""

    first: dict[int, Tensor] = field(repr=False)  # D: (D, HIDDEN)
    second: Tensor = field(repr=False)  # (HIDDEN, size)
    digest: str = ""

    def __post_init__(self) -> None:
        weights = [self.first[width] for width in sorted(self.first)] + [self.second]
        bytes_ = b"".join(weight.detach().cpu().numpy().tobytes() for weight in weights)
        object.__setattr__(self, "digest", hashlib.sha256(bytes_).hexdigest()[:16])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoder) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __call__(self, X: Tensor) -> Tensor:
        """Rows of length 1 (N, size) for X (N, D)."""
        first = self.first[X.shape[1]].to(X.device)
        return F.normalize((X @ first).relu() @ self.second.to(X.device), dim=1)


@dataclass(frozen=True)
class ContraSim(Measure):
    """Mean cosine of rows under a learned encoder, in [-1, 1], 1 = equal to the encoder; `fit` it first.

    mean_i cos(e(X_i), e(Y_i)) for X (N, D), Y (N, D') centred and scaled to mean square length 1. `fit` trains e so
    that the same input's rows in two representations are closer than other inputs' rows (InfoNCE with
    `temperature`, `steps` of Adam, one first layer per width, all random choices from `seed`).
    Raises ValueError when used before `fit`, or on a width that `fit` has not seen.

    Source: Rahamim, Belinkov 2024, arXiv:2303.16992.

    >>> X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> measure = ContraSim(steps=20).fit({"a": X, "b": X @ torch.ones(4, 3).tril()})
    >>> round(measure(X, 2 * X + 1), 4)
    1.0
    """

    size: int = 32
    temperature: float = 0.1
    steps: int = 300
    learning_rate: float = 1e-3
    seed: int = 0
    encoder: Encoder | None = None

    id = "contrasim"
    range = (-1.0, 1.0)
    invariant_to = frozenset({"IS", "TR"})  # by construction; others as far as they were learned
    cost = "fit: some hundred steps; prepare: encoded rows (N, size), O(N D); pair: O(N size)"
    undefined = "a representation is the same for all inputs"

    def _configure(self) -> None:
        if self.size < 1 or self.steps < 1 or not self.temperature > 0 or not self.learning_rate > 0:
            raise ValueError("contrasim: size, steps, temperature and learning_rate must be positive")

    def fit(self, *sets: Mapping[str, Any]) -> "ContraSim":
        """This measure with an encoder trained on `sets`: each one {name: X (N, D)} of the same N inputs.

        Raises ValueError if a set has fewer than two representations, or rows that do not fit together.
        """
        studies = [self._study(representations) for representations in sets]
        if not studies:
            raise ValueError("contrasim: fit needs at least one set of representations, got none")
        device = studies[0][0].device
        generator = torch.Generator().manual_seed(self.seed)

        def weights(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * (2 / rows) ** 0.5
            return drawn.to(device).requires_grad_()

        def draw(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        widths = sorted({X.shape[1] for study in studies for X in study})
        encoder = Encoder({width: weights(width, HIDDEN) for width in widths}, weights(HIDDEN, self.size))
        optimizer = torch.optim.Adam([*encoder.first.values(), encoder.second], lr=self.learning_rate)
        for _ in range(self.steps):
            study = studies[draw(len(studies))]
            i, j = torch.randperm(len(study), generator=generator)[:2].tolist()
            batch = torch.randperm(len(study[0]), generator=generator)[:BATCH].to(device)
            logits = encoder(study[i][batch]) @ encoder(study[j][batch]).T / self.temperature
            same = torch.arange(len(batch), device=device)
            loss = F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        first = {width: weight.detach() for width, weight in encoder.first.items()}
        return dataclasses.replace(self, encoder=Encoder(first, encoder.second.detach()))

    def _study(self, representations: Mapping[str, Any]) -> list[Tensor]:
        """Validated and scaled rows of one set."""
        inputs = {name: self._inputs(name, {"X": X}, {}) for name, X in representations.items()}
        require_finite(self.id, inputs)
        rows = [_scaled(values["X"]) for values in inputs.values()]
        if len(rows) < 2 or len({len(X) for X in rows}) > 1:
            raise ValueError(
                "contrasim: fit needs sets of at least two representations of the same inputs, "
                f"got shapes {[tuple(X.shape) for X in rows]}"
            )
        return rows

    def _prepare(self, X: Tensor) -> Tensor:
        if self.encoder is None:
            raise ValueError("contrasim has no encoder yet: use what fit({name: X, ...}) returns")
        if X.shape[1] not in self.encoder.first:
            seen = ", ".join(map(str, self.encoder.first))
            raise ValueError(f"contrasim was fitted on widths {seen}, got {X.shape[1]}: fit it on such rows too")
        rows = _scaled(X)
        return torch.where(rows.any(), self.encoder(rows), float("nan"))

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1).mean().clamp(-1.0, 1.0)


def _scaled(X: Tensor) -> Tensor:
    rows = unit_scaled_(centred(X))
    norm = torch.linalg.vector_norm(rows) / len(rows) ** 0.5
    return rows / torch.where(norm > 0, norm, 1.0)
