"""Plans `tvf confirm`: which configurations of a sweep to train again, and on which divisions.

The commands are plain `tvf train -m` into SWEEP/confirm, so `tvf resume` can finish that sweep too.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvf.cli.launch import compose, config_dir_among, make_importable
from tvf.config import Affects, affects
from tvf.errors import InputError, require_count
from tvf.records import CONFIRMATION, Row, confirmed_sweep, is_halving, read_sweep
from tvf.report import (
    Comparison,
    Configuration,
    compare,
    jobs_again,
    keys_of_seeds,
    stated_settings,
    to_confirm,
    training_of,
)
from tvf.sweep import Repetitions, choose_repetitions

VARIED = ("seed", "data.split_seed", "data.outer_fold", "data.fold")
DECIDED_HERE = ("hydra.sweep", "hydra/sweep", "hydra.run", "hydra.mode")


@dataclass(frozen=True)
class Plan:
    """What `tvf confirm` trains: the arguments of one or two sweeps, and the plan in words."""

    commands: list[list[str]]
    text: str


def plan_confirmation(
    folder: Path,
    arguments: Sequence[str],
    overrides: Sequence[str] = (),
    each_fraction: bool = False,
) -> Plan:
    """Plan the confirmation of the sweep in `folder`, which `tvf train` was given `arguments` for.

    Assumes that the working directory is that of the sweep's command: paths are relative. Raises
    InputError if the sweep has chosen nothing, or if `overrides` would change what it chose.
    """
    added = parse_overrides(overrides)
    comparison = _comparison_of(folder)
    candidates = to_confirm(comparison.evidence, comparison.choice, each_fraction)
    if not candidates:
        raise InputError(
            f"{folder} has not chosen a configuration, so there is nothing to confirm. "
            f"{comparison.choice.text}"
        )
    config_dir = config_dir_among(arguments)
    make_importable(config_dir)
    trained = [_overrides_of(group, comparison) for group in candidates]
    hydra = _hydra_settings(folder, arguments, {key for texts in trained for key in texts})
    composing = [text for text in hydra.values() if text.startswith("hydra.searchpath")]
    configs = [
        _checked_config(group, comparison, [*texts.values(), *composing], config_dir)
        for group, texts in zip(candidates, trained, strict=True)
    ]
    folds = added.pop("data.folds", None)
    used = [training_of(job) for group in comparison.configurations for job in group.jobs]
    again = [training_of(job) for group in candidates for job in group.jobs]
    repetitions = choose_repetitions(
        configs[0], used, again, int(folds.partition("=")[2]) if folds else None
    )
    flags = ["-m", *(["--config-dir", str(config_dir)] if config_dir else [])]
    commands = [
        [*flags, *_replace(texts | repetitions.overrides | hydra, added).values()]
        for texts in _as_grid(trained)
    ]
    return Plan(commands, _describe(folder, comparison, candidates, repetitions))


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Return the overrides by key; InputError for one that would change what is confirmed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for text, override in zip(overrides, parsed, strict=True):
        key = override.key_or_group
        if key in VARIED:
            raise InputError(
                f"{text} must be left out: tvf confirm sets {key} itself, to values that the "
                "sweep has not used."
            )
        if key.startswith(DECIDED_HERE):
            raise InputError(
                f"{text} must be left out: tvf confirm decides which jobs run, and in which folder."
            )
        if override.is_sweep_override():
            raise InputError(
                f"{text} must have a single value: tvf confirm trains configurations that the "
                "sweep compared."
            )
        if key == "data.folds":
            require_count(key, override.value(), 2)
        elif not key.startswith("hydra") and Affects.NUMBERS in affects(key):
            raise InputError(
                f"{text} must be left out: {key} would change the configurations that the sweep "
                "compared. To try other values, add them to the sweep."
            )
    return by_key(text.lstrip("+") for text in overrides)


def by_key(overrides: Any) -> dict[str, str]:
    """Return overrides by what is left of the =, the last one of each."""
    return {text.partition("=")[0]: text for text in overrides}


def _comparison_of(folder: Path) -> Comparison:
    """The only comparison of the sweep's jobs; InputError if there is none, or several."""
    if (parent := confirmed_sweep(folder)) is not None:
        raise InputError(
            f"{folder} is itself a confirmation. To continue it: tvf confirm "
            f"{shlex.quote(str(parent))}"
        )
    rows = read_sweep(folder)
    if not any(row["state"] == "done" and row["config"].get("data") for row in rows):
        raise InputError(
            f"{folder} has no finished job, so there is nothing to confirm. To finish the sweep: "
            f"tvf resume {shlex.quote(str(folder))}"
        )
    comparisons = compare(rows)
    if len(comparisons) != 1:
        titles = "; ".join(comparison.title for comparison in comparisons)
        raise InputError(
            f"{folder}: its jobs are compared separately ({titles}), so it has no single choice. "
            "Run a separate sweep for each of these settings, then confirm that."
        )
    return comparisons[0]


