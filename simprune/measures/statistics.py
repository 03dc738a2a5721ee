"""Statistics of one representation: `describe(X)` gives the number, two representations compare by its difference."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pdist

from simprune.core.neighbours import directions, unit_scaled_
from simprune.measures._base import DegenerateWarning, Statistic
from simprune.measures._modularity import louvain, modularity
from simprune.measures._products import centred
from simprune.measures._rows import distance_matrix, warn_of_zero_rows

NEVER = "this does not occur for finite rows"


@dataclass(frozen=True)
class Magnitude(Statistic):
    """Length of the mean row of X (N, D), in [0, inf), in the units of X.

    Source: Klabunde, Schumacher, Strohmaier, Lemmerich 2023, arXiv:2305.06329.

    >>> Magnitude().describe(torch.tensor([[3.0, 0.0], [3.0, 8.0]]))
    5.0
    """

    id = "magnitude"
    invariant_to = frozenset({"PT", "OT"})
    cost = "prepare: one number, O(N D); pair: O(1)"
    undefined = NEVER

    def _prepare(self, X: Tensor) -> Tensor:
        return torch.linalg.vector_norm(X.mean(0))


@dataclass(frozen=True)
class Concentricity(Statistic):
    """Mean cosine between the rows of X (N, D) and their mean, in [-1, 1], 1 = all in one direction.

    A zero row counts as 0, with a DegenerateWarning.

    Source: Klabunde, Schumacher, Strohmaier, Lemmerich 2023, arXiv:2305.06329.

    >>> round(Concentricity().describe(torch.eye(2)), 4)
    0.7071
    """

    id = "concentricity"
    invariant_to = frozenset({"PT", "OT", "IS"})
    cost = "prepare: one number, O(N D); pair: O(1)"
    undefined = "the mean of all rows is zero"

    def _prepare(self, X: Tensor) -> Tensor:
        warn_of_zero_rows(self, X)
        rows = unit_scaled_(X.clone())
        mean = rows.mean(0)
        length = torch.linalg.vector_norm(mean)
        noise = 16 * torch.finfo(X.dtype).eps * torch.linalg.vector_norm(rows, dim=1).mean()
        return torch.where(length > noise, (directions(rows) @ (mean / length)).mean(), math.nan)


@dataclass(frozen=True)
class Uniformity(Statistic):
    """log of the mean of exp(-t |a - b|^2) over all ordered pairs of rows of X (N, D), a = b included.

    In [-log N, 0]; lower = spread more evenly. Rows are scaled to length 1 first unless `normalize=False`, where
    large distances make it saturate at -log N. Raises ValueError for t that is not positive.

    Source: Wang, Isola 2020, arXiv:2005.10242.

    >>> round(Uniformity().describe(torch.eye(2)), 4)
    -0.675
    """

    t: float = 2.0
    normalize: bool = True

    id = "uniformity"
    invariant_to = frozenset({"PT", "OT", "IS"})
    cost = "prepare: one number, O(N^2 D), N^2/2 distances held meanwhile; pair: O(1)"
    undefined = NEVER

    def _configure(self) -> None:
        self._require("t", 0 < self.t < math.inf, "positive")
        if not self.normalize:
            self._declare(invariant_to=frozenset({"PT", "OT", "TR"}))

    def _prepare(self, X: Tensor) -> Tensor:
        if self.normalize:
            warn_of_zero_rows(self, X)
            X = directions(X)
        count = len(X)
        kernel = pdist(X).square_().mul_(-self.t).exp_()
        return ((count + 2 * kernel.sum()) / count**2).log()  # a = b adds 1 each, so this cannot vanish


@dataclass(frozen=True)
class Tolerance(Statistic):
    """Mean over all ordered pairs of rows of X (N, D) of their cosine if of one class, else 0; in [0, 1].

    sum over classes of |sum of unit rows|^2 / N^2; needs labels (N,). A zero row counts as 0, with a
    DegenerateWarning.

    Source: Wang, Liu 2021, arXiv:2012.09740.

    >>> Tolerance().describe(torch.eye(2)[[0, 0, 1, 1]], labels=[0, 0, 1, 1])
    0.5
    """

    id = "tolerance"
    invariant_to = frozenset({"PT", "OT", "IS"})
    needs_labels = True
    cost = "prepare: one number, O(N D); pair: O(1)"
    undefined = NEVER

    def _prepare(self, X: Tensor, labels: Tensor) -> Tensor:
        warn_of_zero_rows(self, X)
        sums = torch.zeros_like(X).index_add_(0, labels.unique(return_inverse=True)[1], directions(X))
        return sums.square().sum() / len(X) ** 2


@dataclass(frozen=True)
class IntrinsicDimension(Statistic):
    """Dimension of the set that rows of X (N, D) seem to be drawn from, by distances to nearest neighbours; > 0.

    With r1 <= r2 a row's distances to its two nearest rows and mu = r2 / r1: "twonn" fits
    -log(1 - rank/N) = d log(mu) through 0 over the lower nine tenths of mu; "mle" is the maximum-likelihood
    (N - 1) / sum log(mu). With k > 2 neighbours "mle" is Levina and Bickel's estimate pooled over rows,
    (N(k - 1) - 1) / sum_j log(r_k / r_j). Duplicate rows are used once, with a DegenerateWarning. Raises ValueError
    for another method, for k < 2, and for "twonn" with another k.

    Source: Facco, d'Errico, Rodriguez, Laio 2017, doi:10.1038/s41598-017-11873-y; Levina, Bickel 2004, NeurIPS;
    MacKay, Ghahramani 2005.

    >>> X = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    >>> round(IntrinsicDimension().describe(X @ torch.ones(2, 9).triu()), 1)
    2.0
    """

    method: str = "twonn"
    k: int = 2

    id = "intrinsic_dimension"
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    minimum_rows = 3
    cost = "prepare: one number, O(N^2 D), N^2 distances held meanwhile; pair: O(1)"
    undefined = "too few rows differ, or every row's nearest neighbours are equally far"

    def _configure(self) -> None:
        self._require("method", self.method in ("twonn", "mle"), '"twonn" or "mle"')
        self._require("k", self.k == 2 or (self.k > 2 and self.method == "mle"), 'at least 2, and 2 for "twonn"')
        self._declare(minimum_rows=self.k + 1)

    def _prepare(self, X: Tensor) -> Tensor | float:
        apart = distance_matrix(X)
        apart.diagonal().fill_(math.inf)
        first = ~(apart == 0).tril().any(1)
        count = int(first.sum())
        if count < len(X):
            warnings.warn(
                f"{self.id}: {len(X) - count} of {len(X)} rows repeat another row and are left out",
                DegenerateWarning,
                stacklevel=4,
            )
            apart = apart[first][:, first]
        if count <= self.k:
            return math.nan
        near = apart.topk(self.k, dim=1, largest=False).values
        ratios = (near[:, -1:] / near[:, :-1]).log()
        if self.method == "mle":
            total = ratios.sum()
            return torch.where(total > 0, (ratios.numel() - 1) / total, math.nan)
        lower = 9 * count // 10
        x = ratios.flatten().sort().values[:lower]
        y = -torch.log1p(-torch.arange(1, lower + 1, device=x.device, dtype=x.dtype) / count)
        return torch.where(x.any(), x @ y / (x @ x), math.nan)


@dataclass(frozen=True)
class ParticipationRatio(Statistic):
    """How many directions share the variance: (tr C)^2 / tr(C^2), C the covariance of X (N, D); in [1, D].

    Source: Gao, Ganguli 2015, arXiv:1503.08779.

    >>> ParticipationRatio().describe(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    2.0
    """

    id = "participation_ratio"
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    cost = "prepare: one number, O(N D min(N, D)); pair: O(1)"
    undefined = "the representation is the same for all inputs"

    def _prepare(self, X: Tensor) -> Tensor:
        rows = unit_scaled_(centred(X))
        small = rows.T @ rows if rows.shape[1] < rows.shape[0] else rows @ rows.T
        return small.trace().square() / small.square().sum()


@dataclass(frozen=True)
class NeuronGraphModularity(Statistic):
    """Largest modularity of a partition of the units of X (N, D), joined by |correlation|; at most 1, 1 = modules.

    The largest is searched for by Louvain's method from `seed`, so this is a lower bound of it. A dead unit has
    correlation 0.

    Source: Lange, Rolnick, Kording 2022, Clustering units in neural networks; Blondel et al. 2008, arXiv:0803.0476.

    >>> X = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    >>> NeuronGraphModularity().describe(X[:, [0, 0, 1, 1]])
    0.5
    """

    seed: int = 0

    id = "neuron_graph_modularity"
    invariant_to = frozenset({"PT", "IS", "TR"})
    cost = "prepare: one number, O(N D^2), then on the CPU a few dozen sweeps of O(D^2); pair: O(1)"
    undefined = "no two units are correlated"

    def _prepare(self, X: Tensor) -> Tensor:
        units = directions(centred(X).T)
        graph = (units @ units.T).abs()
        graph.diagonal().zero_()
        communities = torch.from_numpy(louvain(graph.cpu().numpy(), self.seed))
        return modularity(graph, communities.to(graph.device))
