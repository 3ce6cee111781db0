"""Composes the jobs of a sweep that differ in plain values alone from one config.

Hydra works out the files that the chosen groups name, and merges them, anew for each job. That
takes nine tenths of the time, and is the same for jobs with the same choices.
"""

import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

KEPT = 32  # choices of groups that a process remembers
# What returns a new copy of the config of such choices.
_composed: dict[tuple[Any, ...], Callable[[], DictConfig]] = {}


def compose_alike() -> None:
    """Let Hydra's launchers compose the jobs of the sweep that it is about to launch this way."""
    hydra: Any = GlobalHydra.instance().hydra
    if hydra is not None and not isinstance(hydra.config_loader, AlikeLoader):
        hydra.config_loader = AlikeLoader(hydra.config_loader)


class AlikeLoader:
    """A config loader of Hydra's whose `load_sweep_config` works once for jobs that are alike."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while it is unpickled, for a worker
            raise AttributeError(name)
        return getattr(self._loader, name)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """Return the config that Hydra's own method returns."""
        overrides = [*sweep_overrides]
        parsed = OverridesParser.create().parse_overrides(overrides)
        values = [override for override in parsed if not self._chooses_group(override)]
        if self._searches_elsewhere(master_config) or not all(map(_only_sets_a_value, values)):
            return self._loader.load_sweep_config(master_config, overrides)
        chosen = [str(override.input_line) for override in parsed if override not in values]
        config = self._load_choices(master_config, chosen)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except Exception:  # for Hydra to explain
            return self._loader.load_sweep_config(master_config, overrides)
        _note_overrides(config, parsed)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _searches_elsewhere(self, master: DictConfig) -> bool:
        return not isinstance(self._loader, ConfigLoaderImpl) or bool(master.hydra.searchpath)

    def _chooses_group(self, override: Override) -> bool:
        is_group = self._loader.repository.group_exists(override.key_or_group)  # type: ignore[attr-defined]
        return is_group and not isinstance(override.value(), dict)

    def _load_choices(self, master: DictConfig, chosen: list[str]) -> DictConfig:
        hydra: Any = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)
        searched = [(s.provider, s.path) for s in self._loader.get_search_path().get_path()]
        key = (*searched, master.hydra.job.config_name, *hydra, None, *chosen)
        if key not in _composed:
            config = self._loader.load_sweep_config(master, chosen)
            OmegaConf.clear_cache(config)  # the time of day, among others
            while len(_composed) >= KEPT:
                _composed.pop(next(iter(_composed)))
            _composed[key] = _copies_of(config)
        return _composed[key]()


def _copies_of(config: DictConfig) -> Callable[[], DictConfig]:
    try:
        return partial(pickle.loads, pickle.dumps(config))  # takes a seventh of a deep copy's time
    except pickle.PicklingError:  # in joblib's workers, Hydra imports its plugins a second time
        return partial(deepcopy, config)


def _only_sets_a_value(override: Override) -> bool:
    """Whether the override replaces a value that the config has: adding and deleting may not."""
    changes = override.is_add() or override.is_force_add() or override.is_delete()
    other = override.is_sweep_override() or override.is_hydra_override() or override.package
    return not (changes or other)


def _note_overrides(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Record the job's own overrides in the config, as Hydra does."""
    own = [override for override in overrides if not override.is_hydra_override()]
    config.hydra.overrides.task = [override.input_line for override in own]
    how = config.hydra.job.config.override_dirname
    config.hydra.job.override_dirname = get_overrides_dirname(
        overrides=own,
        kv_sep=how.kv_sep,
        item_sep=how.item_sep,
        exclude_keys=how.exclude_keys,
    )
