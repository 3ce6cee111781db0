"""Turns command-line options into plain, validated values, and says what each option affects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tvf.config.build import (
    DISK_FULL,
    build,
    build_part,
    build_phases,
    conf_dir,
    explain_error,
    own_checkpoint,
    resolve_target,
    starts_at_random,
    target_node,
    to_plain,
)
from tvf.config.identity import (
    NOTHING,
    REPETITIONS,
    SAME,
    Affects,
    affects,
    earlier_options,
    frozen_layers_config,
    has_percentiles,
    head_phase_config,
    result_config,
    select_options,
    written_options,
)
from tvf.config.legacy import flatten, modern_node, modern_options
from tvf.config.methods import (
    ADAPTERS,
    METHODS,
    OWN_MODELS,
    Config,
    Method,
    is_lora,
    is_probe,
    is_transfer,
    method_of,
)
from tvf.config.places import (
    absolute_place,
    backbone_content,
    has_relative_places,
    path_override,
    resolve_places,
)
from tvf.config.selection import (
    NAME_WORDS,
    explain_ignored,
    ignored_options,
    known_fraction,
    name_value,
    selection_name,
    trained_label,
)

if TYPE_CHECKING:
    from tvf.config.names import environment_value as environment_value
    from tvf.config.names import job_folder as job_folder
    from tvf.config.names import job_name as job_name
    from tvf.config.names import own_folder as own_folder
    from tvf.config.validate import validate_config as validate_config

# Modules that import what not everyone needs: torch to validate, Hydra to name a job.
_ON_USE = {
    "environment_value": "names",
    "job_folder": "names",
    "job_name": "names",
    "own_folder": "names",
    "validate_config": "validate",
}

__all__ = [
    "ADAPTERS",
    "Affects",
    "Config",
    "DISK_FULL",
    "METHODS",
    "Method",
    "NAME_WORDS",
    "NOTHING",
    "OWN_MODELS",
    "REPETITIONS",
    "SAME",
    "absolute_place",
    "affects",
    "backbone_content",
    "build",
    "build_part",
    "build_phases",
    "conf_dir",
    "earlier_options",
    "environment_value",
    "explain_error",
    "explain_ignored",
    "flatten",
    "frozen_layers_config",
    "has_percentiles",
    "has_relative_places",
    "head_phase_config",
    "ignored_options",
    "is_lora",
    "is_probe",
    "is_transfer",
    "job_folder",
    "job_name",
    "known_fraction",
    "method_of",
    "modern_node",
    "modern_options",
    "name_value",
    "own_checkpoint",
    "own_folder",
    "path_override",
    "resolve_places",
    "resolve_target",
    "result_config",
    "select_options",
    "selection_name",
    "starts_at_random",
    "target_node",
    "to_plain",
    "trained_label",
    "validate_config",
    "written_options",
]


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tvf.config.{_ON_USE[name]}"), name)
