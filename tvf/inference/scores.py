"""Scores of images whose classes are known, gathered batch by batch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tvf.data import digest_file
from tvf.inference.images import Item
from tvf.inference.pipeline import Chunk
from tvf.metrics import macro_f1
from tvf.records import read_trained_on


class ScoreKeeper:
    """Keeps a few numbers of each labelled image, whatever the number of classes."""

    def __init__(self) -> None:
        self._labels: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._true: list[np.ndarray] = []  # the probability of the true class
        self.images = 0

    def add(self, chunk: Chunk) -> None:
        """Count the images of a chunk; those without a label only as images."""
        self.images += len(chunk.items)
        rows = [row for row, item in enumerate(chunk.items) if item.label is not None]
        if not rows:
            return
        labels = np.array([chunk.items[row].label for row in rows])
        probabilities = chunk.probabilities[rows]
        self._labels.append(labels)
        self._predicted.append(probabilities.argmax(1))
        self._true.append(probabilities[np.arange(len(rows)), labels])

    def describe(self) -> str | None:
        """The scores in one line; None if no image has a label."""
        if not self._labels:
            return None
        labels, predicted = np.concatenate(self._labels), np.concatenate(self._predicted)
        by_class = partial(np.bincount, minlength=1 + max(labels.max(), predicted.max()))
        with np.errstate(divide="ignore"):
            nll = float(-np.log(np.concatenate(self._true)).mean())
        accuracy = float((labels == predicted).mean())
        hits = by_class(labels[labels == predicted])
        f1 = macro_f1(hits, by_class(labels), by_class(predicted))
        some = "" if len(labels) == self.images else f" of {self.images:,}"
        return (
            f"{len(labels):,}{some} images are in folders of their classes: accuracy "
            f"{accuracy:.3f}, macro F1 {f1:.3f}, negative log-likelihood {nll:.3f}"
        )


def count_trained_on(items: Sequence[Item], job: Path) -> int | None:
    """How many of the labelled files a job has trained on, by their content.

    None if that is not known: of exported files, and of jobs without a record of it.
    """
    trained_on = read_trained_on(job)
    if trained_on is None:
        return None
    files = [item.image for item in items if item.label is not None and isinstance(item.image, str)]
    return int(np.isin(np.array([digest_file(file) for file in files], "S32"), trained_on).sum())
