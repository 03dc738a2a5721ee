"""Models and data; a recipe names the functions that are registered here."""

from simprune.sources.arrays import arrays
from simprune.sources.data import Batches, Data
from simprune.sources.digits import digits, digits_model
from simprune.sources.functions import data_from, model_from
from simprune.sources.transformers import pretrained, texts

__all__ = ["Batches", "Data", "arrays", "data_from", "digits", "digits_model", "model_from", "pretrained", "texts"]
