"""Checks whether a job may start from another job's weights, from that job's record."""

import logging
from pathlib import Path

import numpy as np

from tvf.config import Affects, Config, select_options
from tvf.data import DataSplits
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, read_json
from tvf.models import find_weights, is_tvf_file, shorten
from tvf.records import read_config, read_trained_on

log = logging.getLogger(__name__)


def check_origin(init_from: str, backbone: str, data: DataSplits, config: Config) -> np.ndarray:
    """Raise InputError unless the job that `model.init_from` names had this backbone and classes.

    Also raises it if that job trained on images that validate or test this one, or may have: jobs
    of older versions do not record their images. A bare file has no record at all, so it only gets
    a warning. Returns the ids of the images that the weights have seen, as far as they are known.
    """
    folder = _job_of(init_from)
    if folder is None:
        log.warning(
            "%s does not record which images it was trained on: do not validate or test on them.",
            find_weights(init_from),
        )
        return np.empty(0, "S32")
    prefix = f"model.init_from={init_from} does not fit"
    summary = read_json(folder / "summary.json")
    if summary.get("backbone") != backbone:
        raise InputError(
            f"{prefix}: that job trained backbone={summary.get('backbone')}, this one trains "
            f"{backbone}. Choose that backbone or another job."
        )
    if summary.get("classes") != list(data.classes):
        raise InputError(
            f"{prefix}: that job's classes are {shorten(summary.get('classes'))}, this one's are "
            f"{shorten(data.classes)}."
        )
    trained_on = read_trained_on(folder)
    if trained_on is None:
        theirs, ours = (
            select_options(each, Affects.VALIDATION_IMAGES)
            for each in (read_config(folder), config)
        )
        if all(theirs.get(key) == ours.get(key) for key in ("data._target_", "data.root")):
            raise InputError(
                f"{prefix}: it has no record of the images it was trained on, as jobs of older "
                "versions of tvf, and they may validate or test this job. Train it again with this "
                "version."
            )
        return np.empty(0, "S32")
    _check_unseen(prefix, trained_on, data)
    return trained_on


def check_checkpoint_origin(checkpoint: str, data: DataSplits) -> np.ndarray:
    """Likewise for `backbone.checkpoint`: the file may be the weights of a tvf job, on any images.

    Returns the ids of the images that they have seen, as far as they are known.
    """
    trained_on = read_trained_on(Path(checkpoint).resolve().parent.parent)
    if trained_on is None:
        if is_tvf_file(Path(checkpoint)):
            log.warning(
                "%s is from tvf and does not record which images it was trained on: do not "
                "validate or test on them.",
                checkpoint,
            )
        return np.empty(0, "S32")
    _check_unseen(f"backbone.checkpoint={checkpoint} does not fit", trained_on, data)
    return trained_on


def _check_unseen(prefix: str, trained_on: np.ndarray, data: DataSplits) -> None:
    for name, split in (("validation", data.val), ("test", data.test)):
        seen = np.isin(split.pool.pixels.digests[split.places], trained_on)
        if seen.any():
            raise InputError(
                f"{prefix}: that job trained on {seen.sum()} of this job's {len(split)} {name} "
                "images. Use its division of the images: the same data.split_seed, folds and "
                "limits."
            )


def _job_of(init_from: str) -> Path | None:
    """The folder of the job that `model.init_from` names; None if it names a bare file.

    The best weights of a job that recorded its images are no bare file.
    """
    weights = find_weights(init_from).resolve()
    folder = weights.parent.parent
    recorded = folder / BEST_WEIGHTS == weights and read_trained_on(folder) is not None
    return folder if recorded or Path(init_from).is_dir() else None
