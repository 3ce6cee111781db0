"""What a job says about its images, and whether they are still those that it began with."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvf.data import (
    DataSplits,
    describe_classes,
    describe_images,
    describe_left_out,
    is_usual,
)
from tvf.errors import InputError

log = logging.getLogger(__name__)


def log_images(tag: str, data: DataSplits, counts: Mapping[str, Any]) -> None:
    """Log the classes in their order, their images in each split, and what was left out.

    `counts` are those of `count_images`.
    """
    log.info("%s images: %s", tag, describe_images(counts, data.classes))
    if (classes := describe_classes(counts, data.classes)) is not None:
        log.info("%s %s", tag, classes)
    pool = data.train.pool
    if window := counts.get("window"):
        log.info("%s values from %g to %g are shown as black to white.", tag, *window)
    if weights := counts.get("weights"):
        none = f"; {weights['zero']:,} count for nothing" if weights["zero"] else ""
        log.info(
            "%s training images count in the loss by weights from %g to %g%s; scores are without "
            "weights.",
            tag,
            weights["low"],
            weights["high"],
            none,
        )
    for split, by_class in counts["by_class"].items():
        missing = [c for c, number in zip(data.classes, by_class, strict=True) if not number]
        if missing and counts[split]:
            log.warning(
                "%s data: the %s split has no image of %s: its scores say nothing about that.",
                tag,
                split,
                " or ".join(missing[:3]) + (" ..." if len(missing) > 3 else ""),
            )
    for note in pool.notes:
        log.warning("%s data: %s.", tag, note)
    usual = all(map(is_usual, pool.left_out))
    if pool.left_out:
        level = logging.INFO if usual else logging.WARNING
        log.log(level, "%s left out: %s", tag, describe_left_out(pool.left_out))


def check_same_images(
    state: Mapping[str, Any] | None, counts: Mapping[str, Any], folder: Path
) -> None:
    """Raise InputError if the checkpoint `state` was trained on other images than the job has now.

    Checkpoints of older versions do not say on which.
    """
    before = (state or {}).get("images")
    if before is None:
        return
    changed = [part for part, digest in counts["digests"].items() if before.get(part) != digest]
    if changed:
        now = ", ".join(f"{part} {counts[part]:,}" for part in changed)
        raise InputError(
            f"the images have changed since the checkpoint in {folder} was written (now: {now}), "
            "or their labels or weights have: "
            "the job cannot resume on others. Restore them, or delete the folder to train it again."
        )
