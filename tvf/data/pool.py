"""The pool: all images of a data set, listed and then read, and the splits that divide it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvf.data.encoded import ImageFile
from tvf.data.left_out import LeftOut
from tvf.errors import InputError
from tvf.store import Store, fingerprint

PARTS = ("train", "val", "test")
MANY_CLASSES = 10  # more are not listed one by one


@dataclass(frozen=True)
class Pixels:
    """The pixels of some images, uint8 [N, 3, S, S]; of too many to keep, what decodes them.

    `digests` identifies the content that each image was read from, bytes [N]. `pixel_digests` does
    so for its pixels: two files may hold equal images. Both are computed from the pixels if they
    are not given. `ranges` are those of `tvf.data.ranges`, int [N, 3], if they are known.
    """

    images: Any  # Tensor, or ImageFiles
    digests: np.ndarray = None  # type: ignore[assignment]
    pixel_digests: np.ndarray = None  # type: ignore[assignment]
    ranges: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.pixel_digests is None:
            object.__setattr__(self, "pixel_digests", digest_pixels(self.images))
        if self.digests is None:
            object.__setattr__(self, "digests", self.pixel_digests)


@dataclass(frozen=True)
class Catalog:
    """What a data set holds, known before any image is read. All arrays have one row per image.

    `labels` are classes, int64 [N]; `names` tell people which image it is: a path or a number.
    `parts` assigns images to "train", "val" or "test"; images with "" are divided by the options
    of the data source. `strata`, int64 [N], are finer classes whose shares the splits keep; by
    default the labels. Images of one group are never on two sides of a split. With `val_is_test`
    the test images validate as well. `weights`, float64 [N], say how much each image counts in the
    training loss. `window` holds the values shown as black and white, if the training images have
    given them. `read(places, progress, store)` reads some of the images. `left_out` counts what the
    data set holds but is not read; `notes` are for its user to read. `files` are where the images
    are read from, if they are files or kept in one.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    names: Sequence[str]
    read: Callable[[np.ndarray, bool, Store | None], Pixels]
    parts: np.ndarray | None = None
    strata: np.ndarray | None = None
    groups: np.ndarray | None = None
    weights: np.ndarray | None = None
    window: tuple[float, float] | None = None
    val_is_test: bool = False
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    files: Sequence[ImageFile] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> "Catalog":
        """Return the catalog of these images alone."""
        rows = {
            name: None if (values := getattr(self, name)) is None else values[places]
            for name in ("labels", "parts", "strata", "groups", "weights")
        }
        names = [self.names[place] for place in places]
        files = None if self.files is None else [self.files[place] for place in places]
        read: Any = lambda chosen, *how: self.read(places[chosen], *how)  # noqa: E731
        return replace(self, names=names, files=files, read=read, **rows)


@dataclass(frozen=True)
class Pool:
    """All images of a data set and their classes, int64 [N].

    `names` tell people which image it is; images of one group, int64 [N], belong together. See
    `Catalog` for `weights`, `window`, `left_out` and `notes`.
    """

    pixels: Pixels
    labels: Tensor
    names: Sequence[str]
    groups: np.ndarray | None = None
    weights: np.ndarray | None = None
    window: tuple[float, float] | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the pixels of the pool, in their order."""
        return fingerprint([self.pixels.pixel_digests, list(self.pixels.images.shape)])


@dataclass(frozen=True)
class Split:
    """The images of the pool at `places`, int64 [N], ascending."""

    pool: Pool
    places: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.pool, Pool):  # what version 0.1.0 took was images and labels
            raise InputError(
                f"Split takes a Pool and places in it, not {type(self.pool).__name__}: a data "
                "source lists its images in `catalog`, and `load` is inherited."
            )

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def labels(self) -> Tensor:
        """Classes, int64 [N]."""
        return self.pool.labels[torch.from_numpy(self.places)]

    @cached_property
    def weights(self) -> Tensor | None:
        """How much each image counts in a loss, float32 [N] up to 1; None if all count the same."""
        weights = None if self.pool.weights is None else self.pool.weights[self.places]
        if weights is None or not len(weights) or (weights == weights[0]).all():
            return None
        return torch.from_numpy((weights / weights.max()).astype(np.float32))

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the pixels of the split, in their order."""
        return fingerprint([self.pool.fingerprint, self.places])

    def content(self, classes: Sequence[str], weighted: bool = False) -> str:
        """Identifies the images of the split by what they were read from, and their classes.

        Neither names nor order matter. With `weighted`, their weights count as well.
        """
        digests = self.pool.pixels.digests[self.places].tolist()
        rows = [
            f"{one.decode()} {classes[label]}"
            for one, label in zip(digests, self.labels.tolist(), strict=True)
        ]
        if weighted and self.weights is not None:
            rows = [f"{row} {w}" for row, w in zip(rows, self.weights.tolist(), strict=True)]
        return digest("\n".join(sorted(rows)).encode()).decode()

    def pixels(self, samples: np.ndarray) -> Tensor:
        """The images of some samples, given by their index in the split, uint8 [B, 3, S, S]."""
        return self.pool.pixels.images[torch.from_numpy(self.places[samples])]


