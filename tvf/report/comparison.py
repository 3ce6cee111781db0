"""From the jobs of one or more sweeps to a comparison: configurations over seeds, their differences, a recommendation.

Rows are those of `read_jobs`. Everything is chosen by validation scores; test scores are carried along for what
validation chose.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, median
from typing import Any

from tvf.config import WITHOUT_EFFECT, flatten, result_config
from tvf.metrics import METRICS, WORDS
from tvf.records import Row, varied_overrides
from tvf.report.recommend import Configuration, Recommendation, recommend
from tvf.report.statistics import Difference, estimate, holm, paired_difference, pareto_front

ALL_PAIRS = (
    8  # so many configurations are compared each with each; more of them each with the best alone
)
# What of data two jobs may differ in, and yet be validated on the same images.
SAME_IMAGES = ("batch_size", "class_weights", "download", "image_size", "max_megapixels", "metric")
FRACTION = "model.pct_unfreeze"
MODELS = (FRACTION, "model._target_", "model.unit")
DIRECTIONS = ("model.direction", "model.train")
FOLLOWS = "${seed}"
VIEWS = ("the augmented views of them", "augment.seed")


@dataclass(frozen=True)
class Comparison:
    """Configurations that are validated on the same images by the same metric; `title` tells it from others.

    `pairs` says which of them have differences. `following` are the keys of the config whose value is the seed in every
    job; `keys` are all.
    """

    title: str
    metric: str
    configurations: list[Configuration]
    differences: list[Difference]
    pairs: str
    front: list[str]
    choice: Recommendation
    notes: list[str]
    following: frozenset[str]
    keys: frozenset[str]

    @property
    def score_key(self) -> str:
        """What records call the score: val_acc."""
        return f"val_{METRICS[self.metric]}"

    @property
    def word(self) -> str:
        """What people call it."""
        return WORDS[self.metric]


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """One comparison for each kind of data and metric among the jobs. A job without a config is in none."""
    known = [row for row in rows if isinstance(row["config"].get("data"), dict)]
    configs = without_seeds([row["config"] for row in known])
    groups: dict[str, list[tuple[Row, dict[str, Any]]]] = {}
    for row, config in zip(known, configs, strict=True):
        groups.setdefault(repr(judged_by(row["metric"], config)), []).append((row, config))
    titles = _titles([judged_by(group[0][0]["metric"], group[0][1]) for group in groups.values()])
    return [
        _compare(title, group)
        for title, group in sorted(zip(titles, groups.values(), strict=True), key=_title)
    ]


def about_seeds(comparison: Comparison) -> str:
    """What the intervals are about: what differs between seeds, and what does not."""
    varied, shared = ["the new head's first weights", "the order of the images", "dropout"], []
    for what, key in (
        ("the images' division into training, validation and test", "data.split_seed"),
        VIEWS,
    ):
        if key not in comparison.keys:  # augment=none has no views
            continue
        (varied if key in comparison.following else shared).append(f"{what} ({key})")
    text = f"A seed decides {_and(varied)}."
    if shared:
        text += f" All seeds share {_and(shared)}."
    if VIEWS[1] in comparison.keys - comparison.following:
        text += " augment.seed=${seed} would vary the views too."
    matrices = (
        row["summary"].get("val_confusion")
        for each in comparison.configurations
        for row in each.done
    )
    images = next((sum(map(sum, matrix)) for matrix in matrices if matrix), 0)
    if not images or "data.split_seed" in comparison.following:
        return text
    told = f"How scores would differ on other images than these {images} is not in the intervals"
    if comparison.metric == "accuracy":
        share = fmean(each.val.mean for each in comparison.configurations if each.val)
        told += f" (about ±{math.sqrt(share * (1 - share) / images):.3f}: one standard error of such a share of {images})"
    return f"{text} {told}."


def about_halving(configurations: Sequence[Configuration]) -> str | None:
    """What the statistics are not, where successive halving has dropped some of the configurations."""
    dropped = [each for each in configurations if each.dropped]
    if not dropped:
        return None
    after = sorted({row["dropped"] for each in dropped for row in each.jobs if row["dropped"]})
    epochs = max(row["epochs"] or 0 for each in dropped for row in each.jobs)
    told = f"after {after[0]}{f' to {after[-1]}' if len(after) > 1 else ''} of {epochs} epochs"
    return (
        f"Successive halving: {len(dropped)} of {len(configurations)} configurations were dropped {told}, by their "
        "validation scores then. Intervals, differences and the recommendation are of those that stayed because they "
        "led: they are not those of a full sweep, in which a slow starter might have won."
    )


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def without_seeds(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each config by dotted keys, but for its seed and name; what follows the seed has FOLLOWS for its value.

    A key follows the seed in a job (augment.seed=${seed}) if it equals it there, and in more jobs that differ in
    nothing else than there are such jobs with this very value.
    """
    flat = [flatten(result_config(each)) for each in configs]
    plain = [
        {key: value for key, value in each.items() if key not in ("seed", "name")} for each in flat
    ]
    result = [dict(each) for each in plain]
    for key in {key for each in plain for key in each if key.endswith("seed")}:
        alike: dict[str, list[int]] = {}
        for index, each in enumerate(plain):
            if key in each:
                rest = sorted(
                    (k, repr(v)) for k, v in each.items() if k != key and not k.endswith("seed")
                )
                alike.setdefault(repr(rest), []).append(index)
        for indices in alike.values():
            equal = [index for index in indices if plain[index][key] == flat[index].get("seed")]
            following = len({flat[index].get("seed") for index in equal})
            for index in equal:
                same = {
                    flat[other].get("seed")
                    for other in indices
                    if plain[other][key] == plain[index][key]
                }
                if following > 1 and following >= len(same):
                    result[index][key] = FOLLOWS
    return result


