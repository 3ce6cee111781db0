"""Jobs of a sweep that are one: other overrides, such as a default spelled out, but equal configs.

They share the folder of the first, where the job is trained once.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvf.config import Config, result_config
from tvf.records import read_configs, read_status

SHOWN = 5  # jobs that are named


def find_same_jobs(
    sweep: Path, composed: Sequence[tuple[str, Config]], named: Sequence[bool]
) -> dict[str, str]:
    """Map folders that jobs would have to the one of an earlier job with the same configuration.

    `composed` are folders' names and configs, in order; `named` says which jobs the user has given
    a name, and so a folder, of their own. What an earlier command has begun stays where it is.
    """
    begun = read_configs(sweep)
    first: dict[str, str] = {}
    for folder, config in begun.items():
        first.setdefault(_identity(config), folder)
    same = {}
    for (folder, config), own in zip(composed, named, strict=True):
        if own or folder in begun:
            continue
        known = first.setdefault(_identity(config), folder)
        if known != folder:
            same[folder] = known
    return same


def describe_same_jobs(sweep: Path, same: Mapping[str, str]) -> str:
    """Which folders have the jobs, in a line for each of the first few."""
    lines = []
    for folder, other in list(same.items())[:SHOWN]:
        state = read_status(sweep / other).get("state", "not started")
        lines.append(f"{folder} is the same configuration as {other} ({state}): one job, there.")
    if len(same) > SHOWN:
        lines.append(f"So are {len(same) - SHOWN:,} more jobs and others of the sweep.")
    return "\n".join(lines)


def _identity(config: Config) -> str:
    # Jobs with and without the store have equal results, but may be there to compare their costs.
    store = config.get("store")
    mode = store.get("mode") if isinstance(store, Mapping) else None
    return json.dumps([result_config(config), mode], sort_keys=True, default=str)
