"""How dispensable every expert of a mixture is: how alike are the outputs that tokens get from others in its place?

Without an expert, the tokens that have selected it select others. What the mixture gives then is compared with what it
gave, on the tokens that see the expert; on all others it gives the same.
"""

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from simprune.core.batches import first_tensor
from simprune.core.copies import sharing
from simprune.core.structures import UnitGroup
from simprune.scores.channels._score import ChannelScore, levels
from simprune.scores.output_changes import OutputLoss
from simprune.trace.capture import run
from simprune.trace.context import eval_mode
from simprune.trace.experts import Mixture, masking, mixtures
from simprune.trace.network import Network
from simprune.trace.precision import require_finite
from simprune.trace.sites import Site

EXPERTS = "experts"  # the kind of these groups
SCORE = "expert_outputs"  # what tables call the score
INERT = 1e-10  # share of a token's output, squared: changes below it are rounding
TOKENS = 512  # of the calibration set, by which experts are compared
WHY = "tokens get {least:.1%} or more (mean {mean:.1%}) of what it gives from others"


@dataclass(frozen=True)
class ExpertScore:
    """The score of a mixture's experts, and how alike their outputs are.

    Args:
        score: of the experts; an expert's redundancy is the share of what it gives that tokens get from the others.
        similarity: (units, units) in [-1, 1], cosines of the outputs of two experts on the tokens that see either of
            them, without what all experts give alike.
        seen: (units,) how many of the tokens that were looked at see an expert.
    """

    score: ChannelScore
    similarity: Tensor
    seen: Tensor


def score_experts(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ExpertScore]:
    """Scores of the experts of mixtures, by name of the group; one forward pass, then passes of the mixtures alone.

    Experts go one after another, always the one without which the mixture's output changes least.

    Args:
        network: the original.
        calibration: batches; some tokens of them, evenly spaced, are looked at.
        groups: of experts.

    Raises:
        ValueError: where no token enters a mixture, or something that is no number.
    """
    samples = tokens_of(network, calibration, groups)
    return {group.name: _score(_Alone.of(network, group), samples[group.name], group) for group in groups}


