"""Compares the jobs of one or more sweeps: statistics over seeds and a recommendation.

Rows come from `read_jobs`. Every choice is made by validation scores; test scores are only reported
for the chosen configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from tvf.config import Affects, affects
from tvf.metrics import METRICS, WORDS
from tvf.records import Row
from tvf.report.configuration import Configuration, build_configuration
from tvf.report.labels import label_configurations, title_comparisons
from tvf.report.notes import collect_notes
from tvf.report.recommend import Recommendation, recommend
from tvf.report.seeds import FOLLOWS_SEED, FlatConfig, without_seeds
from tvf.report.statistics import Difference, holm, paired_difference, pareto_front

ALL_PAIRS = 8  # up to this many configurations, all pairs are compared; beyond, only with the best


@dataclass(frozen=True)
class Comparison:
    """Configurations validated on the same images by the same metric.

    `title` distinguishes it from other comparisons. `pairs` says which pairs `differences` holds.
    `front` lists the labels on the Pareto front. `following` are the config keys whose value is the
    seed in every job, `keys` all config keys.
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
        """The score's name in records: val_acc."""
        return f"val_{METRICS[self.metric]}"

    @property
    def word(self) -> str:
        """The score's name in text."""
        return WORDS[self.metric]


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Compare jobs, separately for each choice of data and metric. Skips jobs without a config."""
    known = [row for row in rows if isinstance(row["config"].get("data"), dict)]
    configs = without_seeds([row["config"] for row in known])
    groups: dict[str, list[tuple[Row, FlatConfig]]] = {}
    criteria: dict[str, dict[str, Any]] = {}
    for row, config in zip(known, configs, strict=True):
        judged = judged_by(row["metric"], config)
        criteria.setdefault(repr(judged), judged)
        groups.setdefault(repr(judged), []).append((row, config))
    titles = title_comparisons(list(criteria.values()))
    comparisons = [
        _compare_group(title, group) for title, group in zip(titles, groups.values(), strict=True)
    ]
    return sorted(comparisons, key=lambda comparison: comparison.title)


def judged_by(metric: str, config: FlatConfig) -> dict[str, Any]:
    """The options that two jobs must share for their scores to be comparable."""
    decisive = [key for key in config if Affects.VALIDATION_IMAGES in affects(key)]
    return {"data.metric": metric} | {k: config[k] for k in decisive if k != "data.metric"}


def _compare_group(title: str, rows: Sequence[tuple[Row, FlatConfig]]) -> Comparison:
    metric = rows[0][0]["metric"]
    jobs: dict[str, list[Row]] = {}
    configs: dict[str, FlatConfig] = {}
    for row, config in rows:
        key = repr(sorted((name, repr(value)) for name, value in config.items()))
        jobs.setdefault(key, []).append(row)
        configs.setdefault(key, config)
    distinct = list(configs.values())
    configurations, notes = [], []
    labels = label_configurations(list(jobs.values()), distinct)
    for label, group in zip(labels, jobs.values(), strict=True):
        configuration, warnings = build_configuration(label, group, metric)
        configurations.append(configuration)
        notes += warnings
    configurations.sort(key=lambda group: (group.fraction, group.label))
    notes += collect_notes(configurations, distinct, metric)
    differences, pairs = _test_differences(configurations)
    return Comparison(
        title=title,
        metric=metric,
        configurations=configurations,
        differences=differences,
        pairs=pairs,
        front=_score_cost_front(configurations),
        choice=recommend(configurations, differences, metric),
        notes=notes,
        following=frozenset.intersection(*map(_keys_that_follow_the_seed, distinct)),
        keys=frozenset(distinct[0]),
    )


def _score_cost_front(configurations: Sequence[Configuration]) -> list[str]:
    return pareto_front(
        {
            group.label: (group.seconds, group.val.mean)
            for group in configurations
            if group.val and group.seconds is not None
        }
    )


def _keys_that_follow_the_seed(config: FlatConfig) -> frozenset[str]:
    return frozenset(key for key, value in config.items() if value == FOLLOWS_SEED)


def _test_differences(configurations: Sequence[Configuration]) -> tuple[list[Difference], str]:
    """Paired differences, with p corrected for all pairs, and a sentence that names the pairs.

    If there are many configurations, only pairs with the best are returned, still corrected for all
    pairs: the same scores choose the best, so a correction for its own pairs alone would find
    chance differences too often.
    """
    scores = {group.label: group.scores for group in configurations if len(group.scores) > 1}
    pairs = [paired_difference(a, b, scores) for b, a in combinations(scores, 2)]
    differences = [pair for pair in pairs if pair]
    corrected = iter(holm([pair.p for pair in differences if pair.p is not None]))
    differences = [
        pair if pair.p is None else replace(pair, p_holm=next(corrected)) for pair in differences
    ]
    number = sum(pair.p is not None for pair in differences)
    correction = f"p (Holm) is corrected for {_count_pairs(number)}"
    if len(scores) <= ALL_PAIRS:
        return differences, f"All pairs of configurations; {correction}"
    best = max(scores, key=lambda label: fmean(scores[label].values()))
    with_best = [pair for pair in differences if best in (pair.a, pair.b)]
    return with_best, f"Every configuration against the best; {correction}"


def _count_pairs(number: int) -> str:
    return "1 pair" if number == 1 else f"all {number} pairs" if number else "0 pairs"
