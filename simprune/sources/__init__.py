"""Where models and data come from; recipes name these functions."""

from simprune.sources.local import Batches, Data, arrays, as_data, data_from, digits, digits_model, model_from
from simprune.sources.transformers import pretrained, texts

__all__ = [
    "Batches",
    "Data",
    "arrays",
    "as_data",
    "data_from",
    "digits",
    "digits_model",
    "model_from",
    "pretrained",
    "texts",
]
