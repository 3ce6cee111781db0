"""Names of a job and its folder; conf/config.yaml calls these while Hydra composes it."""

import hashlib
import re

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tvf.config.identity import (
    NAME_WORDS,
    NOTHING,
    affects,
    ignored_options,
    is_transfer,
    name_value,
    selection_name,
)


def job_name(*, _root_: DictConfig) -> str:
    """transfer-learning, fine-tuning-0.5 or fine-tuning-groups-layer3.

    Includes the limit of training images, the seed, the fold and the split seed if the command line
    sets them: fine-tuning-0.5-train100-fold0.
    """
    model = _root_.model
    if is_transfer(model):
        name = "transfer-learning"
    elif selection := selection_name(model):
        name = f"fine-tuning-{selection}"
    elif "pct_unfreeze" in model:
        name = f"fine-tuning-{model.pct_unfreeze}"
    else:
        name = model._target_.rpartition(".")[2]
    given = {_key(override) for override in _overrides(_root_)}
    values = {key: OmegaConf.select(_root_, key) for key in NAME_WORDS if key in given}
    words = [f"{NAME_WORDS[key]}{name_value(value)}" for key, value in values.items()]
    return "-".join([name, *words])


def job_folder(*, _root_: DictConfig) -> str:
    """The job's name and a hash of its sorted overrides, so that jobs with the same name differ.

    Overrides that the model ignores, and those of nodes that affect nothing, do not count.
    """
    ignored = {f"model.{key}" for key in ignored_options(_root_.model)}
    counting = sorted(
        override
        for override in _overrides(_root_)
        if _key(override) not in ignored and _counts(_key(override))
    )
    text = "\n".join(counting).encode("utf-8", "surrogateescape")  # a path may not be UTF-8
    digest = hashlib.sha256(text).hexdigest()[:8]
    return re.sub(r"[^\w.=-]", "_", str(_root_.name)) + "-" + digest


def _counts(key: str) -> bool:
    node = key.partition(".")[0]
    return node == "name" or affects(node) != NOTHING


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _overrides(root: DictConfig) -> list[str]:
    """The overrides: from the config while Hydra composes it, from HydraConfig in a running job."""
    if "hydra" in root:
        return list(root.hydra.overrides.task)
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
