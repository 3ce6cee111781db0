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

from tvf.metrics import METRICS, WORDS
from tvf.sweep.choice import Choice, Configuration, choose
from tvf.sweep.manifest import flatten
from tvf.sweep.records import Row, varied_overrides
from tvf.sweep.statistics import Difference, estimate, holm, paired_difference, pareto_front
from tvf.tracking import WITHOUT_EFFECT, results_follow_from

ALL_PAIRS = 8  # so many configurations are compared each with each; more of them each with the best alone
# What of data two jobs may differ in, and yet be validated on the same images.
SAME_IMAGES = ("batch_size", "download", "image_size", "max_megapixels", "metric")
VIEWS = ("the augmented views of them", "augment.seed")


@dataclass(frozen=True)
class Comparison:
    """Configurations that are validated on the same images by the same metric; `title` tells it from others.

    `following` are the keys of the config whose value is the seed in every job.
    """

    title: str
    metric: str
    configurations: list[Configuration]
    differences: list[Difference]
    front: list[str]
    choice: Choice
    notes: list[str]
    following: frozenset[str]

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
    following = _following(known)
    groups: dict[str, list[Row]] = {}
    for row in known:
        groups.setdefault(repr(_judged_by(row, following)), []).append(row)
    titles = _titles([_judged_by(group[0], following) for group in groups.values()])
    return [_compare(title, group, following) for title, group in zip(titles, groups.values(), strict=True)]


def about_seeds(comparison: Comparison) -> str:
    """What the intervals are about: what differs between seeds, and what does not."""
    varied, shared = ["the new head's first weights", "the order of the images", "dropout"], []
    for what, key in (("the images' division into training, validation and test", "data.split_seed"), VIEWS):
        (varied if key in comparison.following else shared).append(f"{what} ({key})")
    text = f"A seed decides {_and(varied)}."
    if shared:
        text += f" All seeds share {_and(shared)}; {shared[-1].rpartition('(')[2][:-1]}=${{seed}} would vary that too."
    matrices = (row["summary"].get("val_confusion") for each in comparison.configurations for row in each.done)
    images = next((sum(map(sum, matrix)) for matrix in matrices if matrix), 0)
    if not images or "data.split_seed" in comparison.following:
        return text
    told = f"How scores would differ on other images than these {images} is not in the intervals"
    if comparison.metric == "accuracy":
        share = fmean(each.val.mean for each in comparison.configurations if each.val)
        told += (
            f" (about ±{math.sqrt(share * (1 - share) / images):.3f}: one standard error of such a share of {images})"
        )
    return f"{text} {told}."


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _following(rows: Sequence[Row]) -> set[str]:
    """The keys whose value is the job's seed in every job: augment.seed=${seed}."""
    if len({row["seed"] for row in rows}) < 2:
        return set()
    flat = [flatten(row["config"]) for row in rows]
    return {key for key in flat[0] if key != "seed" and all(each.get(key) == each.get("seed") for each in flat)}


def _judged_by(row: Row, following: set[str]) -> dict[str, Any]:
    """What the scores of two jobs must have in common to be compared."""
    data = flatten(row["config"]["data"], "data")
    ignored = {*following, *(f"data.{key}" for key in SAME_IMAGES)}
    return {"data.metric": row["metric"]} | {key: value for key, value in data.items() if key not in ignored}


def _titles(kinds: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for kind in kinds for key in kind if any(k.get(key) != kind[key] for k in kinds))
    return [", ".join(f"{key}={kind[key]}" for key in keys if key in kind) for kind in kinds]


def _compare(title: str, rows: Sequence[Row], following: set[str]) -> Comparison:
    metric, notes = rows[0]["metric"], []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        config = flatten(results_follow_from(row["config"]))
        kept = {key: value for key, value in config.items() if key not in ("seed", "name", *following)}
        groups.setdefault(repr(sorted(kept.items())), []).append(row)
    labels = _labels(list(groups.values()), following)
    made = [_configuration(label, group, metric, notes) for label, group in zip(labels, groups.values(), strict=True)]
    made.sort(key=lambda each: (each.fraction, each.label))
    differences = _differences(made)
    costs = {c.label: (c.seconds, c.val.mean) for c in made if c.val and c.seconds is not None}
    for state in ("failed", "interrupted", "running", "waiting"):
        if count := sum(row["state"] == state for row in rows):
            notes.append(f"{count} of {len(rows)} jobs {'is' if count == 1 else 'are'} {state}.")
    choice = choose(made, differences, metric)
    return Comparison(title, metric, made, differences, pareto_front(costs), choice, notes, frozenset(following))


def _labels(groups: list[list[Row]], following: set[str]) -> list[str]:
    """The fraction, and what else tells the configurations apart: their overrides, or whatever differs."""
    first = [group[0] for group in groups]
    fractions = [f"{row['pct_unfreeze'] or 0:g}" for row in first]
    if len({*fractions}) == len(fractions):
        return fractions
    beside = ("model.pct_unfreeze", "seed", *following)
    labels = []
    for fraction, overrides in zip(fractions, varied_overrides(first, beside), strict=True):
        counting = [each for each in overrides if each.partition("=")[0].partition(".")[0] not in WITHOUT_EFFECT]
        labels.append(", ".join([fraction, *sorted(counting)]))
    flat = [flatten(results_follow_from(row["config"])) for row in first]
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [index for index, each in enumerate(labels) if each == label]
        keys = dict.fromkeys(key for index in alike for key in flat[index] if key not in ("name", *beside))
        differing = [key for key in keys if len({repr(flat[index].get(key)) for index in alike}) > 1]
        for index in alike:
            labels[index] = ", ".join([label, *(f"{key}={flat[index].get(key)}" for key in differing)])
    return labels


def _configuration(label: str, rows: list[Row], metric: str, notes: list[str]) -> Configuration:
    key, done = METRICS[metric], {}
    for row in rows:
        if row["state"] != "done":
            continue
        if row[f"val_{key}"] is None:
            notes.append(f"{row['name']} is done without a finite val_{key}: it does not count.")
        elif row["seed"] in done:
            notes.append(f"{row['name']} is there twice ({done[row['seed']]['sweep']}, {row['sweep']}): one counts.")
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
        val=estimate([job[f"val_{key}"] for job in jobs]) if jobs else None,
        test=estimate(tests) if tests else None,
        seconds=median(seconds) if seconds else None,
    )


def own_seconds(job: Row) -> float | None:
    """Seconds of training, but for those in frozen layers that the store keeps for other jobs too."""
    total, prefix = job["train_seconds"], job["prefix_seconds"] or 0.0
    if total is None:
        return None
    return total if (job["config"].get("store") or {}).get("mode") == "off" else max(total - prefix, 0.0)


def _differences(made: list[Configuration]) -> list[Difference]:
    """Each configuration with each, or if they are many each with the best, corrected for their number."""
    scored = {each.label: each.scores for each in made if len(each.scores) > 1}
    if len(scored) > ALL_PAIRS:
        best = max(scored, key=lambda label: fmean(scored[label].values()))
        pairs = [(best, label) for label in scored if label != best]
    else:
        pairs = [(b, a) for a, b in combinations(scored, 2)]
    found = [each for a, b in pairs if (each := paired_difference(a, b, scored))]
    tested = [each for each in found if each.p is not None]
    corrected = dict(zip(map(id, tested), holm([each.p or 0.0 for each in tested]), strict=True))
    return [replace(each, p_holm=corrected.get(id(each))) for each in found]
