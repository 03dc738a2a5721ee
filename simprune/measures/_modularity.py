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


def class_graph_modularity(X: Tensor, labels: Tensor, k: int, binary: bool = False) -> Tensor:
    """Q of the classes in the graph of the k nearest neighbours by cosine, 0-d float64; rows X (N, D), labels (N,).

    In A, an edge in both directions weighs its cosine and an edge in one direction half of it; if `binary`, both
    weigh 1. O(N^2 D), O(N k) memory.
    """
    indices, cosines = nearest(X, k)
    count = len(X)
    start = torch.arange(count, device=X.device)[:, None].expand_as(indices).flatten()
    end = indices.flatten()
    if binary:
        mutual = torch.isin(end * count + start, start * count + end)
        weight = 1 - mutual.to(cosines.dtype) / 2  # a mutual edge comes once from each side
    else:
        weight = cosines.flatten() / 2
    degree = weight.new_zeros(count).index_add_(0, start, weight).index_add_(0, end, weight)
    within = 2 * (weight * (labels[start] == labels[end])).sum()
    return _modularity(degree, within, labels)


def _modularity(degree: Tensor, within: Tensor, communities: Tensor) -> Tensor:
    total = degree.sum()
    community = communities.unique(return_inverse=True)[1]
    share = degree.new_zeros(len(degree)).index_add_(0, community, degree) / total
    return torch.where(total > 0, within / total - share.square().sum(), math.nan)


def louvain(adjacency: np.ndarray, seed: int = 0) -> np.ndarray:
    """Communities (N,) of large Q for symmetric weights (N, N) >= 0: the best of a few seeded Louvain searches.

    Nodes are put in order of their degrees first, so that their numbering makes no difference.
    """
    order = np.argsort(adjacency.sum(1), kind="stable")
    ordered = adjacency[np.ix_(order, order)]
    rng = np.random.default_rng(seed)
    partitions = [_louvain(ordered, rng) for _ in range(STARTS)]
    values = [float(modularity(torch.from_numpy(ordered), torch.from_numpy(partition))) for partition in partitions]
    communities = np.empty(len(order), dtype=np.int64)
    communities[order] = partitions[int(np.argmax(values))]
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
