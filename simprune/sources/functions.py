"""The user's own models and data: what `package.module:function` returns, and weights from a file."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from simprune.core import names
from simprune.core.registry import register
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
        load_weights(model, weights)
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


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file into a model; only BatchNorm's `num_batches_tracked` may be missing.

    FileNotFoundError for a missing file; ValueError for another format, other names or other shapes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a .safetensors file: {error}") from None
    own = model.state_dict()
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    surplus = [key for key in tensors if key not in own]
    other = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    problems = {"lacks": missing, "has, unlike the model,": surplus, "has another shape for": other}
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{path} does not fit {type(model).__name__}: it {problem} {keys[0]!r}{more}")
    model.load_state_dict(tensors, strict=False)
