"""The predictions of a job: for each validation and test image, its id, label and logits.

They decide whether two jobs saw the same images, and what is known about other images.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvf.files import write_whole

if TYPE_CHECKING:  # it imports torch
    from tvf.data import Split

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """What a job predicts for the images of one split, in the order of the pool.

    `ids` identifies the content of each image, bytes [N]; `names` is its path or number, str [N];
    `groups` says which images belong together, int64 [N], or None; `labels` are classes, int64 [N],
    and `logits` float32 [N, C]. `epoch_classes` holds the class predicted for each image in each
    epoch, every one of which could have become the job's best: integers [epochs, N]. It is None for
    test images, and for jobs of versions that did not record it.
    """

    ids: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    groups: np.ndarray | None = None
    epoch_classes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def predictions_of(split: "Split", logits: np.ndarray) -> Predictions:
    """The predictions for a split, given its logits, float [N, C]."""
    pool, places = split.pool, split.places
    return Predictions(
        pool.pixels.digests[places],
        np.array([pool.names[place] for place in places], str),
        split.labels.numpy(),
        logits.astype(np.float32),
        None if pool.groups is None else pool.groups[places],
    )


def write_predictions(
    folder: Path,
    predictions: Mapping[str, Predictions],
    trained_on: np.ndarray,
    pool: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the predictions for each split, and the ids of the images that the job trained on.

    `pool` is what identifies all images: see `tvf.data.describe_pool`.
    """
    arrays: dict[str, Any] = {"trained_on": trained_on} | dict(pool or {})
    for split, values in predictions.items():
        for name in Predictions.__dataclass_fields__:
            if (array := getattr(values, name)) is not None:
                arrays[f"{split}_{name}"] = array
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(folder / PREDICTIONS, content.getbuffer())


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """The predictions of a job by split; empty if it has none or the file is damaged."""
    with_prefix = _read_arrays(folder)
    found: dict[str, Predictions] = {}
    for split in ("val", "test"):
        prefix = f"{split}_"
        arrays = {k.removeprefix(prefix): v for k, v in with_prefix.items() if k.startswith(prefix)}
        try:
            found[split] = Predictions(**arrays)
        except TypeError:  # written by another version
            return {}
        epochs = arrays.pop("epoch_classes", None)
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1 or found[split].logits.ndim != 2:
            return {}
        shape = (1, *lengths) if epochs is None else epochs.shape
        if len(shape) != 2 or not shape[0] or {shape[1]} != lengths:
            found[split] = replace(found[split], epoch_classes=None)  # damaged: the rest counts
    return found


def read_trained_on(folder: Path) -> np.ndarray | None:
    """The ids of the images that a job trained on, bytes [N]; None if they are not known."""
    return _read_arrays(folder).get("trained_on")


def read_pool(folder: Path) -> dict[str, np.ndarray] | None:
    """What identifies the images of a job; None if it is not known, as of earlier versions."""
    arrays = {k: v for k, v in _read_arrays(folder).items() if k.startswith("pool_")}
    return arrays or None


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    try:
        # Of a damaged file, np.load would leave the path open.
        content = io.BytesIO((folder / PREDICTIONS).read_bytes())
        with np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # NumPy and zipfile can raise anything for a damaged file
        return {}
