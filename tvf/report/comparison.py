"""Compares the jobs of one or more sweeps: scores, differences and a recommendation.

Rows come from `read_jobs`. Every choice is made by validation scores; test scores are only reported
for the chosen configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from tvf.config import Affects, affects
from tvf.metrics import METRICS, WORDS
from tvf.records import Row
from tvf.report.configuration import Configuration, build_configuration
from tvf.report.confirmation import Confirmation, read_confirmation
from tvf.report.data_curves import (
    DataCurves,
    collect_data_curves,
    look_ahead,
    train_limit,
    with_largest_limit,
    without_largest_limit,
    without_limit,
)
from tvf.report.data_sentences import describe_candidates
from tvf.report.decide import MARGIN
from tvf.report.evidence import Evidence, collect_evidence
from tvf.report.images import compare_scores
from tvf.report.labels import label_configurations, title_comparisons
from tvf.report.notes import about_trials, collect_notes
from tvf.report.raced import beside_winner
from tvf.report.recommend import Recommendation, recommend
from tvf.report.seeds import FOLLOWS_SEED, FlatConfig, without_seeds
from tvf.report.statistics import holm, pareto_front
from tvf.report.tested import DifferenceOnTest, compare_tests
from tvf.report.words import numerically

ALL_PAIRS = 8  # up to this many configurations, all pairs are compared; beyond, only with the best


@dataclass(frozen=True)
class Difference:
    """The mean score of `a` minus that of `b`, over the images that both validated.

    The 95 % interval is for this pair alone, without correction; `p` is two-sided. `p_holm` is `p`
    corrected for all pairs compared. All are None where the spread is unknown.
    """

    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Configurations validated on the same images by the same metric.

    `title` distinguishes it from other comparisons. The choice is among the `candidates`, those
    with the most training images, usually all; so are the differences and the Pareto front.
    `evidence` is what their jobs say about differences; None if too little. `pairs` says which
    pairs `differences` holds. `tested` holds the differences of these pairs on the test images, by
    their labels, for the page alone: no choice reads it. `front` lists the labels on the Pareto
    front. `following` are the config keys whose value is the seed in every job, `keys` all config
    keys. `data` is how scores depend on the number of training images; None if that does not vary.
    `confirmation` is what `tvf confirm` found; None before it ran.
    """

    title: str
    metric: str
    configurations: list[Configuration]
    candidates: list[Configuration]
    evidence: Evidence | None
    differences: list[Difference]
    pairs: str
    tested: dict[tuple[str, str], DifferenceOnTest]
    front: list[str]
    choice: Recommendation
    notes: list[str]
    following: frozenset[str]
    keys: frozenset[str]
    data: DataCurves | None
    confirmation: Confirmation | None = None

    def of_candidates(self) -> "Comparison":
        """The comparison without the configurations that are no candidates."""
        return replace(self, configurations=self.candidates)

    @property
    def score_key(self) -> str:
        """The score's name in records: val_acc."""
        return f"val_{METRICS[self.metric]}"

    @property
    def word(self) -> str:
        """The score's name in text."""
        return WORDS[self.metric]


def compare(rows: Sequence[Row], margin: float | None = None) -> list[Comparison]:
    """Compare jobs, separately for each pool of images, way of dividing it, and metric.

    Differences up to `margin` do not matter; by default the jobs' `report.margin`. Skips jobs
    without a config.
    """
    known = [row for row in rows if isinstance(row["config"].get("data"), dict)]
    margin = _margin_of(known) if margin is None else margin
    configs = without_seeds([row["config"] for row in known])
    groups: dict[str, list[tuple[Row, FlatConfig]]] = {}
    criteria: dict[str, dict[str, Any]] = {}
    images = _images_of_jobs(known, configs)
    for row, config, pool in zip(known, configs, images, strict=True):
        judged = judged_by(row["metric"], config) | {"images": pool}
        criteria.setdefault(repr(judged), judged)
        groups.setdefault(repr(judged), []).append((row, config))
    titles = title_comparisons(list(criteria.values()))
    comparisons = [
        _compare_group(title, group, margin)
        for title, group in zip(titles, groups.values(), strict=True)
    ]
    if len(comparisons) == 1:
        comparisons = [_add_confirmation(comparisons[0], margin)]
    return sorted(comparisons, key=lambda comparison: comparison.title)


def _margin_of(rows: Sequence[Row]) -> float:
    margins = [(row["config"].get("report") or {}).get("margin") for row in rows]
    known = [margin for margin in margins if isinstance(margin, int | float)]
    return known[-1] if known else MARGIN


def judged_by(metric: str, config: FlatConfig) -> dict[str, Any]:
    """The options that two jobs must share for their scores to be comparable."""
    decisive = [key for key in config if Affects.VALIDATION_IMAGES in affects(key)]
    return {"data.metric": metric} | {k: config[k] for k in decisive if k != "data.metric"}


