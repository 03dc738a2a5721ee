"""The user's own models and data: what `package.module:function` returns, and weights from a file."""

from typing import Any

from torch import nn

from simprune.core import names
from simprune.core.registry import register
from simprune.core.weights import load_weights
from simprune.sources.data import Data, as_data


@register("model", "function")
def _model(*, function: str, weights: str | None = None, **options: Any) -> nn.Module:
    """Your own model: function: package.module:function, weights: a .safetensors file or null."""
    return model_from(function, weights, **options)


@register("data", "function")
def _data(*, function: str, **options: Any) -> Data:
    """Your own data: function: package.module:function, which returns simprune.sources.Data or a dict."""
    return data_from(function, **options)


def model_from(function: str, weights: str | None = None, **options: Any) -> nn.Module:
    """The model that `package.module:function(**options)` returns, with `weights` from a `.safetensors` file.

    ValueError when the function is not found, does not take the options or returns something else, and when
    the weights do not fit.

    >>> model_from("torch.nn:Linear", in_features=3, out_features=2)
    Linear(in_features=3, out_features=2, bias=True)
    """
    model = _call(function, options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{function} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        load_weights(model, weights, strict=False)
    return model.eval()


def data_from(function: str, **options: Any) -> Data:
    """The data that `package.module:function(**options)` returns: a `Data`, its fields, or calibration alone.

    ValueError when the function is not found, does not take the options or returns something else.
    """
    return as_data(_call(function, options), function)


def _call(function: str, options: dict[str, Any]) -> Any:
    found = names.resolve(function)
    names.fit(found, options, function)
    return found(**options)
