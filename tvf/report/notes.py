"""Warnings shown with a recommendation: limits of the evidence, and misleading numbers."""

from collections.abc import Sequence

from tvf.records import Row, is_stopped_by_race
from tvf.report.configuration import Configuration
from tvf.report.labels import differing_keys
from tvf.report.raced import about_race, race_of
from tvf.report.searched import about_pruning, dropped_after
from tvf.report.seeds import FlatConfig
from tvf.report.validated import read_job
from tvf.report.words import enumerate_words

IMBALANCED = 1.2  # times its equal share: the size of a class from which accuracy misleads
UNFINISHED = ("failed", "interrupted", "running", "waiting", "paused", "pruned")


def collect_notes(
    configurations: Sequence[Configuration], configs: Sequence[FlatConfig], metric: str
) -> list[str]:
    """All warnings about a comparison; `configs` belong to `configurations`, without seeds."""
    notes = [
        about_halving(configurations),
        about_pruning(configurations),
        about_race(configurations),
        *count_unfinished([job for group in configurations for job in group.jobs]),
        _about_validation_images(configs),
        _about_majority_class(configurations, metric),
        _about_predictions(configurations),
        _about_transfer(configurations),
        _about_other_differences(configurations, configs),
    ]
    return [note for note in notes if note]


def about_trials(configurations: Sequence[Configuration]) -> list[str]:
    """Name the best of each fraction, if fractions were trained in several ways."""
    best: dict[float, Configuration] = {}
    trials: dict[float, set[str]] = {}
    for group in configurations:
        if group.val is None:
            continue
        # The backbone's rate changes nothing at fraction 0: equal scores are the same training.
        trial = group.label if group.fraction else repr(sorted(group.scores.values()))
        trials.setdefault(group.fraction, set()).add(trial)
        leader = best.get(group.fraction)
        if leader is None or leader.val is None or group.val.mean > leader.val.mean:
            best[group.fraction] = group
    if len(best) < 2 or max(map(len, trials.values())) < 2 or race_of(configurations):
        return []  # the means of a race are over different trainings
    named = [
        f"{group.val.mean:.3f} of {group} (best of {len(trials[fraction])})"
        for fraction, group in sorted(best.items())
        if group.val
    ]
    return [f"Each fraction at its best: {'; '.join(named)}. The best of several flatters."]


def about_halving(configurations: Sequence[Configuration]) -> str | None:
    """How successive halving limits the statistics; None if it has dropped no configuration."""
    dropped = [group for group in configurations if group.dropped and not group.pruned]
    if not dropped:
        return None
    return (
        f"Successive halving: {len(dropped)} of {len(configurations)} configurations were dropped "
        f"{dropped_after(dropped)}. Intervals, differences and the recommendation cover only the "
        "configurations that were kept because they led. In a full sweep they may differ: a slow "
        "starter might have won."
    )


def count_unfinished(jobs: Sequence[Row], states: Sequence[str] = UNFINISHED) -> list[str]:
    """How many jobs are in these states, without those that a race needs no more: see `raced`."""
    left = [job["state"] for job in jobs if not is_stopped_by_race(job)]
    counts = {state: left.count(state) for state in states}
    return [f"{state}: {count} of {len(jobs)} jobs." for state, count in counts.items() if count]


def _about_validation_images(configs: Sequence[FlatConfig]) -> str | None:
    if configs[0].get("data.validate_on") != "test":
        return None
    return (
        "The validation images are the test images (data.validate_on=test): the scores shown were "
        "also used for every choice."
    )


def _about_majority_class(configurations: Sequence[Configuration], metric: str) -> str | None:
    """Warn if the best accuracy may be no better than always predicting the most frequent class."""
    scored = [(group, group.val) for group in configurations if group.val]
    if not scored or metric != "accuracy":
        return None
    best, val = max(scored, key=lambda pair: pair[1].mean)
    summary = best.done[0]["summary"]
    if not summary.get("val_confusion"):
        return None
    class_sizes = [sum(row) for row in summary["val_confusion"]]
    largest = max(class_sizes)
    baseline = largest / max(sum(class_sizes), 1)
    if (val.mean if val.low is None else val.low) > baseline:
        return None
    index = class_sizes.index(largest)
    name = summary["classes"][index] if summary.get("classes") else str(index)
    worse = (val.mean if val.high is None else val.high) < baseline
    remedy = "training longer or at other learning rates may help"
    if largest > IMBALANCED * sum(class_sizes) / len(class_sizes):
        remedy = "data.metric=macro_f1 gives every class equal weight"
    return (
        f"Always predicting {name} has a validation accuracy of {baseline:.3f}, and even the best "
        f"configuration {'is worse' if worse else 'may be no better'}: {remedy}."
    )


def _about_predictions(configurations: Sequence[Configuration]) -> str | None:
    """Name finished jobs without predictions, if others have them."""
    done = [job for group in configurations for job in group.done]
    missing = [job["name"] for job in done if "val" not in read_job(job)]
    if not missing or len(missing) == len(done):
        return None
    return (
        f"{len(missing)} of {len(done)} finished jobs have no readable predictions.npz "
        f"({missing[0]}), so all are compared by their scores alone, which says nothing about "
        "other images."
    )


def _about_transfer(configurations: Sequence[Configuration]) -> str | None:
    """Say if one training stands under several names."""
    models = {job["model"] for group in configurations if not group.fraction for job in group.jobs}
    models -= {"probe"}  # its head reads more
    if len(models) < 2:
        return None
    names = ["model=transfer"] if "transfer" in models else []
    methods = sorted(models - {"transfer"})
    zero = "model.pct_unfreeze=0"
    if methods != ["finetune"]:
        zero += f" of {enumerate_words([f'model={method}' for method in methods])}"
    names.append(zero)
    return (
        f"{enumerate_words(names)} train the same layers in the same way: they count as "
        f"{len(models) if len(models) > 2 else 'two'} configurations here, though they are one."
    )


def _about_other_differences(
    configurations: Sequence[Configuration], configs: Sequence[FlatConfig]
) -> str | None:
    """Name other differences if the labels show only the fraction."""
    keys = differing_keys(configs)
    if not keys or any(", " in group.label for group in configurations):
        return None
    return f"Configurations differ in more than the fraction: {', '.join(keys)}."
