"""Which images the page shows: mistakes, uncertain images, and candidates for wrong labels.

An image is judged by the mean of its calibrated probabilities over the trainings that predicted it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvf.records import Row, softmax
from tvf.report.calibration import calibration_of, splits_of
from tvf.report.configuration import Configuration
from tvf.report.validated import Validated, gather

LISTED = 24  # images in a list


@dataclass(frozen=True)
class JudgedImage:
    """What trainings say about an image.

    `digest` identifies its content. `label` and `predicted` are classes; the predicted one is, of
    those that at least one training predicts, the most probable. `probability` is its mean over the
    `trainings` that predicted the image, and `agree` of them predict it.
    """

    name: str
    digest: bytes
    label: int
    predicted: int
    probability: float
    agree: int
    trainings: int


@dataclass(frozen=True)
class ImageList:
    """The first images of those that meet a condition, and how many meet it."""

    images: list[JudgedImage]
    total: int


@dataclass(frozen=True)
class SelectedImages:
    """The images of one split, `images` in all, that are worth a look.

    `mistakes` starts with the most probable ones, `uncertain` with the least probable predictions,
    right or wrong. Both are those of one configuration. `mislabelled` are images of which every
    training of every configuration disagrees with the label; None if none has two trainings.
    """

    images: int
    mistakes: ImageList
    uncertain: ImageList
    mislabelled: ImageList | None


def select_images(
    configuration: Configuration, configurations: Sequence[Configuration], split: str
) -> SelectedImages | None:
    """Select images of "val" or "test"; `configuration` is one of the `configurations`.

    None if no job has predictions of two classes or more. Images with equal probabilities are in
    the order of their names.
    """
    trainings = _read_trainings(configuration.done, split)
    if trainings is None:
        return None
    judged = _judge(trainings, np.arange(trainings.validated.images))
    mistakes = [image for image in judged if image.predicted != image.label]
    return SelectedImages(
        len(judged),
        mistakes=_first(mistakes, most_probable=True),
        uncertain=_first(judged, most_probable=False),
        mislabelled=_find_mislabelled([job for each in configurations for job in each.done], split),
    )


@dataclass(frozen=True)
class _Trainings:
    """The predictions of some jobs, and the temperature of each."""

    validated: Validated
    temperatures: list[float]


def _read_trainings(jobs: Sequence[Row], split: str) -> _Trainings | None:
    """The trainings with predictions for the split, of as many classes as the first has."""
    known = []
    for job in jobs:
        seen, calibration = splits_of(job).get(split), calibration_of(job)
        if seen is not None and calibration is not None:
            known.append((job, seen.logits.shape[1], calibration["temperature"]))
    known = [each for each in known if each[1] == known[0][1]]
    validated = gather([[job for job, *_ in known]], split) if known else None
    return validated and _Trainings(validated, [temperature for *_, temperature in known])


def _find_mislabelled(jobs: Sequence[Row], split: str) -> ImageList | None:
    trainings = _read_trainings(jobs, split)
    if trainings is None:
        return None
    (correct,) = trainings.validated.correct
    often = (~np.isnan(correct)).sum(axis=0) >= 2
    if not often.any():
        return None
    suspicious = often & (np.nansum(correct, axis=0) == 0)
    return _first(_judge(trainings, np.flatnonzero(suspicious)), most_probable=True)


def _first(images: list[JudgedImage], *, most_probable: bool) -> ImageList:
    sign = -1 if most_probable else 1
    ordered = sorted(images, key=lambda image: (sign * image.probability, image.name))
    return ImageList(ordered[:LISTED], len(images))


def _judge(trainings: _Trainings, wanted: np.ndarray) -> list[JudgedImage]:
    """Judge the images in these columns of `trainings.validated`."""
    validated = trainings.validated
    (seen,) = validated.predictions
    row_of = np.full(validated.images, -1)
    row_of[wanted] = np.arange(len(wanted))
    shape = len(wanted), seen[0][1].logits.shape[1]
    sums, votes = np.zeros(shape), np.zeros(shape, np.int32)
    named: dict[int, tuple[str, bytes, int]] = {}
    for (columns, predictions), temperature in zip(seen, trainings.temperatures, strict=True):
        places = np.flatnonzero(row_of[columns] >= 0)
        rows, logits = row_of[columns[places]], predictions.logits[places]
        sums[rows] += softmax(logits, temperature)
        votes[rows, logits.argmax(1)] += 1
        identities = (predictions.names, predictions.ids, predictions.labels)
        values = zip(*(each[places].tolist() for each in identities), strict=True)
        named |= dict(zip(rows.tolist(), values, strict=True))
    predicted, counts = np.where(votes > 0, sums, -1.0).argmax(1), votes.sum(1)
    return [
        JudgedImage(
            *named[row],
            predicted=int(predicted[row]),
            probability=float(sums[row, predicted[row]] / counts[row]),
            agree=int(votes[row, predicted[row]]),
            trainings=int(counts[row]),
        )
        for row in range(len(wanted))
    ]
