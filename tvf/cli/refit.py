"""Plans `tvf refit`: a sweep's choice trained once more, on train + validation, as one job.

No image is left to choose its epoch: it is the median of the best epochs of the sweep's jobs, on
the same schedule. Nor is one left to score or to calibrate it, so what the sweep knows about the
configuration is written into the job's record, and said to be that.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_low
from typing import Any

from tvf.cli.chosen import (
    VARIED,
    by_key,
    checked_config,
    comparison_of,
    has_chosen,
    overrides_of,
    parse_overrides,
)
from tvf.cli.launch import config_dir_among, make_importable, path_override
from tvf.errors import InputError
from tvf.files import read_json, write_json
from tvf.metrics import WORDS
from tvf.records import Row, sweep_name
from tvf.report import Comparison, Configuration, calibration_of, training_of, write_card

REFIT = "refit"  # in a sweep's folder: the folder of the jobs


@dataclass(frozen=True)
class RefitPlan:
    """What `tvf refit` trains: the arguments of a job, its folder, and the plan in words.

    `facts` are what the sweep knows about the configuration, for the job's summary.
    """

    arguments: list[str]
    folder: Path
    text: str
    facts: dict[str, Any]
    temperature: float | None


def plan_refit(sweep: Path, arguments: Sequence[str], overrides: Sequence[str] = ()) -> RefitPlan:
    """Plan to train what the sweep in `sweep`, of `tvf train` with `arguments`, has chosen.

    Assumes that the working directory is that of the sweep's command. Raises InputError if the
    sweep has chosen nothing, or if `overrides` would change what it chose.
    """
    added = parse_overrides(overrides, "tvf refit", ["seed"], "to those of one of the sweep's jobs")
    comparison = comparison_of(sweep, "refit")
    configuration = comparison.choice.chosen or comparison.choice.best
    if configuration is None:
        raise InputError(f"{sweep} has not chosen a configuration. {comparison.choice.text}")
    jobs = configuration.done
    first = min(jobs, key=lambda job: tuple(value or 0 for value in training_of(job)))
    config_dir = config_dir_among(arguments)
    make_importable(config_dir)
    texts = overrides_of(configuration, comparison)
    searched = [text for text in arguments if text.startswith("hydra.searchpath")]
    config = checked_config(configuration, comparison, [*texts.values(), *searched], config_dir)
    division = {key: text for key, text in by_key(first["overrides"]).items() if key in VARIED[1:3]}
    seed = added.pop("seed", f"seed={first['seed']}")
    epochs = [int(job["best_epoch"]) for job in jobs]
    texts |= division | {"seed": seed} | _without_scores(config, jobs)
    texts |= {"refit_epoch": f"refit_epoch={median_low(epochs)}"} | added
    folder = sweep / REFIT / seed.replace("=", "")
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    temperatures = [found["temperature"] for job in jobs if (found := calibration_of(job))]
    return RefitPlan(
        arguments=[*flags, *texts.values(), *searched, path_override("hydra.run.dir", folder)],
        folder=folder,
        text=_describe(sweep, comparison, configuration, first, epochs),
        facts=_facts(sweep, comparison, configuration, epochs),
        temperature=median(temperatures) if temperatures else None,
    )


def finish_refit(plan: RefitPlan) -> str:
    """Add what the sweep knows to the record of the finished job; return it in words."""
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


def _without_scores(config: dict[str, Any], jobs: Sequence[Row]) -> dict[str, str]:
    """Overrides that end phases where they ended in the sweep, since no score can end them."""
    texts = {}
    if config["early_stopping"].get("patience") is not None:
        texts["early_stopping.patience"] = "early_stopping.patience=null"
    recipe = config["recipe"]
    if str(recipe["_target_"]).endswith("LpFt") and recipe.get("head_epochs") is None:
        lengths = [sum(row.get("phase", 1) == 1 for row in job["history"]) for job in jobs]
        texts["recipe.head_epochs"] = f"recipe.head_epochs={max(median_low(lengths), 1)}"
    return texts


def _facts(
    sweep: Path, comparison: Comparison, configuration: Configuration, epochs: list[int]
) -> dict[str, Any]:
    scores = {"validation": configuration.val, "test": configuration.test}
    word = WORDS[comparison.metric]
    return {
        "sweep": sweep_name(sweep),
        "configuration": str(configuration),
        "best_epochs": epochs,
        "estimate": "; ".join(f"{name} {word} {s}" for name, s in scores.items() if s),
        "scores": {name: score.mean for name, score in scores.items() if score},
    }


def _describe(
    sweep: Path,
    comparison: Comparison,
    configuration: Configuration,
    first: Row,
    epochs: list[int],
) -> str:
    """What will be trained, on how many images, for how long."""
    images = first["summary"].get("images") or {}
    number = images.get("train", 0) + images.get("val", 0)
    on = f"all {number:,} images of " if number else ""
    several = len(epochs) > 1
    which = f"the median of {', '.join(map(str, sorted(epochs)))}" if several else "its best"
    lines = [
        f"{sweep} {has_chosen(comparison)} {configuration}.",
        f"To train it once more on {on}train + validation, up to epoch {median_low(epochs)} "
        f"({which}) of {first['config']['epochs']}.",
    ]
    tests = {(t.split_seed, t.outer_fold) for t in map(training_of, configuration.done)}
    if len(tests) > 1:
        lines.append(
            "The sweep's divisions have different test images. Those of the first one "
            f"({first['name']}) are left out."
        )
    return "\n".join(lines)