def judged_by(metric: str, config: dict[str, Any]) -> dict[str, Any]:
    """What the scores of two jobs must have in common to be compared; `config` is by dotted keys."""
    ignored = {f"data.{key}" for key in SAME_IMAGES}
    data = {
        key: value
        for key, value in config.items()
        if key.startswith("data.") and key not in ignored
    }
    return {"data.metric": metric} | data


def _title(titled: tuple[str, Any]) -> str:
    return titled[0]


def _titles(kinds: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(
        key for kind in kinds for key in kind if any(k.get(key) != kind[key] for k in kinds)
    )
    return [", ".join(f"{key}={kind[key]}" for key in keys if key in kind) for kind in kinds]


def _compare(title: str, rows: Sequence[tuple[Row, dict[str, Any]]]) -> Comparison:
    metric, notes = rows[0][0]["metric"], []
    groups: dict[str, list[Row]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for row, config in rows:
        key = repr(sorted((k, repr(v)) for k, v in config.items()))
        groups.setdefault(key, []).append(row)
        configs[key] = config
    labels = _labels(list(groups.values()), list(configs.values()))
    made = [
        _configuration(label, group, metric, notes)
        for label, group in zip(labels, groups.values(), strict=True)
    ]
    made.sort(key=lambda each: (each.fraction, each.label))
    differences, pairs = _differences(made)
    costs = {c.label: (c.seconds, c.val.mean) for c in made if c.val and c.seconds is not None}
    if note := about_halving(made):
        notes.append(note)
    for state in ("failed", "interrupted", "running", "waiting", "paused"):
        if count := sum(row["state"] == state for row, _ in rows):
            notes.append(f"{state}: {count} of {len(rows)} jobs.")
    if rows[0][1].get("data.validate_on") == "test":
        notes.append(
            "Validation images are the test images (data.validate_on=test): scores are what was chosen by."
        )
    if note := _majority(made, metric):
        notes.append(note)
    if all(", " not in label for label in labels) and (more := _differing(list(configs.values()))):
        notes.append(f"Configurations differ in more than the fraction: {', '.join(more)}.")
    following = [
        frozenset(key for key, value in config.items() if value == FOLLOWS)
        for config in configs.values()
    ]
    keys = frozenset.intersection(*following), frozenset(configs[next(iter(configs))])
    choice = recommend(made, differences, metric)
    return Comparison(
        title, metric, made, differences, pairs, pareto_front(costs), choice, notes, *keys
    )


def _majority(made: Sequence[Configuration], metric: str) -> str | None:
    """A word if the best accuracy may be no better than that of calling every image by the most frequent class."""
    best = max(
        (each for each in made if each.val),
        key=lambda each: each.val.mean if each.val else 0.0,
        default=None,
    )
    summary = best.done[0]["summary"] if best else {}
    if best is None or best.val is None or metric != "accuracy" or not summary.get("val_confusion"):
        return None
    sizes = list(map(sum, summary["val_confusion"]))
    share, lowest = (
        max(sizes) / max(sum(sizes), 1),
        best.val.mean if best.val.low is None else best.val.low,
    )
    if lowest > share:
        return None
    classes = summary.get("classes") or list(map(str, range(len(sizes))))
    told = f"Calling every image {classes[sizes.index(max(sizes))]} has a validation accuracy of {share:.3f}"
    return f"{told}, and even the best may be no better: data.metric=macro_f1 counts every class alike."


def _labels(groups: list[list[Row]], configs: list[dict[str, Any]]) -> list[str]:
    """The fraction, and what else tells the configurations apart: their overrides, or whatever differs."""
    first = [group[0] for group in groups]
    fractions = [f"{row['pct_unfreeze'] or 0:g}" for row in first]
    directions = {repr([config.get(key) for key in DIRECTIONS]) for config in configs}
    if len({*fractions}) == len(fractions) and len(directions) == 1:
        return fractions
    seeds = [key for config in configs for key, value in config.items() if value == FOLLOWS]
    labels = []
    for fraction, overrides in zip(
        fractions, varied_overrides(first, (FRACTION, "seed", *seeds)), strict=True
    ):
        counting = [
            each
            for each in overrides
            if each.partition("=")[0].partition(".")[0] not in WITHOUT_EFFECT
        ]
        labels.append(", ".join([fraction, *sorted(counting)]))
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [index for index, each in enumerate(labels) if each == label]
        differing = _differing([configs[index] for index in alike])
        for index in alike:
            labels[index] = ", ".join(
                [label, *(f"{key}={configs[index].get(key)}" for key in differing)]
            )
    return labels


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that have several values, but for what makes one model transfer and another fine-tuning."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in MODELS)
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def _configuration(label: str, rows: list[Row], metric: str, notes: list[str]) -> Configuration:
    key, done = METRICS[metric], {}
    for row in rows:
        if row["state"] != "done":
            continue
        if row[f"val_{key}"] is None or row["val_loss"] is None:
            notes.append(f"{row['name']} is done without finite scores: it does not count.")
        elif row["seed"] in done:
            notes.append(
                f"{row['name']} is there twice ({done[row['seed']]['sweep']}, {row['sweep']}): the first counts."
            )
        else:
            done[row["seed"]] = row
    jobs = list(done.values())
    tests = [job[f"test_{key}"] for job in jobs if job[f"test_{key}"] is not None]
    seconds = [each for each in map(own_seconds, jobs) if each is not None]
    return Configuration(
        label=label,
        fraction=rows[0]["pct_unfreeze"] or 0,
        jobs=rows,
        done=jobs,
        scores={job["seed"]: job[f"val_{key}"] for job in jobs},
        val=estimate([job[f"val_{key}"] for job in jobs], 0, 1) if jobs else None,
        test=estimate(tests, 0, 1) if tests else None,
        seconds=median(seconds) if seconds else None,
        seconds_range=(min(seconds), max(seconds)) if seconds else None,
    )


def own_seconds(job: Row) -> float | None:
    """Seconds of training, but for those in frozen layers that the store keeps for other jobs too."""
    total, prefix = job["train_seconds"], job["prefix_seconds"] or 0.0
    if total is None:
        return None
    return max(total - prefix, 0.0) if job["summary"].get("prefix_kept") else total


def _differences(made: list[Configuration]) -> tuple[list[Difference], str]:
    """Each configuration with each, or if they are many each with the best, corrected for all pairs; and which it is.

    The best is chosen by the same scores: corrected for its own pairs alone, chance would be found too often.
    """
    scored = {each.label: each.scores for each in made if len(each.scores) > 1}
    found = [each for b, a in combinations(scored, 2) if (each := paired_difference(a, b, scored))]
    tested = [each for each in found if each.p is not None]
    corrected = dict(zip(map(id, tested), holm([each.p or 0.0 for each in tested]), strict=True))
    found = [replace(each, p_holm=corrected.get(id(each))) for each in found]
    pairs = f"p (Holm) is corrected for {'all ' if len(tested) > 1 else ''}{len(tested)} pair{'s'[: len(tested) - 1]}"
    if len(scored) <= ALL_PAIRS:
        return found, f"Each configuration with each; {pairs}"
    best = max(scored, key=lambda label: fmean(scored[label].values()))
    return [
        each for each in found if best in (each.a, each.b)
    ], f"Each configuration with the best; {pairs}"
