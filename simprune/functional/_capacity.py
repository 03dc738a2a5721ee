"""Capacity of channels: the mutual information of input and output under the best weights of the inputs."""

import torch
from torch import Tensor

TOLERANCE = 1e-11  # nats
ITERATIONS = 100


def capacity(p: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (N,) in nats of the capacity of N channels p (N, m inputs, C outputs), float64.

    Maximizes I(w) = sum_j w_j D_j, D_j = KL(p_j || sum_k w_k p_k), over weights w by primal-dual interior-point
    steps: the alternating updates of Blahut and Arimoto take thousands where the inputs are alike, these about
    twenty. For all w the capacity lies between I(w) and max_j D_j.
    """
    count, m, _ = p.shape
    own = torch.xlogy(p, p).sum(2)
    tiny = torch.finfo(p.dtype).tiny
    w = p.new_full((count, m), 1 / m)
    best = [p.new_zeros(count), p.new_full((count,), torch.inf)]
    slack = None
    todo = torch.arange(count)
    for _ in range(ITERATIONS):
        q = (w[:, :, None] * p).sum(1).clamp_min(tiny)
        divergence = (own - (p @ q.log()[:, :, None])[:, :, 0]).clamp_min(0)
        lower, upper = (w * divergence).sum(1), divergence.amax(1)
        best[0][todo] = torch.maximum(best[0][todo], lower)
        best[1][todo] = torch.minimum(best[1][todo], upper)
        slack = (upper[:, None] - divergence + upper[:, None]) if slack is None else slack
        open_ = best[1][todo] - best[0][todo] > TOLERANCE
        if not open_.any():
            break
        todo, p, own, w, slack, q, divergence = (x[open_] for x in (todo, p, own, w, slack, q, divergence))
        w, slack = _step(p, w, slack, q, divergence)
    # bounds from equal inputs may cross by rounding
    return best[0], torch.maximum(best[0], best[1])


def _step(p: Tensor, w: Tensor, slack: Tensor, q: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
    """One Newton step towards slack_j = max D - D_j, slack_j w_j = target, where w and slack stay positive."""
    target = (0.1 * (slack * w).mean(1, keepdim=True)).clamp_min(TOLERANCE / 1000)
    # changes sum to 0, so neither taking q from all rows nor adding to all entries matters, except for rounding: the
    # first keeps entries as small as the rows' differences, the second fills the direction w, in which they vanish
    centred = (p - q[:, None, :]) / q.sqrt()[:, None, :]
    curvature = centred @ centred.mT + torch.diag_embed(slack / w)
    size = curvature.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    curvature = curvature + size * (1 + 1e-14 * torch.eye(w.shape[1], dtype=w.dtype))
    sides = torch.stack([divergence + target / w, torch.ones_like(w)], 2)
    solved = torch.linalg.solve_ex(curvature, sides).result
    towards, ones = solved.unbind(2)
    change = towards - towards.sum(1, keepdim=True) / ones.sum(1, keepdim=True) * ones
    slack_change = target / w - slack - slack / w * change
    w = w + _reach(w, change) * change
    return w / w.sum(1, keepdim=True), slack + _reach(slack, slack_change) * slack_change


def _reach(x: Tensor, change: Tensor) -> Tensor:
    """How far to go, at most 1, so that x stays positive, (N, 1)."""
    limit = torch.where(change < 0, -x / change, torch.inf).amin(1, keepdim=True)
    return (0.99 * limit).clamp_max(1)
