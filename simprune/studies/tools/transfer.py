"""How well features suit a data set, without training the network: one number per data set, higher is better.

Features are (N, D), labels (N,) integers, source predictions (N, Z) rows of probabilities.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

import simprune as sp


def log_me(features: ArrayLike, labels: ArrayLike, rounds: int = 100) -> float:
    """LogME: the log evidence of Bayesian linear regressions onto the classes, per input, a mean over classes.

    y ~ N(F w, 1 / beta), w ~ N(0, 1 / alpha), with alpha and beta of the largest evidence (fixed-point iteration).

    Source: You, Liu, Wang, Long 2021, arXiv:2102.11005; MacKay 1992 for the iteration.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(60) % 3
    >>> log_me(np.eye(3)[labels] + 0.1 * rng.normal(size=(60, 3)), labels) > log_me(rng.normal(size=(60, 3)), labels)
    True
    """
    F, targets = _checked(features), _one_hot(labels)
    count, width = F.shape
    u, s, _ = np.linalg.svd(F, full_matrices=False)
    squares = s**2
    evidence = []
    for y in targets.T:
        along = u.T @ y
        outside = max(float(y @ y - along @ along), 0.0)  # what no weights explain
        alpha = beta = 1.0
        for _ in range(rounds):
            shrunk = alpha + beta * squares
            weights = float((beta**2 * squares * along**2 / shrunk**2).sum())
            error = float((alpha**2 * along**2 / shrunk**2).sum()) + outside
            effective = float((beta * squares / shrunk).sum())
            before = alpha
            alpha, beta = effective / max(weights, 1e-12), (count - effective) / max(error, 1e-12)
            if abs(alpha - before) <= 1e-6 * before:
                break
        shrunk = alpha + beta * squares
        weights = float((beta**2 * squares * along**2 / shrunk**2).sum())
        error = float((alpha**2 * along**2 / shrunk**2).sum()) + outside
        log_determinant = np.log(shrunk).sum() + (width - len(s)) * np.log(alpha)
        total = count * np.log(beta) + width * np.log(alpha) - count * np.log(2 * np.pi)
        evidence.append((total - beta * error - alpha * weights - log_determinant) / (2 * count))
    return float(np.mean(evidence))


def h_score(features: ArrayLike, labels: ArrayLike) -> float:
    """H-score: tr(cov(F)^+ cov(E[F | y])), in [0, classes - 1]; the sum of squared correlations between F and classes.

    Overfits where N is not much larger than D: with D >= N - 1 it is the number of classes less one, whatever F is.

    Source: Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer Learning".

    >>> round(h_score(np.eye(3)[[0, 1, 2, 0, 1, 2]], [0, 1, 2, 0, 1, 2]), 6)
    2.0
    """
    F, targets = _checked(features), _one_hot(labels)
    centred = F - F.mean(0)
    means = targets @ ((targets.T @ centred) / targets.sum(0)[:, None])
    return float(np.trace(np.linalg.pinv(centred.T @ centred, hermitian=True) @ (means.T @ means)))


def leep(predictions: ArrayLike, labels: ArrayLike) -> float:
    """LEEP: the mean log likelihood of labels under P(y | z) averaged over a source network's predictions; at most 0.

    P(y, z) is the mean over inputs of 1[y_i = y] theta_i(z), for source probabilities theta (N, Z).

    Source: Nguyen, Hassner, Seeger, Archambeau 2020, arXiv:2002.12462.

    >>> leep(np.eye(2)[[0, 0, 1, 1]], [1, 1, 0, 0])
    0.0
    """
    theta, targets = _checked(predictions), _one_hot(labels)
    joint = targets.T @ theta
    conditional = joint / joint.sum(0).clip(min=1e-300)
    likelihood = (theta @ conditional.T)[targets.astype(bool)]
    return float(np.log(likelihood.clip(min=1e-300)).mean())


def n_leep(features: ArrayLike, labels: ArrayLike, components: int | None = None, seed: int = 0) -> float:
    """N-LEEP: LEEP of the posteriors of a Gaussian mixture fitted to features, so that no source classifier is needed.

    Features are reduced to the principal components of 80 % of the variance, and at least one; the mixture has as many
    `components` as there are labels unless it is set, and diagonal covariances, of which few inputs suffice.

    Source: Li, Jia, Sang, Zhu, Green, Wang, Gong 2021, arXiv:2011.11200.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    F = _checked(features)
    if np.ptp(F, axis=0).max() == 0:
        raise ValueError("n_leep: features are the same for all inputs")
    reduced = PCA(n_components=0.8, svd_solver="full", random_state=seed).fit_transform(F)
    reduced /= reduced.std()
    count = components or _one_hot(labels).shape[1]
    mixture = GaussianMixture(count, covariance_type="diag", reg_covar=1e-3, max_iter=500, random_state=seed)
    return leep(mixture.fit(reduced).predict_proba(reduced), labels)


def knn_accuracy(features: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Share of inputs whose class most of their k nearest other inputs by cosine have; in ties the lower class."""
    F, targets = _checked(features), _one_hot(labels)
    rows = F / np.linalg.norm(F, axis=1, keepdims=True).clip(min=1e-12)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    votes = targets[nearest].sum(1)
    return float((votes.argmax(1) == targets.argmax(1)).mean())


def probe_accuracy(features: ArrayLike, labels: ArrayLike, test: ArrayLike, test_labels: ArrayLike) -> float:
    """Accuracy on test features of a logistic regression that was fitted to standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    probe.fit(_checked(features), np.asarray(labels))
    return float(probe.score(_checked(test), np.asarray(test_labels)))


def cross_probe_accuracy(features: ArrayLike, labels: ArrayLike, folds: int = 5, seed: int = 0) -> float:
    """Accuracy of linear probes over stratified folds: what a linear probe says without test inputs."""
    from sklearn.model_selection import StratifiedKFold

    F, y = _checked(features), np.asarray(labels)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(F, y)
    return float(np.mean([probe_accuracy(F[fit], y[fit], F[test], y[test]) for fit, test in splits]))


def _checked(values: ArrayLike) -> np.ndarray:
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"expected finite rows (N, D); got shape {rows.shape}")
    return rows


def _one_hot(labels: ArrayLike) -> np.ndarray:
    """(N, classes) of the classes that occur, in their order."""
    names, numbers = np.unique(np.asarray(labels), return_inverse=True)
    return np.eye(len(names))[numbers]


# Of features, the source's predictions, and labels.
SCORES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "motif share": lambda features, _, labels: float(sp.measures.get("gbs_motif").describe(features, labels=labels)),
    "modularity": lambda features, _, labels: float(
        sp.measures.get("graph_modularity").describe(features, labels=labels)
    ),
    "LogME": lambda features, _, labels: log_me(features, labels),
    "H-score": lambda features, _, labels: h_score(features, labels),
    "LEEP": lambda _, predictions, labels: leep(predictions, labels),
    "N-LEEP": lambda features, _, labels: n_leep(features, labels),
    "k-NN accuracy": lambda features, _, labels: knn_accuracy(features, labels),
    "linear probe": lambda features, _, labels: cross_probe_accuracy(features, labels),
}
