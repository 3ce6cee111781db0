"""Hydra composes faster: what comes from conf/ alone is worked out once per test process.

A config is composed from the files that the chosen groups name, in an order that Hydra finds out
anew each time, and then from single values. The first part takes nine tenths of the time, and is
the same for the same choices as long as all files are in conf/ and in Hydra's own package.
"""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides, create_defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from tvf.config import conf_dir

PLACES = {"pkg://hydra.conf", f"file://{conf_dir()}", "structured://"}


def remember_configs(put: Callable[..., None]) -> None:
    """Merge the files of conf/ once for each choice of groups; `put` replaces Hydra's functions."""
    Plugins.instance()  # registers the sources
    for scheme in ("file", "pkg"):
        source = SourcesRegistry.instance().resolve(scheme)
        put(source, "load_config", _once(source.load_config, _file_key))
    # A config's sources are copied, and the store below them with all that it holds.
    put(ConfigStore, "__deepcopy__", lambda store, memo: store, raising=False)
    put(OverridesParser, "parse_rule", _once(OverridesParser.parse_rule, _rule_key))
    put(config_loader_impl, "create_defaults_list", _order_once(create_defaults_list))
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    put(ConfigLoaderImpl, merge.__name__, _once(merge, _merge_key))


def nodes(config: Any) -> list[Any]:
    """Every value under its key, as it is written, and what OmegaConf knows of its node."""
    found = [str(OmegaConf.to_container(config)), types(config)]
    if isinstance(config, DictConfig):
        found += [item for key in config for item in nodes_below(config, key)]
    return found


def nodes_below(config: DictConfig, key: Any) -> list[Any]:
    node: Any = config._get_node(key)
    return [key, *(nodes(node) if isinstance(node, DictConfig) else [str(node), types(node)])]


def types(node: Any) -> tuple[Any, ...]:
    known = node._metadata
    return known.ref_type, known.object_type, known.optional, known.key, known.flags


def _once(function: Callable[..., Any], key_of: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which keeps its results by `key_of` its arguments and returns copies of them."""
    kept: dict[Any, bytes] = {}

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        key = key_of(*arguments, **named)
        if key is None:
            return function(*arguments, **named)
        if key not in kept:
            result = function(*arguments, **named)
            if isinstance(result, DictConfig):
                OmegaConf.clear_cache(result)  # the time of day, among others
            kept[key] = pickle.dumps(result)
        return pickle.loads(kept[key])  # takes a seventh of the time of a deep copy

    return call


def _order_once(create: Callable[..., DefaultsList]) -> Callable[..., DefaultsList]:
    """`create`, which finds the order of the files once for each choice of groups."""
    kept: dict[Any, DefaultsList] = {}

    @functools.wraps(create)
    def call(repo: Any, overrides_list: list[Override], **how: Any) -> DefaultsList:
        if not _only_conf(repo):
            return create(repo=repo, overrides_list=overrides_list, **how)
        values = Overrides(repo, overrides_list).config_overrides
        chosen = [each.input_line for each in overrides_list if each not in values]
        key = (*chosen, *how.items())
        if key not in kept:
            kept[key] = create(repo=repo, overrides_list=overrides_list, **how)
        found = copy.copy(kept[key])
        found.config_overrides = values
        return found

    return call


def _only_conf(repo: Any) -> bool:
    return {source.full_path() for source in repo.get_sources()} <= PLACES


def _merge_key(loader: Any, defaults: list[Any], repo: Any) -> str | None:
    return repr(defaults) if _only_conf(repo) else None


def _file_key(source: Any, config_path: str) -> tuple[str, str, str] | None:
    place = source.full_path()
    return (source.provider, place, config_path) if place in PLACES else None


def _rule_key(parser: Any, text: str, rule_name: str) -> tuple[str, str]:
    return text, rule_name
