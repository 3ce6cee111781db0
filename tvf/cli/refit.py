"""Plans `tvf refit`: a sweep's choice trained once more, on train + validation, as one job.

No image is left to end its phases, so they get the median lengths of those of the sweep's jobs, up
to their best epochs, on the same schedules. Nor is one left to score or to calibrate it, so what
the sweep knows about the configuration is written into the job's record, and said to be that.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_high, median_low
from typing import TYPE_CHECKING, Any

from tvf.cli.chosen import (
    checked_config,
    comparison_of,
    decision_words,
    note_unfinished,
    overrides_of,
    parse_overrides,
    replace_overrides,
)
from tvf.cli.launch import compose, config_dir_among, make_importable
from tvf.config import build_phases, path_override
from tvf.errors import InputError
from tvf.files import read_json, write_json
from tvf.metrics import METRICS, WORDS
from tvf.records import Row, read_config, read_status, sweep_name
from tvf.report import Comparison, Configuration, calibration_of, training_of, write_card

if TYPE_CHECKING:
    from tvf.training import Phase

REFIT = "refit"  # in a sweep's folder: the folder of the jobs


@dataclass(frozen=True)
class RefitPlan:
    """What `tvf refit` trains: the arguments of a job, its folder, and the plan in words.

    `facts` and `temperature` are what the sweep knows about the configuration.
    """

    arguments: list[str]
    folder: Path
    text: str
    facts: dict[str, Any]
    temperature: float | None


def plan_refit(sweep: Path, arguments: Sequence[str], overrides: Sequence[str] = ()) -> RefitPlan:
    """Plan to train what the sweep in `sweep`, of `tvf train` with `arguments`, has chosen.

    Assumes that the working directory is that of the sweep's command. Raises InputError if the
    sweep has chosen nothing, if that needs validation scores, if `overrides` would change it, or if
    the folder holds another model.
    """
    from tvf.config import validate_config

    added = parse_overrides(overrides, "tvf refit", ["seed"], "to those of one of the sweep's jobs")
    comparison = comparison_of(sweep, "refit")
    configuration = comparison.choice.chosen or comparison.choice.best
    jobs = [job for job in configuration.done if job["best_epoch"]] if configuration else []
    if configuration is None or not jobs:
        raise InputError(f"{sweep} has not chosen a configuration. {comparison.choice.text}")
    first = min(jobs, key=lambda job: tuple(value or 0 for value in training_of(job)))
    config_dir = config_dir_among(arguments)
    make_importable(config_dir)
    searched = [text for text in arguments if text.startswith("hydra.searchpath")]
    texts = overrides_of(configuration, comparison)
    config = checked_config(configuration, comparison, [*texts.values(), *searched], config_dir)
    seed = added.pop("seed", f"seed={first['seed']}")
    folder = sweep / REFIT / seed.replace("=", "")
    phases = build_phases(config, len(first["unfrozen_groups"] or ()))
    lengths = _phase_lengths(phases, jobs, METRICS[comparison.metric])
    _check_folder(folder, lengths)
    texts |= _division(first, texts, comparison) | {"seed": seed}
    texts["refit_epochs"] = f"refit_epochs=[{','.join(map(str, lengths))}]"
    composed = [*replace_overrides(texts, added).values(), *searched]
    validate_config(compose(composed, config_dir))
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    temperatures = [found["temperature"] for job in jobs if (found := calibration_of(job))]
    return RefitPlan(
        arguments=[*flags, *composed, path_override("hydra.run.dir", folder)],
        folder=folder,
        text=_describe(sweep, comparison, configuration, first, lengths, len(phases)),
        facts=_facts(sweep, comparison, configuration, jobs),
        temperature=median(temperatures) if temperatures else None,
    )


def finish_refit(plan: RefitPlan) -> str:
    """Add what the sweep knows to the record of the job; return it in words.

    Raises InputError unless the job is done.
    """
    if read_status(plan.folder).get("state") != "done":
        raise InputError(f"the job in {plan.folder} is not done: run tvf refit again.")
    path = plan.folder / "summary.json"
    calibration = {} if plan.temperature is None else {"temperature": plan.temperature}
    write_json(path, read_json(path) | {"refit": plan.facts, "calibration": calibration})
    write_card(plan.folder)
    return (
        f"{plan.folder} has no score of its own: it was trained on its validation images. What to "
        f"expect is the sweep's estimate for {plan.facts['configuration']}: "
        f"{plan.facts['estimate']}.\n"
        f"To use it: tvf predict {shlex.quote(str(plan.folder))} IMAGE..."
    )


def _phase_lengths(phases: "Sequence[Phase]", jobs: Sequence[Row], key: str) -> list[int]:
    """The epochs of each phase up to the one in which the jobs have their best epochs.

    If they differ in that, it is the later one, in which more of the fraction trains. A phase that
    could end early handed on its best weights, so it counts up to its best epoch.
    """
    last = median_high(int(job["summary"].get("best_phase") or 1) for job in jobs)
    lengths = []
    for number, phase in enumerate(phases[:last], 1):
        if number < last and phase.stopping.patience is None:
            lengths.append(phase.epochs)
            continue
        bests = [_best_in_phase(job, number, f"val_{key}") for job in jobs]
        lengths.append(median_low([best for best in bests if best] or [phase.epochs]))
    return lengths


def _best_in_phase(job: Row, number: int, key: str) -> int | None:
    """The best epoch of a phase, counted within it; None if the job has none there."""
    rows = [row for row in job["history"] if row.get("phase", 1) == number]
    ranks = [(row.get(key) or 0.0, -(row.get("val_loss") or 0.0)) for row in rows]
    return ranks.index(max(ranks)) + 1 if ranks else None


def _check_folder(folder: Path, lengths: list[int]) -> None:
    before = read_config(folder).get("refit_epochs")
    if before is not None and before != lengths:
        raise InputError(
            f"{folder} holds a model of {before} epochs, but by the sweep's jobs it is {lengths} "
            "now. Delete the folder to train it again, or choose another seed: seed=2."
        )


def _division(first: Row, texts: dict[str, str], comparison: Comparison) -> dict[str, str]:
    """Overrides for the division of the first job, where the sweep's command says it."""
    given = {text.partition("=")[0].lstrip("+") for text in first["overrides"]}
    data = first["config"]["data"]
    return {
        f"data.{name}": f"data.{name}={data[name]}"
        for name in ("split_seed", "outer_fold")
        if f"data.{name}" in given | comparison.following and name in data
    }