def _images_of_jobs(rows: Sequence[Row], configs: Sequence[FlatConfig]) -> list[str | None]:
    """Which images each job's data set held: the same options may name others after a while.

    Jobs that have not recorded it yet count with those that have the same options.
    """
    found: list[str | None] = []
    by_options: dict[str, str] = {}
    keys = [
        repr(judged_by(row["metric"], config)) for row, config in zip(rows, configs, strict=True)
    ]
    for row, key in zip(rows, keys, strict=True):
        images = row["summary"].get("images")
        digest = None
        if isinstance(images, dict):
            digest = f"{images.get('pool')} ({str(images.get('digest'))[:8]})"
            by_options.setdefault(key, digest)
        found.append(digest)
    return [
        digest or (None if row["state"] == "done" else by_options.get(key))
        for row, key, digest in zip(rows, keys, found, strict=True)
    ]


def _compare_group(title: str, rows: Sequence[tuple[Row, FlatConfig]], margin: float) -> Comparison:
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
    configurations = without_largest_limit(configurations)
    data = collect_data_curves(configurations, distinct, metric, margin)
    configurations.sort(
        key=lambda g: (g.fraction, numerically(without_limit(g.label)), train_limit(g), g.label)
    )
    notes += collect_notes(configurations, distinct, metric)
    candidates = with_largest_limit(configurations)
    notes += about_trials(candidates)
    evidence = collect_evidence(candidates, metric)
    differences, pairs = _test_differences(evidence)
    all_sizes = len(candidates) == len(configurations)
    choice = recommend(candidates, evidence, metric, margin, all_sizes=all_sizes)
    if among := describe_candidates(configurations, candidates):
        choice = replace(choice, text=f"{choice.text} {among}")
    if data is not None:
        data = replace(data, outlook=look_ahead(data, choice.chosen or choice.best, evidence))
    return Comparison(
        title=title,
        metric=metric,
        configurations=configurations,
        candidates=candidates,
        evidence=evidence,
        differences=differences,
        pairs=pairs,
        tested=_tested(candidates, evidence, metric),
        front=_score_cost_front(beside_winner(candidates)),
        choice=choice,
        notes=notes,
        following=frozenset.intersection(*map(_keys_that_follow_the_seed, distinct)),
        keys=frozenset(distinct[0]),
        data=data,
    )


def _add_confirmation(comparison: Comparison, margin: float) -> Comparison:
    """Add what the confirmation of the sweep found, if there is one."""
    found = read_confirmation(
        comparison.configurations,
        comparison.evidence,
        comparison.choice,
        comparison.following,
        comparison.metric,
        margin,
    )
    return replace(comparison, confirmation=found)


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


def _test_differences(evidence: Evidence | None) -> tuple[list[Difference], str]:
    """Paired differences, with p corrected for all pairs, and a sentence that names the pairs.

    If there are many configurations, only pairs with the best are returned, still corrected for all
    pairs: the same scores choose the best, so a correction for its own pairs alone would find
    chance differences too often.
    """
    if evidence is None:
        return [], ""
    scores, labels = evidence.scores, [group.label for group in evidence.configurations]
    pairs = [(a, b) for b, a in combinations(range(len(labels)), 2)]
    found = [compare_scores(scores, a, b) for a, b in pairs]
    corrected = iter(holm([pair.p for pair in found if pair.p is not None]))
    differences = [
        Difference(
            labels[a],
            labels[b],
            pair.interval.mean,
            pair.interval.low,
            pair.interval.high,
            pair.p,
            None if pair.p is None else next(corrected),
        )
        for (a, b), pair in zip(pairs, found, strict=True)
    ]
    number = sum(pair.p is not None for pair in found)
    correction = f"p (Holm) is corrected for {_count_pairs(number)}"
    if len(labels) <= ALL_PAIRS:
        return differences, f"All pairs of configurations; {correction}"
    best = labels[int(scores.means.argmax())]
    with_best = [pair for pair in differences if best in (pair.a, pair.b)]
    return with_best, f"Every configuration against the best; {correction}"


def _tested(
    configurations: Sequence[Configuration], evidence: Evidence | None, metric: str
) -> dict[tuple[str, str], DifferenceOnTest]:
    """The differences on the test images, of all pairs or those with the best by validation.

    With single trainings, too, for which there is no evidence about validation.
    """
    scored = [group for group in configurations if group.val]
    found = compare_tests(evidence.configurations if evidence else scored, metric)
    if evidence:
        scored, means = evidence.configurations, evidence.scores.means.tolist()
    else:
        means = [group.val.mean for group in scored if group.val]
    if len(scored) <= ALL_PAIRS:
        return found
    best = scored[means.index(max(means))].label
    return {pair: difference for pair, difference in found.items() if best in pair}


def _count_pairs(number: int) -> str:
    return "1 pair" if number == 1 else f"all {number} pairs" if number else "0 pairs"
