"""From what the shell says to plain, validated values, and what each option affects."""

from typing import TYPE_CHECKING, Any

from tvf.config.build import (
    DISK_FULL,
    build,
    build_phases,
    check_node,
    conf_dir,
    explain_error,
    resolve_target,
    to_plain,
)
from tvf.config.identity import (
    WITHOUT_EFFECT,
    flatten,
    ignored_options,
    is_transfer,
    known_fraction,
    result_config,
    selection_name,
)
from tvf.config.names import job_folder, job_name

if TYPE_CHECKING:
    from tvf.config.validate import validate_config as validate_config

__all__ = [
    "DISK_FULL",
    "WITHOUT_EFFECT",
    "build",
    "build_phases",
    "check_node",
    "conf_dir",
    "explain_error",
    "flatten",
    "ignored_options",
    "is_transfer",
    "job_folder",
    "job_name",
    "known_fraction",
    "resolve_target",
    "result_config",
    "selection_name",
    "to_plain",
    "validate_config",
]


def __getattr__(name: str) -> Any:
    if name != "validate_config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Checking values takes torch, which `tvf --help` and a job's name do not wait for.
    from tvf.config.validate import validate_config

    return validate_config
