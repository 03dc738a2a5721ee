"""Which layer of another network is most similar to a layer: matches, their accuracy and its interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from simprune.studies.statistics import bootstrap, mean


def best_matches(similarity: np.ndarray, larger_is_more_similar: bool = True) -> np.ndarray:
    """The most similar column for every row.

    Args:
        similarity: (L, L') values between layers of one network and those of another.
        larger_is_more_similar: the direction of the measure.

    Returns:
        (L,) indices; in ties the lower one, and -1 for a row without any defined value.

    >>> best_matches(np.array([[0.9, 0.9], [np.nan, np.nan], [0.1, 0.4]])).tolist()
    [0, -1, 1]
    """
    values = similarity if larger_is_more_similar else -similarity
    defined = ~np.isnan(values)
    best = np.where(defined, values, -np.inf).argmax(1)
    return np.where(defined.any(1), best, -1)


@dataclass(frozen=True, eq=False)
class Matching:
    """How layers of networks match, over pairs of networks.

    Args:
        matrix: (L, L), the share of pairs in which the layer of a row matched the layer of a column. A row adds up to
            less than 1 where a measure was undefined.
        layers: (L,), the share of pairs in which a layer matched itself: the diagonal of `matrix`.
        accuracy: the mean of `layers`.
        low, high: limits of a 95 % interval of the accuracy when networks are drawn again.
    """

    matrix: np.ndarray
    layers: np.ndarray
    accuracy: float
    low: float
    high: float


def match_layers(
    similarities: Mapping[tuple[int, int], np.ndarray], larger_is_more_similar: bool = True, seed: int = 0
) -> Matching:
    """Matches over pairs of networks with the same layers.

    Pairs that share a network are not independent, so the interval draws networks and not pairs. Of fewer than three
    networks there is none: its limits are NaN.

    Args:
        similarities: by the numbers of two networks, (L, L) values between the first's layers and the second's.
        larger_is_more_similar: the direction of the measure.
        seed: of the draws.

    Raises:
        ValueError: for no pairs, and for values that are not L x L for one L.

    >>> match_layers({(0, 1): np.eye(3), (0, 2): np.eye(3)[::-1], (1, 2): np.eye(3)}).layers.round(2).tolist()
    [0.67, 1.0, 0.67]
    """
    shapes = {values.shape for values in similarities.values()}
    if len(shapes) != 1 or len(set(next(iter(shapes)))) != 1:
        raise ValueError(f"expected one L x L matrix of similarities for every pair of networks; got shapes {shapes}")
    count = next(iter(shapes))[0]
    matrix = np.zeros((count, count))
    shares: dict[tuple[int, int], float] = {}
    for pair, values in similarities.items():
        best = best_matches(values, larger_is_more_similar)
        matrix[(best >= 0).nonzero()[0], best[best >= 0]] += 1
        shares[pair] = float((best == np.arange(count)).mean())
    matrix /= len(similarities)
    networks = sorted({network for pair in similarities for network in pair})

    def accuracy(drawn: list[int]) -> float:
        return mean([shares[pair] for pair in combinations(sorted(drawn), 2) if pair in shares])

    value, low, high = bootstrap(networks, accuracy, seed)
    if len(networks) < 3:
        low = high = math.nan
    return Matching(matrix, matrix.diagonal().copy(), value, low, high)