def _overrides_of(group: Configuration, comparison: Comparison) -> dict[str, str]:
    """The overrides of a configuration's jobs by key, without what differs between them."""
    job = group.done[0]
    following = keys_of_seeds(job, comparison.following)
    texts = by_key(job["overrides"])
    left_out = (*VARIED, "stop_after")
    kept = {key: text for key, text in texts.items() if key.lstrip("+") not in left_out}
    return kept | {key: f"{key}=${{seed}}" for key in kept if key.lstrip("+") in following}


def _checked_config(
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


def _hydra_settings(folder: Path, arguments: Sequence[str], keys: set[str]) -> dict[str, str]:
    """Hydra's own settings of the sweep's command by key, except for which jobs it runs.

    `keys` are those of the jobs' overrides; where the command gives others, an option file lists
    swept values too, which must not multiply the jobs of the confirmation.
    """
    given = by_key(arguments)
    settings = {
        key: text
        for key, text in given.items()
        if key.startswith("hydra") and not key.startswith(DECIDED_HERE)
    }
    if is_halving(folder):
        settings["hydra/sweeper"] = "hydra/sweeper=grid"
    if not keys <= given.keys():
        settings["hydra.sweeper.params"] = "hydra.sweeper.params=null"
    return settings


def _replace(texts: dict[str, str], added: dict[str, str]) -> dict[str, str]:
    """Replace overrides by added ones; tracker=none replaces those of tracker.* as well."""
    groups = tuple(f"{key.replace('/', '.')}." for key in added)
    kept = {key: text for key, text in texts.items() if not key.lstrip("+").startswith(groups)}
    return kept | added


def _as_grid(trained: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Write the configurations as one grid if a single override differs, so that they share cores.

    Otherwise each is a grid of its own.
    """
    keys = dict.fromkeys(key for texts in trained for key in texts)
    differing = [key for key in keys if len({texts.get(key) for texts in trained}) > 1]
    if len(differing) != 1 or not all(differing[0] in texts for texts in trained):
        return list(trained)
    (key,) = differing
    values = [texts[key].partition("=")[2] for texts in trained]
    return [trained[0] | {key: f"{key}={','.join(values)}"}]


def _describe(
    folder: Path,
    comparison: Comparison,
    candidates: Sequence[Configuration],
    repetitions: Repetitions,
) -> str:
    """What will be trained, how often, and about how long that takes."""
    number = len(candidates) * repetitions.number
    varied = " ".join(repetitions.overrides.values())
    chosen, *others = map(str, candidates)
    nested = folder / CONFIRMATION
    rows = read_sweep(nested) if nested.is_dir() else []
    left = []
    for group in candidates:
        again = jobs_again(group, rows, comparison.following)
        done = [row for row in again if row["state"] == "done"]
        left.append(repetitions.number - sum(repetitions.includes(training_of(r)) for r in done))
    lines = [
        f"{folder} {_has_chosen(comparison)} {chosen}.",
        f"To train {' and '.join(['it', *others])} again: {number} jobs ({varied})"
        f"{_describe_left(number, sum(left))}{_describe_time(candidates, left)}.",
    ]
    if repetitions.note:
        lines.append(repetitions.note)
    jobs = [job for group in comparison.configurations for job in group.jobs]
    if unfinished := sum(job["state"] != "done" for job in jobs if not job["dropped"]):
        lines.append(
            f"note: {unfinished} of the sweep's {len(jobs)} jobs did not finish, which may change "
            "its choice."
        )
    return "\n".join(lines)


def _has_chosen(comparison: Comparison) -> str:
    decision = comparison.choice.decision
    return "chose" if decision is None or decision.decided else "has not decided; best so far is"


def _describe_left(number: int, left: int) -> str:
    if left == number:
        return ""
    done = number - left
    return f", of which {done if left else 'all'} {'is' if done == 1 and left else 'are'} done"


def _describe_time(candidates: Sequence[Configuration], left: Sequence[int]) -> str:
    """The duration of the jobs left of each, by the seconds of the sweep's jobs; empty if unknown.

    Empty as well if none are left.
    """
    seconds = [group.seconds for group in candidates if group.seconds is not None]
    if len(seconds) < len(candidates) or not any(left):
        return ""
    total = max(sum(each * jobs for each, jobs in zip(seconds, left, strict=True)), 1.0)
    text = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min"
    text = text if total < 7200 else f"{total / 3600:.1f} h"
    return f", about {text} of training by the seconds per job of the sweep"
