"""Configs as Hydra composes them from conf/, each once per test process."""

from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tvf.config import conf_dir


@cache
def compose_once(*overrides: str) -> DictConfig:
    """The config of a job with these overrides. Callers must not change it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


def plain_config(*overrides: str) -> dict[str, Any]:
    """The same as new dicts and lists, with interpolations resolved."""
    config = OmegaConf.to_container(compose_once(*overrides), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def overrides_of(group: str, option: str) -> list[str]:
    """What chooses `option` in `group`, and the values that it lacks."""
    prefix = "+" if group == "experiment" else ""
    missing = {"image_folder": ["data.root=."], "table": ["data.path=labels.csv"]}
    missing["hf"] = ["data.path=owner/name"]
    return [f"{prefix}{group}={option}", *missing.get(option, [])]
