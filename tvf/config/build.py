"""From a config node with a `_target_` to the object it names; keys that the target does not take are refused."""

import errno
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

if TYPE_CHECKING:
    from tvf.training import Phase

from tvf.errors import RESERVED, InputError, unknown_key

if TYPE_CHECKING:
    pass

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or a user's part of it


def build(node: Mapping[str, Any], name: str, **more: Any) -> Any:
    """Build what `node` describes, passing `more` beside its own keys.

    `more` reaches the target as it is, so it may hold tensors and modules. With `_partial_: true` in the node the
    result is a function still to be called. Raises InputError for a target that cannot be imported, a key that the
    target does not take, or a required one that is missing.
    """
    check_node(node, name, more)
    make = _instantiate({**node, "_partial_": True})
    return make if node.get("_partial_") else make(**more)


def check_node(node: Mapping[str, Any], name: str, more: Iterable[str] = ()) -> None:
    """Check the keys of `node`, and of the nodes in it, against the signatures of their targets."""
    if "_target_" not in node:
        raise InputError(f"{name} has no _target_: it must name the function or class to build.")
    try:
        parameters = inspect.signature(resolve_target(node, name)).parameters
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{name}._target_={node['_target_']!r} does not say what it takes: wrap it in Python."
        ) from error
    for key in node:
        if key in more:
            raise InputError(
                f"{name}.{key} is not an option: tvf itself gives it to {node['_target_']}."
            )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in node:
            if key not in parameters and key not in RESERVED:
                raise unknown_key(
                    f"{name}.{key}", [p for p in parameters if p not in more], f"{name}."
                )
    given = {*node, *more}
    for key, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if not optional and key not in given and not node.get("_partial_"):
            raise InputError(f"{name}.{key} is missing: {node['_target_']} needs it.")
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_node(value, f"{name}.{key}")


def to_plain(node: DictConfig) -> dict[str, Any]:
    """The node as plain data; InputError where a value is missing or refers to none."""
    try:
        values: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(explain_error(error)) from error
    return values


def explain_error(error: Exception) -> str:
    """An error from composing or building a config, as a person should read it: what is wrong and what to do."""
    cause = error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give one with {error.full_key}=..."
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error}. What is finished is kept: make room, and give the command again."
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"the output folder cannot be written ({error}): choose another with hydra.run.dir= or hydra.sweep.dir=."
    if (
        isinstance(cause, OmegaConfBaseException)
        and cause.parent_node is not None
        and "not in struct" in str(cause)
    ):
        parent, dot, _ = (cause.full_key or "").rpartition(".")
        return str(unknown_key(str(cause.full_key), map(str, cause.parent_node), parent + dot))
    if isinstance(error, OverrideParseException):
        reason = next(iter(str(error).splitlines()[1:]), "").strip()
        hint = (
            "Write key=value, and quote a value with spaces, accents or ~ twice: 'key=\"value\"'."
        )
        return f"{error.override} cannot be read ({reason}). {hint}"
    text = str(error).partition("\nConfig search path")[0].strip()
    return f"{text}\n{cause}" if isinstance(cause, OmegaConfBaseException) else text


def resolve_target(node: Mapping[str, Any], name: str) -> Callable[..., Any]:
    """The function or class that `node` names. InputError if it cannot be imported."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        reason = str(error.__cause__ or error)
        raise InputError(
            f"{name}._target_={node['_target_']!r} cannot be imported ({reason}). Write module.name; the module may "
            "lie in the working directory or in the folder given with --config-dir."
        ) from error
    if not callable(target):
        raise InputError(f"{name}._target_={node['_target_']!r} is not a function or class.")
    return target


def _instantiate(node: Mapping[str, Any]) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


def conf_dir() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def build_phases(config: Mapping[str, Any], groups: int) -> "tuple[Phase, ...]":
    """The phases of a job that trains `groups` groups; InputError if they do not add up to its epochs."""
    stopping = build(config["early_stopping"], "early_stopping")
    return build(config["recipe"], "recipe")(config["epochs"], groups, stopping)
