"""ELPV: electroluminescence images of solar cells, from the PyPI package `elpv-dataset`.

Deitsch et al. 2019 (Solar Energy 185): 2,624 cells, mono- or polycrystalline, with a defect
probability of 0, 1/3, 2/3 or 1.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tvf.data.images import read_images
from tvf.data.sources.base import DataSource
from tvf.data.splits import DataSplits, Split, split_off
from tvf.errors import InputError, require_choice
from tvf.metrics import require_metric
from tvf.store import Store

TEST_SIZE = 656
CLASSES = {"binary": ("functional", "defective"), "four_class": ("0", "1/3", "2/3", "1")}


@dataclass(frozen=True, kw_only=True)
class Elpv(DataSource):
    """1,968 cells to train and validate on, 656 to test on.

    The splits are stratified by defect probability and cell type. Task "binary": defective means a
    probability of at least 0.5. "four_class": one class per probability.
    """

    task: str = "binary"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("data.task", self.task, tuple(CLASSES))
        require_metric(self.metric, len(CLASSES[self.task]))

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        """Read the images of the package; InputError if it is not installed."""
        folder = _folder()
        table = np.genfromtxt(
            folder / "labels.csv",
            dtype=None,
            encoding="utf-8",
            names=["path", "probability", "type"],
        )
        level = np.rint(table["probability"] * 3).astype(np.int64)
        defective = (table["probability"] >= 0.5).astype(np.int64)
        labels = level if self.task == "four_class" else defective
        strata = 2 * level + (table["type"] == "mono")
        train, test = split_off(np.arange(len(table)), strata, TEST_SIZE, self.split_seed)
        train, val = split_off(train, strata, int(self.val_fraction * len(train)), self.split_seed)

        def read(samples: np.ndarray) -> Split:
            return read_images(
                [folder / path for path in table["path"][samples]],
                torch.from_numpy(labels[samples]),
                self.image_size,
                progress=progress,
                store=store,
            )

        return self.read_splits(CLASSES[self.task], (train, val, test), read)


def _folder() -> Path:
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise InputError(
            "data=elpv needs the package elpv-dataset (CC-BY-NC-SA-4.0): pip install 'tvf[demo]'."
        )
    return Path(spec.origin).parent / "data"
