"""How a job read its images: as its config says, with the window that its training images gave."""

from collections.abc import Mapping
from typing import Any

from tvf.config import has_percentiles
from tvf.errors import InputError


def recorded_data(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a job's data source, with percentiles of values as the window they gave.

    Raises InputError if its record does not say which.
    """
    data = dict(config["data"])
    if not has_percentiles(data.get("window")):
        return data
    images = summary.get("images")
    window = images.get("window") if isinstance(images, Mapping) else None
    if isinstance(window, list):
        return data | {"window": window}
    if not str(data.get("_target_")).startswith("tvf."):  # it may mean anything
        return data
    raise InputError(
        f"summary.json does not say images.window, the values that data.window={data['window']} "
        "gave."
    )
