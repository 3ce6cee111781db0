"""Checks whether a job may start from another job's weights, from that job's record."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tvf.config import Affects, Config, affects, modern_options
from tvf.errors import InputError
from tvf.files import read_json
from tvf.models import find_weights, shorten

log = logging.getLogger(__name__)

NOT_THE_SPLIT = ("data.limit", "data.metric")  # they affect validation, but move no image


def check_origin(init_from: str, backbone: str, classes: Sequence[str], config: Config) -> None:
    """Raise InputError unless the job that `model.init_from` names had this backbone and classes.

    Also raises it if that job split the same images differently: it may have trained on images that
    validate or test this one. A bare file has no such record, so it only gets a warning.
    """
    folder = Path(init_from).expanduser()
    if not folder.is_dir():
        log.warning(
            "%s does not record which images it was trained on: do not validate or test on them.",
            find_weights(init_from),
        )
        return
    prefix = f"model.init_from={init_from} does not fit"
    summary = read_json(folder / "summary.json")
    if summary.get("backbone") != backbone:
        raise InputError(
            f"{prefix}: that job trained backbone={summary.get('backbone')}, this one trains "
            f"{backbone}. Choose that backbone or another job."
        )
    if summary.get("classes") != list(classes):
        raise InputError(
            f"{prefix}: that job's classes are {shorten(summary.get('classes'))}, this one's are "
            f"{shorten(classes)}."
        )
    theirs, ours = modern_options(read_json(folder / "config.json")), modern_options(config)
    if any(theirs.get(key) != ours.get(key) for key in ("data._target_", "data.root")):
        return  # other images
    for key in sorted({*theirs, *ours}):
        decides = Affects.VALIDATION_IMAGES in affects(key) and key not in NOT_THE_SPLIT
        if decides and theirs.get(key) != ours.get(key):
            raise InputError(
                f"{prefix}: that job had {key}={theirs.get(key)}, this one has {ours.get(key)}, so "
                "it may have trained on images that validate or test this job. Use the same value."
            )
