"""What a data source of image files has found, before any image is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.encoded import ImageFile
from tvf.data.left_out import LeftOut


@dataclass(frozen=True)
class ListedImages:
    """Images: their names, where they are, and what else is known of them, as `Catalog` has it."""

    classes: tuple[str, ...]
    names: Sequence[str]
    files: Sequence[ImageFile]
    labels: np.ndarray
    parts: np.ndarray | None = None
    groups: np.ndarray | None = None
    weights: np.ndarray | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
