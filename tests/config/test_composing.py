"""Configs that the tests compose the fast way are those that Hydra composes."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers.composing import nodes
from tvf.config import conf_dir

CHOICES = (
    ("seed=3", "model=transfer", "data.limit=null"),
    ("+experiment=smoke", "hydra/launcher=basic", "~tracker.tags", "+optimizer.algorithm.foo=[1]"),
)


def composed(overrides: tuple[str, ...]) -> list[Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return nodes(compose("config", [*overrides], return_hydra_config=True))


def test_a_remembered_config_is_hydras_own(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [[composed(overrides) for overrides in CHOICES] for _ in range(2)]
    assert composed(("seed=4", *CHOICES[0][1:])) != quick[0][0]
    for place, name in (
        (config_loader_impl, "create_defaults_list"),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
        (OverridesParser, "parse_rule"),
        (SourcesRegistry.instance().resolve("file"), "load_config"),
        (SourcesRegistry.instance().resolve("pkg"), "load_config"),
    ):
        monkeypatch.setattr(place, name, getattr(place, name).__wrapped__)
    assert quick == 2 * [[composed(overrides) for overrides in CHOICES]]
