"""A window from percentiles of the values of the training images: data.window=[1%,99%].

Of each image, evenly ranked values are kept, so that all count the same whatever their size. They
do not depend on the division, so that folds share them; the window does, as it must not know the
images that validate or test.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import torch
from torch import Tensor

from tvf.data.bad_images import BadImageError, explain_bad, without_pillow_limit
from tvf.data.digests import digest_files
from tvf.data.encoded import ImageFile
from tvf.data.images import CHUNK_SIZE, DECODER_VERSION, values_of
from tvf.errors import InputError
from tvf.progress import progress_bar
from tvf.store import ArraySpec, Store, StoreError, fingerprint

log = logging.getLogger(__name__)

IMAGES = 2**14  # images that are read, so that memory and time are limited
FEW = 2**10
RANKS = 256  # values that are kept of each image
MOST = 2**20  # values of an image that are ranked, evenly spaced in it
Percentiles = tuple[float, float]


def parse_percentiles(window: object) -> Percentiles | None:
    """The percentiles that the option `data.window` names: ["1%", "99%"]; None if it names none.

    Raises InputError for what begins as percentiles and is none.
    """
    given = list(window) if isinstance(window, list | tuple) else [window]
    if not any(isinstance(each, str) and each.strip().endswith("%") for each in given):
        return None
    try:
        low, high = (float(str(each).strip().removesuffix("%")) for each in given)
        if all(str(each).strip().endswith("%") for each in given) and 0 <= low < high <= 100:
            return low, high
    except ValueError:
        pass
    raise InputError(
        f"data.window={window} must be [low%,high%], two percentiles from 0% to 100% of the values "
        "of the training images, such as [1%,99%]; or [low,high], two values."
    )


def find_window(
    files: Sequence[ImageFile],
    percentiles: Percentiles,
    max_megapixels: float,
    bands: Sequence[int] = (),
    *,
    train: np.ndarray | None = None,
    progress: bool = False,
    store: Store | None = None,
) -> tuple[float, float]:
    """The values at these percentiles of those of the images in `files`, or of their `bands`.

    With `train`, only the images at these places count: the others are read for other divisions.
    Of more than IMAGES, evenly spaced ones are read. Raises InputError for images that cannot be
    read, and if the window would have no width.
    """

    def rank(file: ImageFile) -> np.ndarray:
        return _rank_values(values_of(file, max_megapixels, bands))

    train = np.arange(len(files)) if train is None else train
    chosen = _evenly(np.arange(len(files)))
    if np.isin(chosen, train).sum() < min(len(train), FEW):  # the split has hardly any of these
        chosen = _evenly(train)
    files = [files[place] for place in chosen]
    try:
        ranked = _rank(files, rank, (RANKS, MOST, *bands), progress, store)
    except BadImageError as error:
        raise explain_bad(files, rank, error) from error
    with np.errstate(invalid="ignore"):  # infinite values
        values = ranked.numpy()[np.isin(chosen, train)]
        low, high = map(float, np.percentile(values, percentiles, overwrite_input=True))
    shown = " and ".join(f"{each:g}%" for each in percentiles)
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError(
            f"data.window: the values of the training images at {shown} are {low:g} and {high:g}, "
            "and must be finite: replace infinite values, or set data.window=[low,high]."
        )
    if low == high:
        raise InputError(
            f"data.window: the values of the training images at {shown} are both {low:g}, so "
            "nothing could be told apart: choose percentiles that are further apart, or set "
            "data.window=[low,high]."
        )
    return low, high


def _evenly(places: np.ndarray) -> np.ndarray:
    """At most IMAGES of the places, evenly spaced."""
    if len(places) <= IMAGES:
        return places
    return places[np.linspace(0, len(places) - 1, IMAGES).astype(np.int64)]


def without_copies(files: Sequence[ImageFile], places: Mapping[str, np.ndarray]) -> np.ndarray:
    """The places to train on whose files equal none at those of another split; all if none is left.

    Raises InputError for files that cannot be read.
    """

    def read(file: ImageFile) -> None:
        digest_files([file])

    try:
        digests = digest_files(files)
    except BadImageError as error:
        raise explain_bad(files, read, error) from error
    train = places["train"]
    others = np.concatenate([places[name] for name in places if name != "train"])
    kept = train[~np.isin(digests[train], digests[others])]
    return kept if len(kept) else train  # which is an error once duplicates are dropped


def _rank(
    files: Sequence[ImageFile],
    rank: Callable[[ImageFile], np.ndarray],
    how: Sequence[int],
    progress: bool,
    store: Store | None,
) -> Tensor:
    """What `rank` gives for each image, float64 [N, RANKS]; from the store if it has it.

    `how` is what decides it besides the files.
    """
    label, count = "reading values" if progress else None, len(files)

    def fill(rows: np.ndarray) -> list[Tensor]:
        chosen = [files[row] for row in rows.tolist()]
        with without_pillow_limit(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            ranked = list(pool.map(rank, chosen))
        return [torch.from_numpy(np.stack(ranked))]

    if store is not None:
        content = fingerprint([digest_files(files), [PIL.__version__, DECODER_VERSION, *how]])
        columns = [ArraySpec((RANKS,), torch.float64)]
        about = {"about": f"values of {count} images"}
        try:
            entry = store.entry("values", [content], about)
            return entry.table(
                "ranks", count, columns, lambda rows, wait: fill(rows), label
            ).tensors()[0]
        except StoreError as error:
            log.warning("store: values of images are not cached: %s.", error)
    chunks = []
    with progress_bar(label, count) as advance:
        for rows in np.split(np.arange(count), range(CHUNK_SIZE, count, CHUNK_SIZE)):
            chunks += fill(rows)
            advance(len(rows))
    return torch.cat(chunks)


def _rank_values(values: np.ndarray) -> np.ndarray:
    """Evenly ranked ones of an image's values [H, W, ...], float64 [RANKS], ascending."""
    pixels = values.reshape(values.shape[0] * values.shape[1], -1)
    values = np.sort(pixels[:: -(-pixels.size // MOST)], axis=None)
    places = (np.arange(RANKS) + 0.5) / RANKS * len(values)
    return values[places.astype(np.int64)].astype(np.float64)
