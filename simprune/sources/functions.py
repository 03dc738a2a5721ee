"""Models and data from functions: the user's, which a recipe names as `package.module:function`, and the zoo's."""

from typing import Any

from torch import nn

from simprune.core.blame import with_line
from simprune.core.names import fit, resolve
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
    """The model that a function returns, in evaluation mode.

    Args:
        function: `package.module:function`.
        weights: a `.safetensors` file, or None to leave the weights as the function returns them.
        options: keyword arguments of the function.

    Raises:
        ValueError: when there is no such function, it does not take the options or returns something else, and when
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

    Raises:
        ValueError: when there is no such function, it does not take the options or returns something else.
    """
    return as_data(_call(function, options), function)


def _call(function: str, options: dict[str, Any]) -> Any:
    """The value that `package.module:function(**options)` returns; ValueError for an error that it raises."""
    resolved = resolve(function)
    fit(resolved, options, function)
    if function.startswith("simprune."):
        return resolved(**options)
    try:
        return resolved(**options)
    except Exception as error:  # whatever the user's own function does
        raise ValueError(f"{function} raised {with_line(error)}") from error


@register("model", "resnet20", source="arXiv:1512.03385")
def _resnet20(*, weights: str, classes: int = 10) -> nn.Module:
    """He et al.'s ResNet-20 for 32x32 images, with weights from a .safetensors file."""
    return model_from("simprune.zoo:resnet20", weights, classes=classes)


@register("model", "resnet56", source="arXiv:1512.03385")
def _resnet56(*, weights: str, classes: int = 10) -> nn.Module:
    """He et al.'s ResNet-56 for 32x32 images, with weights from a .safetensors file."""
    return model_from("simprune.zoo:resnet56", weights, classes=classes)