@dataclass(frozen=True)
class DataSplits:
    """Images to train on, to choose epochs with (`val`), and to evaluate a job on once (`test`)."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split

    @property
    def by_name(self) -> dict[str, Split]:
        """The splits by their names."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def digests(self) -> dict[str, str]:
        """Identifies the images of each split and their classes, and the weights to train with."""
        return {
            name: split.content(self.classes, weighted=name == "train")
            for name, split in self.by_name.items()
        }

    def join_val(self) -> "DataSplits":
        """Move the validation images to the images to train on; none validate then."""
        pool, places = self.train.pool, np.union1d(self.train.places, self.val.places)
        return replace(self, train=Split(pool, places), val=Split(pool, places[:0]))


def count_images(data: DataSplits) -> dict[str, Any]:
    """How many images the pool and its splits have, and digests of what was read.

    `by_class` holds for each split the images of each class, in the order of `data.classes`,
    `groups` the number of its groups if there are any. `weights` has the least and the largest
    weight of an image to train on, and how many have none, if they are weighted, `window` the
    values that are black and white, if training images have given them. `digests` has one
    of the images and labels of each split, and of the weights to train with, whatever their names
    and order. `left_out` is what was not read, and why.
    """
    pool, splits = data.train.pool, data.by_name
    identity = [pool.pixels.digests, pool.labels, pool.groups]
    if pool.weights is not None and (pool.weights != pool.weights[0]).any():
        identity.append(pool.weights)
    counts: dict[str, Any] = {
        "pool": len(pool),
        "digest": fingerprint(identity),
        **{name: len(split) for name, split in splits.items()},
        "by_class": {
            name: split.labels.bincount(minlength=len(data.classes)).tolist()
            for name, split in splits.items()
        },
        "digests": data.digests,
        "left_out": [asdict(entry) for entry in pool.left_out],
    }
    if pool.groups is not None:
        counts["groups"] = {
            name: len(np.unique(pool.groups[split.places])) for name, split in splits.items()
        }
    if pool.weights is not None and data.train.weights is not None:
        weights = pool.weights[data.train.places]
        counts["weights"] = {
            "low": float(weights.min()),
            "high": float(weights.max()),
            "zero": int((weights == 0).sum()),
        }
    if pool.window is not None:
        counts["window"] = list(pool.window)
    return counts


def describe_images(counts: Mapping[str, Any], classes: Sequence[str]) -> str:
    """What `count_images` counts, in words: train 1,181 of 22 groups (cat 612, dog 569), ..."""
    parts = []
    for name, by_class in counts["by_class"].items():
        number = counts["groups"][name] if "groups" in counts else 0
        groups = f" of {number:,} group{'' if number == 1 else 's'}" if number else ""
        if len(classes) <= MANY_CLASSES:
            pairs = zip(classes, by_class, strict=True)
            each = ", ".join(f"{label} {count:,}" for label, count in pairs)
        else:
            each = f"{len(classes):,} classes of {min(by_class):,} to {max(by_class):,}"
        parts.append(f"{name} {counts[name]:,}{groups} ({each})")
    return ", ".join(parts)


def describe_classes(counts: Mapping[str, Any], classes: Sequence[str]) -> str | None:
    """Every class with its images in train, val and test; None where `describe_images` has them."""
    if len(classes) <= MANY_CLASSES:
        return None
    each = zip(classes, *(counts["by_class"][part] for part in PARTS), strict=True)
    listed = ", ".join(f"{label} {'/'.join(map(str, numbers))}" for label, *numbers in each)
    return f"{'/'.join(PARTS)} of each class: {listed}"


def digest_pixels(images: Tensor) -> np.ndarray:
    """A digest of each image's pixels, bytes [N]."""
    return np.array([digest(image.numpy().data) for image in images.contiguous()], "S32")


def digest(content: object) -> bytes:
    """32 hexadecimal digits that identify bytes or an array."""
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()  # type: ignore[arg-type]