def tokens_of(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """(tokens, width) the tokens that are looked at, as they enter every mixture; ValueError as of `score_experts`."""
    samples = {group.name: _Sample() for group in groups}

    def see(site: Site, value: Tensor) -> None:
        samples[site.module].add(site.rows(value))

    sites = [Site(group.name, "positions", "input") for group in groups]
    run(network.model, calibration, sites, see, network.axes)
    tokens = {name: sample.rows() for name, sample in samples.items()}
    for name, rows in tokens.items():
        require_finite(rows, f"the input of {name}")
    return tokens


class _Sample:
    """At most `TOKENS` rows of all that are added, evenly spaced."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.step, self.seen = 1, 0

    def add(self, rows: Tensor) -> None:
        self.parts.append(rows[(-self.seen) % self.step :: self.step].clone())
        self.seen += len(rows)
        while sum(map(len, self.parts)) > TOKENS:
            self.parts = [torch.cat(self.parts)[::2]]
            self.step *= 2

    def rows(self) -> Tensor:
        if not self.seen:
            raise ValueError("calibration has no batches; give at least one")
        return torch.cat(self.parts)


@dataclass(frozen=True)
class _Alone:
    """A mixture by itself, which shares its weights with the network.

    Args:
        module: the mixture.
        layout: of the mixture, as in a model that is nothing else.
        dims: number of dimensions of its input.
    """

    module: nn.Module
    layout: Mixture
    dims: int

    @classmethod
    def of(cls, network: Network, group: UnitGroup) -> "_Alone":
        module = sharing(network.model.get_submodule(group.name)).eval()
        states = first_tensor(network.visits[group.name].call) if group.name else first_tensor(network.example)
        assert states is not None
        return cls(module, mixtures(module)[""], states.ndim)

    def without(self, gone: Collection[int], value: Tensor) -> Tensor:
        """The output for an input of any shape, when no token can select some of the experts."""
        with eval_mode(self.module), torch.no_grad():
            output = first_tensor(masking(self.module, self.layout, gone)(value))
        assert output is not None
        return output

    def outputs(self, gone: Collection[int], tokens: Tensor) -> Tensor:
        """(tokens, width) the same for tokens, in float32."""
        value = tokens.view(*[1] * (self.dims - 2), *tokens.shape)
        return self.without(gone, value).reshape(len(tokens), -1).float()

    def error(self, gone: Collection[int], value: Tensor, output: Tensor) -> Tensor:
        """The change of the output without some experts."""
        return self.without(gone, value).view_as(output) - output


def _score(mixture: _Alone, tokens: Tensor, group: UnitGroup) -> ExpertScore:
    whole = mixture.outputs((), tokens)
    require_finite(whole, f"the output of {group.name}")
    units, gone, order = group.units, list[int](), list[int]()
    damage = torch.zeros(group.size, dtype=torch.float64)

    given = whole.double().square().sum(1)

    def change(experts: Collection[int]) -> Tensor:
        """(tokens,) squared change of the output without some experts."""
        squares = (mixture.outputs(experts, tokens) - whole).double().square().sum(1)
        return squares.where(squares > INERT * given, 0.0)

    first = [change(experts) for experts in units]
    sees = torch.stack(first) > 0  # (units, tokens)
    outputs = torch.stack([mixture.outputs(_others(units, unit), tokens) for unit in range(group.size)])
    if not outputs.isfinite().all():  # a router that cannot do with one expert: what is lost without it takes its place
        outputs = torch.stack([whole - mixture.outputs(experts, tokens) for experts in units])
    # What is lost grows with what has gone before, nearly always, so the least of the known losses is computed anew.
    queue = [(float(lost.sum()), unit, 0) for unit, lost in enumerate(first)]
    heapq.heapify(queue)
    before = 0.0
    while queue:
        value, unit, turn = heapq.heappop(queue)
        if len(order) >= group.size - group.least:  # these stay, whatever they cost
            order.append(unit)
            damage[unit] = max(value - before, 0.0)
        elif turn < len(order):
            heapq.heappush(queue, (float(change([*gone, *units[unit]]).sum()), unit, len(order)))
        else:
            order.append(unit)
            gone += units[unit]
            damage[unit] = max(value - before, 0.0)
            before = max(value, before)
    spread = float((whole - whole.mean(0)).square().sum(dtype=torch.float64))
    redundancy = torch.tensor([_made_up_for(lost, given) for lost in first], dtype=torch.float64)
    score = ChannelScore.of(order, redundancy, damage / max(spread, 1e-300))
    counts = [count for count in levels(group.size) if count <= group.size - group.least]
    losses = {}
    for count in counts or [1]:
        experts = [expert for unit in order[:count] for expert in units[unit]]
        losses[count] = (OutputLoss(group.name, partial(mixture.error, experts)),)
    scored = ChannelScore(score.order, score.redundancy, score.damage, losses)
    return ExpertScore(scored, _similarity(outputs, sees), sees.sum(1))


def _others(units: Sequence[Sequence[int]], unit: int) -> list[int]:
    return [expert for number, experts in enumerate(units) for expert in experts if number != unit]


def _made_up_for(lost: Tensor, given: Tensor) -> float:
    """The share of the output, on the tokens that see an expert, that is the same without it; 1 if none see it."""
    return float((1 - lost.sum() / given[lost > 0].sum().clamp(min=1e-300)).clamp(0, 1))


def _similarity(outputs: Tensor, sees: Tensor) -> Tensor:
    """(units, units) cosines of outputs (units, tokens, width), about their mean, on tokens that either unit sees."""
    own = (outputs - outputs.mean(0)).double()
    products = torch.einsum("etd,ftd->eft", own, own)
    either = (sees[:, None] | sees[None]).double()
    length = torch.einsum("eet->et", products)
    shared = (products * either).sum(2)
    squares = torch.einsum("et,eft->ef", length, either)
    return shared / (squares * squares.T).sqrt().clamp(min=1e-300)
