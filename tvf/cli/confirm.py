"""Plans `tvf confirm`: which configurations of a sweep to train again, and on which divisions.

The commands are plain `tvf train -m` into SWEEP/confirm, so `tvf resume` can finish that sweep too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvf.cli.chosen import (
    DECIDED_HERE,
    by_key,
    checked_config,
    comparison_of,
    decision_words,
    note_unfinished,
    overrides_of,
    parse_overrides,
    replace_overrides,
)
from tvf.cli.launch import config_dir_among, make_importable
from tvf.errors import InputError
from tvf.records import CONFIRMATION, is_halving, read_race, read_sweep, read_trials
from tvf.report import Comparison, Configuration, jobs_again, to_confirm, training_of
from tvf.sweep import Repetitions, choose_repetitions


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
    added = parse_overrides(
        overrides, "tvf confirm", ["data.folds"], "to values that the sweep has not used"
    )
    comparison = comparison_of(folder, "confirm")
    if each_fraction and comparison.choice.settled is not None:
        raise InputError(
            f"--each-fraction must have all configurations trained on the same divisions, and "
            f"{folder} is a race. Leave it out, or train the rest first: the sweep's command "
            "without hydra/sweeper=race, in this folder."
        )
    candidates = to_confirm(comparison.evidence, comparison.choice, each_fraction)
    if not candidates:
        raise InputError(
            f"{folder} has not chosen a configuration, so there is nothing to confirm. "
            f"{comparison.choice.text}"
        )
    config_dir = config_dir_among(arguments)
    make_importable(config_dir)
    trained = [overrides_of(group, comparison) for group in candidates]
    hydra = _hydra_settings(folder, arguments, {key for texts in trained for key in texts})
    composing = [text for text in hydra.values() if text.startswith("hydra.searchpath")]
    configs = [
        checked_config(group, comparison, [*texts.values(), *composing], config_dir)
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
        [*flags, *replace_overrides(texts | repetitions.overrides | hydra, added).values()]
        for texts in _as_grid(trained)
    ]
    return Plan(commands, _describe(folder, comparison, candidates, repetitions))


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
    if is_halving(folder) or read_race(folder) or read_trials(folder):
        settings["hydra/sweeper"] = "hydra/sweeper=grid"
    if not keys <= given.keys():
        settings["hydra.sweeper.params"] = "hydra.sweeper.params=null"
    return settings


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
        f"{folder} {decision_words(comparison)} {chosen}.",
        f"To train {' and '.join(['it', *others])} again: {number} jobs ({varied})"
        f"{_describe_left(number, sum(left))}{_describe_time(candidates, left)}.",
    ]
    if repetitions.note:
        lines.append(repetitions.note)
    return "\n".join([*lines, *note_unfinished(comparison)])


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
