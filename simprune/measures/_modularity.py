"""Modularity: how much more weight a graph has inside communities than its degrees would give by chance.

Newman's Q = (1/2m) sum_ij (A_ij - d_i d_j / 2m) [c_i = c_j] with degrees d_i = sum_j A_ij and 2m = sum_i d_i.
"""

import math

import numpy as np
import torch
from torch import Tensor

from simprune.core.neighbours import nearest

STARTS = 5  # visiting orders that `louvain` tries


def modularity(adjacency: Tensor, communities: Tensor) -> Tensor:
    """Q of a partition: symmetric weights (N, N), community of each node (N,) as integers; NaN without edges."""
    within = (adjacency * (communities[:, None] == communities)).sum()
    return _modularity(adjacency.sum(1), within, communities)


def class_graph_modularity(
    X: Tensor, labels: Tensor, k: int, weights: str = "cosine", symmetrize: str = "mean"
) -> Tensor:
    """Q of the classes in the graph of the k nearest neighbours by cosine, 0-d float64; rows X (N, D), labels (N,).

    A directed edge weighs its cosine, or 1 with weights="binary". An edge in both directions keeps that weight
    in A; one that is not keeps half of it with symmetrize="mean", all of it with "or". O(N^2 D), O(N k) memory.
    """
    indices, cosines = nearest(X, k)
    count = len(X)
    start = torch.arange(count, device=X.device)[:, None].expand_as(indices).flatten()
    end = indices.flatten()
    weight = torch.ones_like(cosines).flatten() if weights == "binary" else cosines.flatten()
    if symmetrize == "or":
        edges = (start * count + end).sort().values
        back = end * count + start
        found = edges[torch.searchsorted(edges, back).clamp_(max=len(edges) - 1)] == back
        weight = torch.where(found, weight / 2, weight)  # it comes once from each side
    else:
        weight = weight / 2
    degree = weight.new_zeros(count).index_add_(0, start, weight).index_add_(0, end, weight)
    within = 2 * (weight * (labels[start] == labels[end])).sum()
    return _modularity(degree, within, labels)


def _modularity(degree: Tensor, within: Tensor, communities: Tensor) -> Tensor:
    total = degree.sum()
    share = degree.new_zeros(len(degree)).index_add_(0, consecutive(communities), degree) / total
    return torch.where(total > 0, within / total - share.square().sum(), math.nan)


def consecutive(labels: Tensor) -> Tensor:
    """Labels (N,) renumbered from 0 in ascending order, without asking the device how many there are."""
    ordered, order = labels.sort()
    changes = (ordered.diff(prepend=ordered[:1]) != 0).cumsum(0)
    return torch.empty_like(changes).scatter_(0, order, changes)


def louvain(adjacency: np.ndarray, seed: int = 0) -> np.ndarray:
    """Communities (N,) of large Q for symmetric weights (N, N) >= 0: the best of a few seeded Louvain searches.

    Nodes are put in order of their degrees first, so that their numbering makes no difference.
    """
    order = np.argsort(adjacency.sum(1), kind="stable")
    ordered = adjacency[np.ix_(order, order)]
    rng = np.random.default_rng(seed)
    found = [_louvain(ordered, rng) for _ in range(STARTS)]
    values = [float(modularity(torch.from_numpy(ordered), torch.from_numpy(each))) for each in found]
    communities = np.empty(len(order), dtype=np.int64)
    communities[order] = found[int(np.argmax(values))]
    return communities


def _louvain(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    membership = np.arange(len(weights))
    while True:
        communities = _moved(weights, rng)
        names, communities = np.unique(communities, return_inverse=True)
        if len(names) == len(weights):
            return membership
        membership = communities[membership]
        owner = np.eye(len(names))[communities]
        weights = owner.T @ weights @ owner


def _moved(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move one node at a time to the community that raises Q most, until none moves."""
    count, degree, total = len(weights), weights.sum(1), weights.sum()
    communities, filled = np.arange(count), degree.copy()
    moving = total > 0
    while moving:
        moving = False
        for node in rng.permutation(count):
            own = communities[node]
            filled[own] -= degree[node]
            towards = np.bincount(communities, weights[node], count)
            towards[own] -= weights[node, node]
            gain = towards - degree[node] * filled / total
            best = int(np.argmax(gain))
            if gain[best] > gain[own] + 1e-12 * total:
                communities[node], own, moving = best, best, True
            filled[own] += degree[node]
    return communities
