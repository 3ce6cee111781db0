"""The images of the page: what `mistakes` selects, with thumbnails of the files as they are now.

A page never fails because of its pictures. An image that is gone, cannot be read or has changed
since it was predicted is a grey box, and a sentence says how many there are.
"""

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tvf.config import build, modern_node
from tvf.errors import InputError
from tvf.files import printable
from tvf.records import recorded_data
from tvf.report.calibration import SPLITS
from tvf.report.comparison import Comparison
from tvf.report.configuration import Configuration
from tvf.report.mistakes import ImageList, JudgedImage, SelectedImages, select_images

if TYPE_CHECKING:  # it imports torch
    from tvf.data import Catalog

SIDE = 96  # pixels of a thumbnail, at most
BYTES = 2_000_000  # of all thumbnails of a page
QUALITIES = (85, 60, 30)  # of JPEG; the best with which the thumbnails fit
Key = tuple[str, bytes]  # an image's name and digest


def collect_gallery(
    comparison: Comparison, configuration: Configuration, budget: int
) -> dict[str, Any] | None:
    """The template's values for the images of a configuration; None without predictions.

    The thumbnails have at most `budget` bytes together.
    """
    described = {
        split: [*_describe(found, split)]
        for key, split in SPLITS.items()
        if (found := select_images(configuration, comparison.configurations, key))
    }
    if not described:
        return None
    lists = [images for each in described.values() for *_, images in each]
    shown = [image for images in lists for image in images.images]
    pictures, problem = _read_pictures(configuration.done[0], shown)
    thumbnails = _encode(pictures, shown, budget)
    classes = configuration.done[0]["summary"].get("classes") or []
    return {
        "problem": problem or _describe_gaps(shown, pictures, thumbnails),
        "splits": [
            {
                "name": split,
                "lists": [_list(*each, classes, thumbnails) for each in lists],
            }
            for split, lists in described.items()
        ],
    }


def _describe(selected: SelectedImages, split: str) -> Iterator[tuple[str, str, ImageList]]:
    """The heading of each list, what is in it, and its images."""
    pool = _count(selected.images, f"{split} image")
    mistakes, mislabelled = selected.mistakes, selected.mislabelled
    about = f"{_count(mistakes.total, 'mistake')} among {pool}{_cut(mistakes)}."
    yield "Most confident mistakes", about, mistakes
    about = f"Of {pool}, those whose predicted class is least probable, right or wrong."
    yield "Least certain", about, selected.uncertain
    if mislabelled is None:
        return
    about = "None: no label is contradicted by every training of every configuration."
    if mislabelled.total:
        about = (
            f"{mislabelled.total:,} of {pool}{_cut(mislabelled)}. Every training of every "
            "configuration that predicted such an image, two at least, disagrees with its label. "
            "Trainings can share a mistake, so look before you change a label."
        )
    yield "Candidates for wrong labels", about, mislabelled


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _cut(images: ImageList) -> str:
    listed = len(images.images)
    return f"; these are the {listed} with the highest probability" if listed < images.total else ""


def _list(
    heading: str,
    about: str,
    images: ImageList,
    classes: Sequence[str],
    thumbnails: Mapping[Key, str],
) -> dict[str, Any]:
    def name(label: int) -> str:
        return str(classes[label]) if label < len(classes) else str(label)

    return {
        "heading": heading,
        "about": about,
        "images": [
            {
                "picture": thumbnails.get((image.name, image.digest)),
                "name": printable(image.name),
                "label": name(image.label),
                "predicted": name(image.predicted),
                "probability": _percent(image.probability),
                "agree": f"{image.agree} of {image.trainings} agree" if image.trainings > 1 else "",
            }
            for image in images.images
        ],
    }


def _percent(probability: float) -> str:
    """A probability that is never rounded to certainty."""
    number = "> 99.9" if probability > 0.999 else f"{100 * probability:.1f}"
    return f"{number}\N{NO-BREAK SPACE}%"


