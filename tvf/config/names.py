"""Names of a job and its folder; conf/config.yaml calls these while Hydra composes it."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tvf.config.identity import NOTHING, SAME, affects
from tvf.config.methods import is_transfer, method_of
from tvf.config.places import PLACES, canonical
from tvf.config.selection import (
    NAME_WORDS,
    NEWER_WORDS,
    ignored_options,
    name_fraction,
    name_value,
    selection_name,
)
from tvf.files import read_json


def job_name(*, _root_: DictConfig) -> str:
    """transfer-learning, fine-tuning-0.5, fine-tuning-groups-layer3 or lora-0.5.

    Includes the limit of training images, the seed, the fold, the split seed, LoRA's rank and
    learning rates if the command line sets them: fine-tuning-0.5-train100-fold0. WANDB_NAME names a
    single job.
    """
    if given := os.environ.get("WANDB_NAME"):
        return given
    model = _root_.model
    method = method_of(model).job
    if is_transfer(model):
        name = method
    elif selection := selection_name(model):
        name = f"{method}-{selection}"
    elif "pct_unfreeze" in model:
        name = f"{method}-{name_fraction(model.pct_unfreeze)}"
    else:
        name = model._target_.rpartition(".")[2]
    given = {_key(override) for override in _overrides(_root_)}
    given -= {f"model.{key}" for key in ignored_options(model)}
    values = {key: OmegaConf.select(_root_, key) for key in NAME_WORDS if key in given}
    words = [f"{NAME_WORDS[key]}{name_value(value)}" for key, value in values.items()]
    return "-".join([name, *words])


def job_folder(*, _root_: DictConfig) -> str:
    """The folder of a job: its own, or the one in its sweep that has the same configuration.

    The sweep's check finds the latter and notes it in the manifest, under SAME.
    """
    folder, sweep = own_folder(_root_), OmegaConf.select(_root_, "hydra.sweep.dir")
    noted = {} if sweep is None else read_json(Path(str(sweep), "sweep.json")).get(SAME)
    return str(noted.get(folder, folder)) if isinstance(noted, dict) else folder


def own_folder(_root_: DictConfig) -> str:
    """The job's name and a hash of its sorted overrides, so that jobs with the same name differ.

    Overrides that the model ignores, and those of nodes that affect nothing, do not count; equal
    numbers and equal places do once. A sweep's jobs stay in folders that earlier versions named.
    """
    name = str(_root_.name)
    folder = _folder_name(_root_, name, lambda override: _canonical(_root_, override))
    given = OmegaConf.select(_root_, "model.pct_unfreeze")
    as_given = name.replace(f"-{name_fraction(given)}", f"-{given}", 1)
    for key in NEWER_WORDS:
        word = f"-{NAME_WORDS[key]}{name_value(OmegaConf.select(_root_, key))}"
        as_given = as_given.replace(word, "", 1)
    earlier = _folder_name(_root_, as_given, str)
    if earlier != folder and (sweep := OmegaConf.select(_root_, "hydra.sweep.dir")) is not None:
        return earlier if Path(str(sweep), earlier).is_dir() else folder
    return folder


def environment_value(variable: str, default: Any) -> Any:
    """The value of an environment variable, `default` if it is not set or empty."""
    return os.environ.get(variable) or default


def _folder_name(root: DictConfig, name: str, spell: Callable[[str], str]) -> str:
    ignored = {f"model.{key}" for key in ignored_options(root.model)}
    counting = sorted(
        spell(override)
        for override in _overrides(root)
        if _key(override) not in ignored and _counts(_key(override))
    )
    text = "\n".join(counting).encode("utf-8", "surrogateescape")  # a path may not be UTF-8
    digest = hashlib.sha256(text).hexdigest()[:8]
    return re.sub(r"[^\w.=-]", "_", name) + "-" + digest


def _canonical(root: DictConfig, override: str) -> str:
    """An override with its value in canonical form, if that is a number, a list or a place."""
    key = _key(override)
    try:
        value = OmegaConf.select(root, key)
    except OmegaConfBaseException:  # no value yet, or of a broken reference
        return override
    if OmegaConf.is_list(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, list | int | float) and not isinstance(value, bool):
        return f"{key}={json.dumps(canonical(key, value))}"
    if key in PLACES and isinstance(value, str) and (place := canonical(key, value)) != value:
        return f"{key}={place}"
    return override


def _counts(key: str) -> bool:
    node = key.partition(".")[0]
    return node == "name" or affects(node) != NOTHING


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _overrides(root: DictConfig) -> list[str]:
    """The overrides: from the config while Hydra composes it, from HydraConfig in a running job.

    They are as they were given: the config that a reference in them names may not be at hand.
    """
    if "hydra" in root:
        given = root.hydra.overrides.task
    elif HydraConfig.initialized():
        given = HydraConfig.get().overrides.task
    else:
        return []
    overrides: Any = OmegaConf.to_container(given, resolve=False)
    return overrides
