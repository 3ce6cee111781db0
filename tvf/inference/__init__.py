"""Trained models in use: loaded, run on images, exported."""

from tvf.inference.choose import choose_jobs
from tvf.inference.combine import COMBINED, Combination, combine_jobs
from tvf.inference.export import LAYOUTS, Export, export_model
from tvf.inference.exported import ENDINGS
from tvf.inference.images import Item, Reading, list_items
from tvf.inference.load import load
from tvf.inference.model import Model
from tvf.inference.scores import ScoreKeeper, count_trained_on
from tvf.inference.table import PredictionTable
from tvf.inference.writers import FORMATS, open_writer, rows_of

__all__ = [
    "COMBINED",
    "Combination",
    "ENDINGS",
    "Export",
    "FORMATS",
    "Item",
    "LAYOUTS",
    "Model",
    "PredictionTable",
    "Reading",
    "ScoreKeeper",
    "choose_jobs",
    "combine_jobs",
    "count_trained_on",
    "export_model",
    "list_items",
    "load",
    "open_writer",
    "rows_of",
]
