"""Whether a job may start from the weights of an earlier one: same backbone, classes, and split.

If the earlier job split the same images differently, it may have trained on images that this job
validates or tests on.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from tvf.config import Config
from tvf.errors import InputError
from tvf.files import read_json
from tvf.models import find_weights

log = logging.getLogger(__name__)

# The options of the data, besides its source, that decide how images are split.
SPLIT_OPTIONS = ("split_seed", "val_fraction", "test_fraction", "validate_on")


def check_origin(init_from: str, backbone: str, classes: Sequence[str], data: Config) -> None:
    """Raise InputError unless the job in the folder `init_from` fits this one.

    `data` is the node of this job's config; the earlier job's summary and config are read from its
    folder. A bare file of weights only logs a warning, as it does not say what it was trained on.
    """
    path = find_weights(init_from)
    folder = Path(init_from).expanduser()
    if not folder.is_dir():
        log.warning(
            "%s does not say which images it was trained on: make sure that it was not trained on "
            "this job's validation or test images.",
            path,
        )
        return
    summary = read_json(folder / "summary.json")
    if summary.get("backbone") != backbone:
        raise InputError(
            f"model.init_from={init_from} must have the same backbone: that job trained "
            f"backbone={summary.get('backbone')}, this one has {backbone}. Choose that backbone or "
            "another job."
        )
    if summary.get("classes") != list(classes):
        raise InputError(
            f"model.init_from={init_from} must have the same classes: that job's are "
            f"{_shorten(summary.get('classes'))}, here they are {_shorten(classes)}."
        )
    origin = read_json(folder / "config.json").get("data") or {}
    if any(origin.get(key) != data.get(key) for key in ("_target_", "root")):
        return  # other images
    for key in SPLIT_OPTIONS:
        if origin.get(key) != data.get(key):
            raise InputError(
                f"model.init_from={init_from} must have split the same images in the same way: "
                f"that job had data.{key}={origin.get(key)}, here it is {data.get(key)}, so this "
                "job would validate or test on images that the other has trained on. Choose "
                f"data.{key}={origin.get(key)}."
            )


def _shorten(names: object) -> str:
    listed = list(map(str, names)) if isinstance(names, list | tuple) else [str(names)]
    return ", ".join(listed[:5]) + (f" ({len(listed)} in all)" if len(listed) > 5 else "")
