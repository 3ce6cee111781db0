"""ELPV: electroluminescence images of solar cells, from the PyPI package `elpv-dataset`.

Deitsch et al. 2019 (Solar Energy 185): 2,624 cells, mono- or polycrystalline, with a defect
probability of 0, 1/3, 2/3 or 1, cut from images of 44 modules.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tvf.data.images import read_images
from tvf.data.pool import Catalog, Pixels
from tvf.data.sources.base import DataSource
from tvf.errors import InputError, require_choice
from tvf.metrics import require_metric
from tvf.store import Store

CLASSES = {"binary": ("functional", "defective"), "four_class": ("0", "1/3", "2/3", "1")}
SPLIT_BY = ("module", "cell")
MODULE_CELLS = 60


@dataclass(frozen=True, kw_only=True)
class Elpv(DataSource):
    """2,624 cells; a quarter of them to test on.

    Task "binary": defective means a probability of at least 0.5. "four_class": one class per
    probability. The splits are stratified by defect probability and cell type. `split_by` "module"
    keeps the cells of a module on one side, since they look alike; the modules are inferred (see
    `infer_modules`). "cell" divides cell by cell, as published results do: 1,968 and 656 cells.
    """

    task: str = "binary"
    split_by: str = "module"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("data.task", self.task, tuple(CLASSES))
        require_choice("data.split_by", self.split_by, SPLIT_BY)
        require_metric(self.metric, len(CLASSES[self.task]))

    def catalog(self) -> Catalog:
        """List the images of the package; InputError if it is not installed."""
        folder = _folder()
        table = np.genfromtxt(
            folder / "labels.csv",
            dtype=None,
            encoding="utf-8",
            names=["path", "probability", "type"],
        )
        level = np.rint(table["probability"] * 3).astype(np.int64)
        defective = (table["probability"] >= 0.5).astype(np.int64)
        mono = table["type"] == "mono"

        def read(places: np.ndarray, progress: bool, store: Store | None) -> Pixels:
            paths = [folder / path for path in table["path"][places]]
            return read_images(paths, self.image_size, progress=progress, store=store)

        return Catalog(
            CLASSES[self.task],
            level if self.task == "four_class" else defective,
            table["path"].tolist(),
            read,
            strata=2 * level + mono,
            groups=infer_modules(mono) if self.split_by == "module" else None,
        )


def infer_modules(mono: np.ndarray) -> np.ndarray:
    """Return the inferred module of each cell, int64, from the cells' types in file order.

    The data set does not say which module a cell is from, but its files are in the order of the
    modules. So each run of cells of one type is divided into blocks of about 60 cells, the size of
    most modules. This gives 18 mono- and 26 polycrystalline modules, as Deitsch et al. 2019 have.
    Within the longest runs a boundary may be off by a few cells.
    """
    modules, first = np.empty(len(mono), np.int64), 0
    for run in np.split(np.arange(len(mono)), np.flatnonzero(np.diff(mono)) + 1):
        blocks = np.array_split(run, max(1, round(len(run) / MODULE_CELLS)))
        for block in blocks:
            modules[block] = first
            first += 1
    return modules


def _folder() -> Path:
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise InputError(
            "data=elpv needs the package elpv-dataset (CC-BY-NC-SA-4.0): pip install 'tvf[demo]'."
        )
    return Path(spec.origin).parent / "data"
