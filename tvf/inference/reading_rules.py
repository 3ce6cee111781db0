"""How a job's images became squares of 8 bits, by its record."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvf.config import modern_node
from tvf.data import ReadingRules
from tvf.errors import InputError
from tvf.files import printable
from tvf.inference.trust import DATA
from tvf.records import recorded_data

log = logging.getLogger(__name__)

RULES = tuple(ReadingRules.__dataclass_fields__)


def read_rules(config: Mapping[str, Any], summary: Mapping[str, Any]) -> ReadingRules:
    """The rules that a job's config names. Raises InputError for one that there is not.

    The summary has the window of percentiles. Options of a data source of the user's own may mean
    anything: those that are rules are taken.
    """
    return ReadingRules.of(_known_options({"data": recorded_data(config, summary)}))


def warn_of_own_source(config: Mapping[str, Any], folder: Path) -> None:
    """If the job has a data source of the user's own, say which of its options are taken."""
    if not _has_own_source(config):
        return
    data, known = config["data"], _known_options(config)
    ignored = [f"{key}={data[key]}" for key in RULES if key in data and key not in known]
    used = [f"{key}={known[key]}" for key in known]
    log.warning(
        "%s has a data source of its own: images are read like those of image folders%s%s.",
        printable(folder),
        f", with {', '.join(used)}" if used else "",
        f"; they do not know {', '.join(ignored)}" if ignored else "",
    )


def _known_options(config: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in config["data"].items() if key in RULES}
    if _has_own_source(config):
        return {key: value for key, value in given.items() if _is_rule(key, value)}
    return given


def _is_rule(key: str, value: Any) -> bool:
    try:
        ReadingRules.of({key: value})
    except InputError:
        return False
    return True


def _has_own_source(config: Mapping[str, Any]) -> bool:
    return modern_node(config["data"]).get("_target_") not in DATA
