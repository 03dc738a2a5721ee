"""ContraSim: needs to be fitted, then brings together what belongs together, the same for the same seed."""

import math

import pytest
import torch

from simprune import measures


def study(seed, count=200):
    """Two noisy views of four hidden causes, and an unrelated representation."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(100)
    causes = torch.randn(count, 4, generator=generator)
    views = {
        name: causes @ torch.randn(4, width, generator=mixing) + 0.1 * torch.randn(count, width, generator=generator)
        for name, width in (("a", 8), ("b", 11))
    }
    return views | {"other": torch.randn(count, 8, generator=generator)}


def related(seed):
    return {name: X for name, X in study(seed).items() if name != "other"}


@pytest.fixture(scope="module")
def fitted():
    return measures.get("contrasim", steps=150, learning_rate=3e-3, seed=1).fit(related(0))


def test_unfitted_use_says_what_to_do():
    X = study(0)["a"]
    with pytest.raises(ValueError, match="no encoder yet: use what fit"):
        measures.get("contrasim")(X, X)
    with pytest.raises(ValueError, match="no encoder yet"):
        measures.get("contrasim").prepare(X)


def test_fitting_brings_new_inputs_of_related_representations_together(fitted):
    new = study(7)
    untrained = measures.get("contrasim", steps=1, learning_rate=1e-12, seed=1).fit(related(0))
    assert fitted(new["a"], new["b"]) > 0.8
    assert fitted(new["a"], new["b"]) > untrained(new["a"], new["b"]) + 0.3
    assert abs(fitted(new["a"], new["other"])) < 0.3
    assert fitted(new["a"], new["a"]) == pytest.approx(1)


def test_value_is_the_mean_cosine_of_encoded_rows(fitted):
    new = study(3)
    first = {}
    for name in ("a", "b"):
        X = new[name].double()
        X = X - X.mean(0)
        X = X / X.square().sum(1).mean().sqrt()
        first[name] = torch.relu(X @ fitted.encoder.first[X.shape[1]]) @ fitted.encoder.second
    expected = torch.cosine_similarity(first["a"], first["b"]).mean()
    assert fitted(new["a"], new["b"]) == pytest.approx(float(expected), rel=1e-9)


def test_the_seed_decides_everything(fitted):
    def fit(seed):
        return measures.get("contrasim", steps=3, seed=seed).fit(related(0), related(5))

    assert fit(2) == fit(2)
    assert fit(2) != fit(3)
    assert hash(fit(2)) == hash(fit(2))
    assert measures.get("contrasim", steps=150, learning_rate=3e-3, seed=1) != fitted
    state = torch.get_rng_state()
    fit(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_fitted_is_refused(fitted):
    X = study(0)["a"]
    unfitted = measures.get("contrasim")
    with pytest.raises(ValueError, match="at least one set"):
        unfitted.fit()
    with pytest.raises(ValueError, match="at least two representations"):
        unfitted.fit({"a": X})
    with pytest.raises(ValueError, match="of the same inputs"):
        unfitted.fit({"a": X, "b": X[:-1]})
    with pytest.raises(ValueError, match="b must be finite"):
        unfitted.fit({"a": X, "b": X * math.inf})
    with pytest.raises(ValueError, match="fitted on widths 8, 11, got 3"):
        fitted(X, X[:, :3])
    with pytest.raises(ValueError, match="must be positive"):
        measures.get("contrasim", temperature=0.0)
