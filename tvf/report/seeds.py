"""Finds config values that follow the seed: jobs that differ only in them are repetitions."""

from collections.abc import Sequence
from typing import Any

from tvf.config import REPETITIONS, result_config

FOLLOWS_SEED = "${seed}"  # replaces a value that equals its job's seed, as augment.seed=${seed}

FlatConfig = dict[str, Any]  # by dotted keys


def without_seeds(configs: Sequence[dict[str, Any]]) -> list[FlatConfig]:
    """Flatten configs without seed, division and name.

    FOLLOWS_SEED replaces values that follow the seed.

    A value follows the seed of its job (augment.seed=${seed}) if it equals that seed and, among
    otherwise equal jobs, at least as many have their own seed as the value as share this value.
    """
    flat = [result_config(config) for config in configs]
    seeds = [config.get("seed") for config in flat]
    plain = [
        {key: value for key, value in config.items() if key not in REPETITIONS} for config in flat
    ]
    result = [dict(config) for config in plain]
    for key in {key for config in plain for key in config if key.endswith("seed")}:
        for indices in _equal_but_for_seeds(plain, key):
            for index in _follow_the_seed(key, indices, plain, seeds):
                result[index][key] = FOLLOWS_SEED
    return result


def _equal_but_for_seeds(configs: Sequence[FlatConfig], key: str) -> list[list[int]]:
    """Indices of the configs that have `key`, grouped by all their values except seeds."""
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        if key in config:
            rest = sorted((k, repr(v)) for k, v in config.items() if not k.endswith("seed"))
            groups.setdefault(repr(rest), []).append(index)
    return list(groups.values())


def _follow_the_seed(
    key: str, indices: Sequence[int], configs: Sequence[FlatConfig], seeds: Sequence[Any]
) -> list[int]:
    """Indices of the configs, equal except for seeds, whose value of `key` follows their seed."""
    equal = [index for index in indices if configs[index][key] == seeds[index]]
    number_following = len({seeds[index] for index in equal})
    if number_following < 2:
        return []
    followers = []
    for index in equal:
        value = configs[index][key]
        sharing = {seeds[other] for other in indices if configs[other][key] == value}
        if number_following >= len(sharing):
            followers.append(index)
    return followers
