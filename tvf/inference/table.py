"""The result of a prediction: a small table of images, classes and probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvf.errors import InputError
from tvf.inference.pipeline import Chunk

SHOWN = 10  # rows of a printed table


@dataclass(frozen=True)
class PredictionTable:
    """One row per image, in the order in which they were given.

    `images` are names: paths, or "image 0" for arrays. `probabilities` is float64 [N, C], in the
    order of `classes`. `failed` has the name and the reason for each image that could not be read.
    """

    images: list[str]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    failed: list[tuple[str, str]]

    @classmethod
    def join(cls, chunks: Sequence[Chunk], classes: Sequence[str]) -> "PredictionTable":
        """The table of some chunks."""
        rows = [chunk.probabilities for chunk in chunks if chunk.items]
        return cls(
            [item.name for chunk in chunks for item in chunk.items],
            tuple(classes),
            np.concatenate(rows) if rows else np.empty((0, len(classes))),
            [(item.name, reason) for chunk in chunks for item, reason in chunk.failed],
        )

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[place] for place in self.probabilities.argmax(1)]

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the predicted class, float64 [N]."""
        return self.probabilities.max(1, initial=0.0)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame: image, predicted, probability, and a column for each class.

        Raises InputError without pandas.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install pandas.") from error
        columns = {
            "image": self.images,
            "predicted": self.predicted,
            "probability": self.confidence,
        }
        each = {f"p({name})": self.probabilities[:, i] for i, name in enumerate(self.classes)}
        return pandas.DataFrame(columns | each)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[str, str, float]]:
        """Yield image, predicted class and its probability."""
        return iter(zip(self.images, self.predicted, self.confidence.tolist(), strict=True))

    def __str__(self) -> str:
        """The first rows as text."""
        rows = [(image, name, f"{p:.3f}") for image, name, p in [*self][:SHOWN]]
        rows = [("image", "predicted", "probability"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{image:{widths[0]}}  {name:{widths[1]}}  {p}" for image, name, p in rows]
        if len(self) > SHOWN:
            lines.append(f"... {len(self):,} images in all")
        if self.failed:
            lines.append(f"{len(self.failed):,} could not be read: see .failed")
        return "\n".join(lines)

    __repr__ = __str__
