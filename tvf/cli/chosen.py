"""What a sweep has chosen, as overrides that train it again: for `tvf confirm` and `tvf refit`."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvf.cli.launch import compose
from tvf.config import Affects, absolute_place, affects, flatten
from tvf.errors import InputError, require_count
from tvf.records import Row, confirmed_sweep, read_sweep
from tvf.report import Comparison, Configuration, compare, keys_of_seeds, stated_settings

VARIED = ("seed", "data.split_seed", "data.outer_fold", "data.fold")
DECIDED_HERE = ("hydra.sweep", "hydra/sweep", "hydra.run", "hydra.mode")


def parse_overrides(
    overrides: Sequence[str], command: str, allowed: Sequence[str], varied: str
) -> dict[str, str]:
    """Return the overrides by key; InputError for one that would change what was chosen.

    `command` trains the choice again; those of `allowed` it takes, although they change results.
    `varied` says to what it sets the other options of VARIED.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for text, override in zip(overrides, parsed, strict=True):
        key = override.key_or_group
        if key in VARIED and key not in allowed:
            raise InputError(f"{text} must be left out: {command} sets {key} itself, {varied}.")
        if key.startswith(DECIDED_HERE):
            raise InputError(
                f"{text} must be left out: {command} decides which jobs run, and in which folder."
            )
        if override.is_sweep_override():
            raise InputError(
                f"{text} must have a single value: {command} trains configurations that the sweep "
                "compared."
            )
        if key in allowed:
            require_count(key, override.value(), 2 if key == "data.folds" else 0)
        elif key == "stop_after":
            raise InputError(f"{text} must be left out: Ctrl-C interrupts, and {command} resumes.")
        elif not key.startswith("hydra") and Affects.NUMBERS in affects(key):
            raise InputError(
                f"{text} must be left out: {key} would change the configurations that the sweep "
                "compared. To try other values, add them to the sweep."
            )
    return by_key(text.lstrip("+") for text in overrides)


def by_key(overrides: Any) -> dict[str, str]:
    """Return overrides by what is left of the =, the last one of each."""
    return {text.partition("=")[0]: text for text in overrides}


def replace_overrides(texts: dict[str, str], added: dict[str, str]) -> dict[str, str]:
    """Replace overrides by added ones; tracker=none replaces those of tracker.* as well."""
    groups = tuple(f"{key.replace('/', '.')}." for key in added)
    kept = {key: text for key, text in texts.items() if not key.lstrip("+").startswith(groups)}
    return kept | added


def comparison_of(folder: Path, purpose: str) -> Comparison:
    """The only comparison of the sweep's jobs; InputError if there is none, or several.

    `purpose` is the command that needs it: "confirm".
    """
    if (parent := confirmed_sweep(folder)) is not None:
        raise InputError(
            f"{folder} is itself a confirmation. To {purpose} the sweep: tvf {purpose} "
            f"{shlex.quote(str(parent))}"
        )
    rows = read_sweep(folder)
    if not any(row["state"] == "done" and row["config"].get("data") for row in rows):
        raise InputError(
            f"{folder} has no finished job, so there is nothing to {purpose}. To finish the sweep: "
            f"tvf resume {shlex.quote(str(folder))}"
        )
    comparisons = compare(rows)
    if len(comparisons) != 1:
        titles = "; ".join(comparison.title for comparison in comparisons)
        raise InputError(
            f"{folder}: its jobs are compared separately ({titles}), so it has no single choice. "
            f"Run a separate sweep for each of these settings, then {purpose} that."
        )
    return comparisons[0]


def overrides_of(group: Configuration, comparison: Comparison) -> dict[str, str]:
    """The overrides of a configuration's jobs by key, without what differs between them.

    Relative places are those of the record: the commands of a sweep may be from several folders.
    """
    job = group.done[0]
    recorded = flatten(job["config"])
    following = keys_of_seeds(job, comparison.following)
    texts = by_key(job["overrides"])
    left_out = (*VARIED, "stop_after", "mirror")
    kept = {key: text for key, text in texts.items() if key.lstrip("+") not in left_out}
    for key, text in kept.items():
        place, given = recorded.get(key.lstrip("+")), text.partition("=")[2].strip("'\"")
        is_path = isinstance(place, str) and os.path.isabs(place) and not os.path.isabs(given)
        if is_path or absolute_place(key.lstrip("+"), given, os.sep) not in (given, place):
            kept[key] = f"{key}={_quoted(str(place))}"
    if recorded.get("mirror"):  # it is the sweep's own, also if an experiment sets it
        kept["mirror"] = "mirror=null"
    return kept | {key: f"{key}=${{seed}}" for key in kept if key.lstrip("+") in following}


def _quoted(value: str) -> str:
    """A value as Hydra reads it back, whatever characters it has."""
    if re.fullmatch(r"[\w./:@-]+", value, re.ASCII):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def checked_config(
    group: Configuration, comparison: Comparison, overrides: Sequence[str], config_dir: Path | None
) -> dict[str, Any]:
    """The config that the overrides give today; InputError if it differs from the recorded one."""
    from tvf.config import validate_config

    job: Row = group.done[0]
    seed = f"seed={job['config']['seed']}"
    config = validate_config(compose([*overrides, seed], config_dir))
    following = keys_of_seeds(job, comparison.following)
    before, now = (stated_settings(each, following) for each in (job["config"], config))
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        changes = [f"{key} was {before.get(key)}, is now {now.get(key)}" for key in differing[:5]]
        raise InputError(
            f"{group} cannot be trained again as it was: {', '.join(changes)} ({len(differing)} in "
            "all). Options or files have changed since the sweep. Restore them, or run a new sweep."
        )
    return config


def decision_words(comparison: Comparison) -> str:
    """Whether the sweep has decided, as the words between its name and the choice."""
    choice = comparison.choice
    decided = choice.chosen is not None and choice.decided is not False
    return "chose" if decided else "has not decided; best so far is"


def note_unfinished(comparison: Comparison) -> list[str]:
    """A line that counts the sweep's jobs that are not done; none if all are."""
    jobs = [job for group in comparison.configurations for job in group.jobs]
    expected = [job for job in jobs if not job["dropped"] and job["state"] != "stopped"]
    if unfinished := sum(job["state"] != "done" for job in expected):
        return [
            f"note: {unfinished} of the sweep's {len(jobs)} jobs did not finish, which may change "
            "its choice."
        ]
    return []
