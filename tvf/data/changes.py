"""Whether the images on disk are still those that a job has read, by their names and dates.

Only files that are new or younger than the job are read, so that an unchanged data set costs a
listing.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvf.data.encoded import ImageFile, content_of, is_younger
from tvf.data.pool import Catalog, Pool, digest

# What `describe_pool` records; all have one row per image.
NAMES, CONTENTS, LABELS = "pool_names", "pool_contents", "pool_labels"
WEIGHTS = "pool_weights"  # if there are any
CHANGES = ("added", "removed", "replaced", "relabelled", "reweighted", "renamed")


def describe_pool(pool: Pool) -> dict[str, np.ndarray]:
    """What identifies each image of a pool: hashes of its name and content, label and weight."""
    found = {
        NAMES: _hash_names(pool.names),
        CONTENTS: _shorten(pool.pixels.digests),
        LABELS: pool.labels.numpy().astype(np.int32),
    }
    return found if pool.weights is None else found | {WEIGHTS: pool.weights}


def count_changes(
    catalog: Catalog, before: Mapping[str, Any], classes: Sequence[str], since: float
) -> dict[str, int]:
    """How many images of `catalog` differ from those that a job has read after the time `since`.

    `before` is what `describe_pool` has recorded, with labels of these `classes`. Keys are those
    of CHANGES that there are. The images of `catalog` are files.
    """
    assert catalog.files is not None
    names = _hash_names(catalog.names)
    rows = {int(name): row for row, name in enumerate(before[NAMES])}
    known = np.isin(names, before[NAMES])
    gone = Counter(before[CONTENTS][~np.isin(before[NAMES], names)].tolist())
    labels = dict(zip(before[CONTENTS].tolist(), before[LABELS].tolist(), strict=True))
    counts: Counter[str] = Counter()
    unweighted = np.ones(len(before[NAMES]))
    for place, file in enumerate(catalog.files):
        label = catalog.classes[catalog.labels[place]]
        if not known[place]:
            content = _content(file)
            if gone[content] > 0:
                gone[content] -= 1
                same = classes[labels[content]] == label
                counts["renamed" if same else "relabelled"] += 1
            else:
                counts["added"] += 1
            continue
        row = rows[int(names[place])]
        if is_younger(file, since) and _content(file) != before[CONTENTS][row]:
            counts["replaced"] += 1
        elif classes[before[LABELS][row]] != label:  # in a table
            counts["relabelled"] += 1
        elif before.get(WEIGHTS, unweighted)[row] != (
            1 if catalog.weights is None else catalog.weights[place]
        ):
            counts["reweighted"] += 1
    counts["removed"] = gone.total()
    return {what: counts[what] for what in CHANGES if counts[what]}


def _hash_names(names: Sequence[str]) -> np.ndarray:
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), np.uint64)


def _shorten(digests: np.ndarray) -> np.ndarray:
    """The first 64 bits of each digest, uint64 [N]."""
    return np.array([int(text[:16], 16) for text in digests.tolist()], np.uint64)


def _content(file: ImageFile) -> int | None:
    try:
        return int(digest(content_of(file))[:16], 16)
    except OSError:
        return None  # of no image
