"""Whether an edited model of transformers still generates.

transformers makes a cache for as many layers as the configuration calls `num_hidden_layers`. In models such as T5 that
is the number of the encoder's layers, and a decoder of more layers finds no room in the cache.
"""

from typing import Any

import torch
from torch import nn

from simprune.core.batches import device_of, move
from simprune.core.example import example_of
from simprune.edit.reopening import is_pretrained, quiet


def generation_lost(model: nn.Module, original: nn.Module, batch: Any) -> str:
    """Why a model with an encoder no longer generates with a cache although the original does; empty where it does.

    Two tokens are generated for two rows of the batch.

    Args:
        model: the edited one.
        original: the one before the edits.
        batch: inputs of both.

    >>> generation_lost(nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(1, 2))
    ''
    """
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not is_pretrained(model) or not encoder_decoder or not hasattr(model, "generate"):  # detectors have none
        return ""
    error = _error(model, batch)
    if error is None or _error(original, batch) is not None:
        return ""
    return (
        f"the smaller model does not generate with a cache ({type(error).__name__}: {error}): transformers makes one "
        "for as many layers as the encoder has; call generate(use_cache=False), or remove decoder layers as well"
    )


def _error(model: nn.Module, batch: Any) -> Exception | None:
    """What goes wrong when a model generates two tokens."""
    args, kwargs = move(example_of(batch), device_of(model))
    words = {key: value for key, value in kwargs.items() if not key.startswith(("decoder_", "labels"))}
    generate: Any = model.generate
    with quiet(), torch.no_grad():
        try:
            generate(*args, **words, max_new_tokens=2, min_new_tokens=2, do_sample=False, use_cache=True)
        except Exception as error:  # foreign code may raise anything
            return error
    return None
