"""What a job and its folder are called: config.yaml asks for these while Hydra composes it."""

import hashlib
import re

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tvf.config.identity import WITHOUT_EFFECT, ignored_options, is_transfer, selection_name


def job_name(*, _root_: DictConfig) -> str:
    """transfer-learning, fine-tuning-0.5 or fine-tuning-block-layer3, with the seed where the shell names one."""
    model = _root_.model
    if is_transfer(model):
        name = "transfer-learning"
    elif special := selection_name(model):
        name = f"fine-tuning-{special}"
    else:
        name = (
            f"fine-tuning-{model.pct_unfreeze}"
            if "pct_unfreeze" in model
            else model._target_.rpartition(".")[2]
        )
    named = any(override.partition("=")[0].lstrip("+") == "seed" for override in _overrides(_root_))
    return name + (f"-seed{_root_.seed}" if named else "")


def job_folder(*, _root_: DictConfig) -> str:
    """The job's name and a hash of its overrides, whatever their order: jobs of one name lie apart.

    A fraction does not count where the model ignores it, nor what numbers do not depend on.
    """
    ignored = ignored_options(_root_.model)
    keys = {override: override.partition("=")[0].lstrip("+") for override in _overrides(_root_)}
    counting = sorted(
        o
        for o, key in keys.items()
        if key not in ignored and key.partition(".")[0] not in WITHOUT_EFFECT
    )
    digest = hashlib.sha256("\n".join(counting).encode()).hexdigest()[:8]
    return re.sub(r"[^\w.=-]", "_", str(_root_.name)) + "-" + digest


def _overrides(root: DictConfig) -> list[str]:
    """The task's overrides: from the config itself while Hydra composes it, from Hydra once the job runs."""
    if "hydra" in root:
        return list(root.hydra.overrides.task)
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