def _describe_gaps(
    shown: Sequence[JudgedImage], pictures: Mapping[Key, Any], thumbnails: Mapping[Key, str]
) -> str:
    """What the grey boxes are; empty if there are none."""
    keys = {(image.name, image.digest) for image in shown}
    reasons = {
        "no longer there, unreadable, or changed since the training": len(keys - pictures.keys()),
        "left out to keep the page small": len(pictures.keys() - thumbnails.keys()),
    }
    parts = [
        f"{number} {'is' if number == 1 else 'are'} {why}"
        for why, number in reasons.items()
        if number
    ]
    return f"Grey boxes: of {_count(len(keys), 'image')}, {' and '.join(parts)}." if parts else ""


def _read_pictures(
    job: Mapping[str, Any], shown: Sequence[JudgedImage]
) -> tuple[dict[Key, Image.Image], str]:
    """The images by name and digest, and why there are none at all."""
    try:
        catalog = _open_data(recorded_data(job["config"], job["summary"]))
        places = dict(zip(map(str, catalog.names), range(len(catalog)), strict=True))
    except Exception as error:  # data on another machine, or anything in a user's data source
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {}, f"The images cannot be shown, so there are grey boxes instead: {reason}"
    keys = dict.fromkeys((image.name, image.digest) for image in shown if image.name in places)
    wanted = np.array([places[name] for name, _ in keys], np.int64)
    found = _read(catalog, wanted) if len(wanted) else []
    return {
        key: picture
        for key, (digest, picture) in zip(keys, found, strict=True)
        if digest == key[1] and picture is not None
    }, ""


def _open_data(options: Mapping[str, Any]) -> "Catalog":
    """List the images of a job's data source without downloading anything.

    Raises whatever the source does, and InputError if it would call anything but a data source:
    whoever reads a report does not expect that a config of it runs.
    """
    from tvf.data import DataSource

    node = modern_node(options)
    module, _, name = node["_target_"].rpartition(".")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"data._target_={node['_target_']} cannot be imported ({error}): put the folder of its "
            "module on PYTHONPATH and write the report again."
        ) from error
    nested = "_target_" in repr([value for key, value in node.items() if key != "_target_"])
    if nested or not (isinstance(target, type) and issubclass(target, DataSource)):
        raise InputError(
            "a report opens plain data sources only, subclasses of tvf.data.DataSource."
        )
    if "download" in {*node, *target.__dataclass_fields__}:
        node["download"] = False
    return build(node, "data").catalog()


def _read(catalog: "Catalog", places: np.ndarray) -> list[tuple[bytes, Image.Image | None]]:
    """The digest and picture of each image; one that cannot be read has no picture."""
    try:
        pixels = catalog.read(places, False, None)
        squares = pixels.images.permute(0, 2, 3, 1).numpy()
        return [
            (digest, _shrink(Image.fromarray(square)))
            for digest, square, _ in zip(pixels.digests.tolist(), squares, places, strict=True)
        ]
    except Exception:  # one cannot be read: the others can, each by itself
        if len(places) == 1:
            return [(b"", None)]
        return [_read(catalog, place)[0] for place in places[:, None]]


def _shrink(image: Image.Image) -> Image.Image:
    """At most SIDE pixels wide and high; small images stay as they are."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    return image


def _encode(
    pictures: Mapping[Key, Image.Image], shown: Sequence[JudgedImage], budget: int
) -> dict[Key, str]:
    """Data URIs of the pictures, as many of those shown first as fit into `budget` bytes.

    An image counts as often as it is shown.
    """
    order = [key for image in shown if (key := (image.name, image.digest)) in pictures]
    uris: dict[Key, str] = {}
    for quality in QUALITIES:
        uris = {key: _data_uri(pictures[key], quality) for key in dict.fromkeys(order)}
        if sum(len(uris[key]) for key in order) <= budget:
            return uris
    sizes = np.cumsum([len(uris[key]) * order.count(key) for key in uris])
    return {
        key: uri for (key, uri), size in zip(uris.items(), sizes, strict=True) if size <= budget
    }


def _data_uri(image: Image.Image, quality: int) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"
