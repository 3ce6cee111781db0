"""Labels of configurations and comparisons: the fraction, and anything else that differs."""

from collections.abc import Sequence
from typing import Any

from tvf.config import (
    ADAPTERS,
    NOTHING,
    REPETITIONS,
    Method,
    affects,
    method_of,
)
from tvf.records import Row, varied_overrides
from tvf.report.seeds import FOLLOWS_SEED, FlatConfig

FRACTION = "model.pct_unfreeze"
# Options that separate transfer learning from fine-tuning, which the fraction already shows.
MODEL_KEYS = (FRACTION, "model._target_", "model.unit")
MODEL = ("model", "model._target_")
ADAPTER_KEYS = tuple(f"model.{key}" for key in ADAPTERS)
DIRECTION_KEYS = ("model.direction", "model.groups", "model.train")


def label_configurations(jobs: Sequence[list[Row]], configs: Sequence[FlatConfig]) -> list[str]:
    """Label each configuration, given its jobs and its config, by its fraction: 0.5 with LoRA.

    If the fraction and the method do not tell them apart, adds the overrides that do, or else the
    config keys that differ.
    """
    first_jobs = [group[0] for group in jobs]
    fractions = [f"{job['pct_unfreeze'] or 0:g} {_method(job).label}".strip() for job in first_jobs]
    directions = {repr([config.get(key) for key in DIRECTION_KEYS]) for config in configs}
    if len({*fractions}) == len(fractions) and len(directions) == 1:
        return fractions
    labels = _add_overrides(fractions, first_jobs, configs)
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [index for index, other in enumerate(labels) if other == label]
        keys = differing_keys([configs[index] for index in same])
        for index in same:
            values = [f"{key}={configs[index].get(key)}" for key in keys]
            labels[index] = ", ".join([label, *values])
    return labels


def _add_overrides(
    fractions: Sequence[str], jobs: Sequence[Row], configs: Sequence[FlatConfig]
) -> list[str]:
    """Add to each fraction the overrides that not all jobs have and that affect results."""
    following = [
        key for config in configs for key, value in config.items() if value == FOLLOWS_SEED
    ]
    labels = []
    overrides_by_job = varied_overrides(jobs, (FRACTION, *REPETITIONS, *following))
    said = any(_method(job).label for job in jobs)  # the fractions are followed by the method
    for job, fraction, overrides in zip(jobs, fractions, overrides_by_job, strict=True):
        told = MODEL if said and _method(job).choice != "transfer" else ()
        relevant = [
            item for item in overrides if affects(_key(item)) != NOTHING and _key(item) not in told
        ]
        labels.append(", ".join([fraction, *sorted(relevant)]))
    return labels


def _method(job: Row) -> Method:
    return method_of(job["config"].get("model") or {})


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def differing_keys(configs: Sequence[FlatConfig]) -> list[str]:
    """Keys with more than one value, except those that the fraction covers."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in MODEL_KEYS)
    return [key for key in keys if len(_values(key, configs)) > 1]


def _values(key: str, configs: Sequence[FlatConfig]) -> set[str]:
    """The different values of an option; of LoRA's, only those of jobs with adapters."""
    values = [config.get(key) for config in configs]
    if key in ADAPTER_KEYS and not all(value is None for value in values):
        ours = [c for c in configs if c.get("model.rank") is not None]
        values = [config.get(key) for config in ours]
    return set(map(repr, values))


def title_comparisons(criteria: Sequence[dict[str, Any]]) -> list[str]:
    """Title each comparison by those of its criteria that differ between comparisons."""
    keys = dict.fromkeys(
        key
        for values in criteria
        for key in values
        if any(other.get(key) != values[key] for other in criteria)
    )
    return [
        ", ".join(f"{key}={values[key]}" for key in keys if key in values) for values in criteria
    ]