def _facts(
    sweep: Path, comparison: Comparison, configuration: Configuration, jobs: Sequence[Row]
) -> dict[str, Any]:
    scores = {"validation": configuration.val, "test": configuration.test}
    word = WORDS[comparison.metric]
    estimate = "; ".join(f"{name} {word} {score}" for name, score in scores.items() if score)
    confirmed = comparison.confirmation
    return {
        "sweep": sweep_name(sweep),
        "configuration": str(configuration),
        "best_epochs": [int(job["best_epoch"]) for job in jobs],
        "estimate": f"{estimate}. The validation images chose it, so their score is a little too "
        f"high{f'. {confirmed.text}' if confirmed else ''}".removesuffix("."),
        "scores": {name: score.mean for name, score in scores.items() if score},
    }


def _describe(
    sweep: Path,
    comparison: Comparison,
    configuration: Configuration,
    first: Row,
    lengths: list[int],
    phases: int,
) -> str:
    """What will be trained, on how many images, for how long."""
    images = first["summary"].get("images") or {}
    number = images.get("train", 0) + images.get("val", 0)
    on = f"all {number:,} images of " if number else ""
    epochs = ", ".join(str(job["best_epoch"]) for job in configuration.done)
    part = f" in the first {len(lengths)} of {phases} phases" if len(lengths) < phases else ""
    lines = [
        f"{sweep} {decision_words(comparison)} {configuration}.",
        f"To train it once more on {on}train + validation: {' + '.join(map(str, lengths))} of "
        f"{first['config']['epochs']} epochs{part} (best epochs of its jobs: {epochs}).",
    ]
    tests = {(t.split_seed, t.outer_fold) for t in map(training_of, configuration.done)}
    if len(tests) > 1:
        lines.append(
            "The sweep's divisions have different test images. Those of the first one "
            f"({first['name']}) are left out."
        )
    return "\n".join([*lines, *note_unfinished(comparison)])
