"""Equal images in different splits: test or validation images that the job has trained on."""

import logging
from collections.abc import Mapping

import numpy as np

from tvf.data.pool import Catalog, Pixels
from tvf.errors import InputError

log = logging.getLogger(__name__)

CHOICES = ("warn", "error", "drop")
# Where equal images stay if the others are dropped. Images that score a job should be new to it,
# and the test split should not depend on how the rest is divided.
KEPT_IN = ("test", "val", "train")


def handle_duplicates(
    splits: Mapping[str, np.ndarray], catalog: Catalog, pixels: Pixels, choice: str
) -> dict[str, np.ndarray]:
    """Return the splits after dealing with images that are in two of them as `choice` says.

    Images are equal if their bytes or their pixels are. A data set may use the same images twice on
    purpose (validate_on=test): places that two splits share are not counted. Raises InputError.
    """
    _warn_of_contradictions(splits, catalog, pixels)
    result = {name: places.copy() for name, places in splits.items()}
    found: list[tuple[str, str, np.ndarray]] = []
    for number, kept in enumerate(KEPT_IN):
        for other in KEPT_IN[number + 1 :]:
            candidates = np.setdiff1d(result[other], result[kept])
            equal = np.zeros(len(candidates), bool)
            for digests in (pixels.digests, pixels.pixel_digests):
                equal |= np.isin(digests[candidates], digests[result[kept]])
            if equal.any():
                found.append((other, kept, candidates[equal]))
            if choice == "drop":
                result[other] = np.setdiff1d(result[other], candidates[equal])
    if not found:
        return result
    parts = "; ".join(
        _describe(other, kept, places, splits[kept], catalog, pixels)
        for other, kept, places in found
    )
    if choice == "error":
        raise InputError(
            f"equal images are in two splits: {parts}. Remove them from one, or set "
            "data.duplicates=drop."
        )
    if choice == "drop":
        if any(not len(result[name]) for name in result):
            raise InputError(
                f"data.duplicates=drop would leave a split without images: {parts}. Provide other "
                "images for it."
            )
        log.warning("data: dropped equal images from the first split named: %s.", parts)
    else:
        log.warning(
            "data: equal images are in two splits, so scores are too optimistic: %s. "
            "data.duplicates=drop removes them.",
            parts,
        )
    return result


def _describe(
    other: str,
    kept: str,
    places: np.ndarray,
    others: np.ndarray,
    catalog: Catalog,
    pixels: Pixels,
) -> str:
    """Count the images, and name a pair."""
    first = int(places[0])
    same = (pixels.digests[others] == pixels.digests[first]) | (
        pixels.pixel_digests[others] == pixels.pixel_digests[first]
    )
    twin = int(others[np.flatnonzero(same)[0]])
    return (
        f"{len(places)} of {other} are also in {kept} "
        f"({catalog.names[first]} is {catalog.names[twin]})"
    )


def _warn_of_contradictions(
    splits: Mapping[str, np.ndarray], catalog: Catalog, pixels: Pixels
) -> None:
    """Name equal images of different classes: at most one of their labels is right."""
    places = np.unique(np.concatenate(list(splits.values())))
    _, image = np.unique(pixels.pixel_digests[places], return_inverse=True)
    labels = catalog.labels[places]
    lowest, highest = np.full(image.max() + 1, labels.max()), np.zeros(image.max() + 1, int)
    np.minimum.at(lowest, image, labels)
    np.maximum.at(highest, image, labels)
    contradicting = np.flatnonzero((lowest < highest)[image])
    if not len(contradicting):
        return
    same = image == image[contradicting[0]]
    pair = [int(places[same][pick(labels[same])]) for pick in (np.argmin, np.argmax)]
    named = " and ".join(f"{catalog.names[p]} ({catalog.classes[catalog.labels[p]]})" for p in pair)
    log.warning(
        "data: %d images equal one of another class, so at most one label of each is right: %s. "
        "Remove the wrong ones.",
        len(contradicting),
        named,
    )
