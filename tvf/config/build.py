"""Builds the object that a config node names by `_target_`; keys it does not take are errors.

Hydra is imported where it is used: whoever only reads records or loads a model does not need it.
"""

import errno
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tvf.config.identity import OPTIONS
from tvf.config.legacy import LEGACY_TARGETS
from tvf.config.methods import (
    ADAPTERS,
    SELECTION,
    Config,
    ignores_adapters,
    is_transfer,
    refuses_names,
)
from tvf.errors import RESERVED, InputError, unknown_key

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tvf.training import Phase

# Options in a node that the job handles itself instead of passing them to the node's target.
JOB_OPTIONS = {
    "model": ("init_from",),
    "optimizer": ("clip_norm",),
    "fabric": ("resident", "tf32", "compile", "jobs_per_gpu"),
}
NOT_TO_BE_CHOSEN = ("hydra/sweeper=one",)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's quota


def build_part(config: Config, name: str, **supplied: Any) -> Any:
    """Build the node `name` of a job's config; see `build`."""
    return build(target_node(config, name), name, **supplied)


def build_phases(config: Config, groups: int) -> "tuple[Phase, ...]":
    """The phases of a job that trains `groups` groups.

    Raises InputError if they do not add up to its epochs.
    """
    stopping = build_part(config, "early_stopping")
    return build_part(config, "recipe")(config["epochs"], groups, stopping)


def target_node(config: Config, name: str) -> dict[str, Any]:
    """The node as passed to its target: without what the job handles or the model ignores."""
    node = {k: v for k, v in config[name].items() if k not in JOB_OPTIONS.get(name, ())}
    if name == "model" and "_target_" in node:
        unknown = SELECTION if is_transfer(node) else ()
        unknown += ADAPTERS if ignores_adapters(node) else ()
        unknown += ("train",) if refuses_names(node) else ()
        node = {key: value for key, value in node.items() if key not in unknown}
        if node.get("frozen_bn") == "recalibrate":  # the job sets the statistics before it trains
            node["frozen_bn"] = "eval"
    if name == "backbone" and not _reads_checkpoint(node):
        if node.pop("checkpoint", None) is not None:  # the job loads it: no weights of a library's
            options = inspect.signature(resolve_target(node, name)).parameters
            if "pretrained" in options:
                node["pretrained"] = False
            elif "weights" in options:
                node["weights"] = None
    return node


def own_checkpoint(config: Config) -> str | None:
    """The file of weights that a job loads into its backbone; None if there is none.

    A backbone whose function has the option `checkpoint` of its own loads it itself.
    """
    node = config["backbone"]
    return None if _reads_checkpoint(node) else node.get("checkpoint")


def starts_at_random(config: Config) -> bool:
    """Whether a job's network has learnt nothing before, as far as the config says so."""
    node = config["backbone"]
    options = node.get("options") or {}
    trained = node.get("checkpoint") or options.get("checkpoint_path")
    trained = trained or config["model"].get("init_from")
    untrained = node.get("pretrained") is False or node.get("weights", "") is None
    return untrained and not trained and str(node.get("_target_")).startswith("tvf.")


def _reads_checkpoint(node: Config) -> bool:
    if "checkpoint" not in node or "_target_" not in node:
        return False
    return "checkpoint" in inspect.signature(resolve_target(node, "backbone")).parameters


def build(node: Config, name: str, **supplied: Any) -> Any:
    """Build what `node` describes, passing `supplied` along with its own keys.

    `supplied` is passed unchanged, so it may hold tensors and modules. With `_partial_: true` in
    the node, the target is returned uncalled. Raises InputError for a target that cannot be
    imported, a key it does not take, or a missing required key.
    """
    check_node(node, name, supplied)
    plain = _is_plain(node)
    make = _bind(node, name) if plain else _instantiate({**node, "_partial_": True})
    return make if node.get("_partial_") else make(**supplied)


def check_node(
    node: Config, name: str, supplied: Iterable[str] = (), known: Iterable[str] = ()
) -> None:
    """Check the keys of `node` and of nested nodes against the signatures of their targets.

    `supplied` are arguments that the code passes; `known` are further keys to suggest for a typo.
    """
    target = resolve_target(node, name)
    try:
        parameters = inspect.signature(target).parameters
    except ValueError as error:
        raise InputError(
            f"{name}._target_={node['_target_']!r} has no signature to check: wrap it in a Python "
            "function."
        ) from error
    for key in node:
        if key in supplied:
            raise InputError(
                f"{name}.{key} is not an option: tvf passes it to {node['_target_']} itself."
            )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options = [*(key for key in parameters if key not in supplied), *known]
        for key in node:
            if key not in parameters and key not in RESERVED:
                raise unknown_key(f"{name}.{key}", options, f"{name}.")
    _check_required(node, name, parameters, supplied)
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_node(value, f"{name}.{key}")


def _check_required(
    node: Config,
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    supplied: Iterable[str],
) -> None:
    if node.get("_partial_"):
        return
    given = {*node, *supplied}
    for key, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not variadic and parameter.default is parameter.empty and key not in given:
            raise InputError(f"{name}.{key} is missing: {node['_target_']} needs it.")


def resolve_target(node: Config, name: str) -> Callable[..., Any]:
    """The function or class that `node` names. InputError without one that can be imported."""
    from hydra.utils import get_object

    if "_target_" not in node:
        raise InputError(f"{name} has no _target_: it must name the function or class to build.")
    path = node["_target_"]
    if path in LEGACY_TARGETS:
        raise InputError(f"{name}._target_={path!r} is now called {LEGACY_TARGETS[path]}.")
    try:
        target = get_object(path)
    except Exception as error:
        reason = str(error.__cause__ or error)
        raise InputError(
            f"{name}._target_={path!r} cannot be imported ({reason}). Write module.name; the "
            "module can be in the working directory or in the folder given with --config-dir."
        ) from error
    if not callable(target):
        raise InputError(f"{name}._target_={path!r} is not a function or class.")
    return target


def _is_plain(node: Config) -> bool:
    """Whether a node names code of tvf and passes it plain data, and such code uncalled."""
    return str(node["_target_"]).startswith("tvf.") and _is_data(_options_of(node))


def _options_of(node: Config) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        if "_target_" in value and value.get("_partial_") is True:  # such as an optimizer's class
            value = _options_of(value)
        return not set(RESERVED) & {*value} and all(map(_is_data, value.values()))
    if isinstance(value, list):
        return all(map(_is_data, value))
    return value is None or isinstance(value, str | int | float)


def _bind(node: Config, name: str) -> Callable[..., Any]:
    """What Hydra returns for a plain node with `_partial_`, in a tenth of its time."""
    options = {key: _bind_within(value, name) for key, value in _options_of(node).items()}
    return partial(resolve_target(node, name), **options)


def _bind_within(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _bind(value, name)
        return {key: _bind_within(item, name) for key, item in value.items()}
    return [_bind_within(item, name) for item in value] if isinstance(value, list) else value


def _instantiate(node: Config) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


def to_plain(node: "DictConfig") -> dict[str, Any]:
    """The node as plain data; InputError if a value is missing or its reference is broken."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(explain_error(error)) from error
    return values


def explain_error(error: Exception) -> str:
    """Explain an error from composing or building a config: what is wrong and what to do."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import (
        InterpolationResolutionError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )

    cause = error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: set it with {error.full_key}=..."
    for broken in (error, cause):
        if isinstance(broken, InterpolationResolutionError):
            reason, key = str(broken).splitlines()[0], broken.full_key or "an option"
            return (
                f"{key} has a broken reference ({reason}): ${{...}} names another option, such as "
                "${seed}."
            )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error}. Finished jobs are kept: free some space and rerun the command."
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return (
            f"cannot write to the output folder ({error}): choose another with hydra.run.dir= or "
            "hydra.sweep.dir=."
        )
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
        if "not in struct" in str(cause) or f"Key '{cause.key}' not in '" in str(cause):
            parent, dot, _ = (cause.full_key or "").rpartition(".")
            known = map(str, cause.parent_node)
            if parent.endswith(".options"):
                return f"{cause.full_key} is not set yet: write +{cause.full_key}=..."
            if choices := _choices_with(parent, str(cause.key)):
                group = choices[0].partition("=")[0]
                here = ", ".join(sorted(key for key in known if key not in RESERVED))
                return (
                    f"{cause.full_key} is not an option of the chosen {group}"
                    f"{f', which has {here}' if here else ''}. It is one of {', '.join(choices)}: "
                    "choose that, or leave it out."
                )
            return str(unknown_key(str(cause.full_key), known, parent + dot, OPTIONS))
    if isinstance(error, OverrideParseException):
        reason = next(iter(str(error).splitlines()[1:]), "").strip()
        return (
            f"cannot parse {error.override} ({reason}). Write key=value, and quote a value with "
            "spaces, accents or ~ twice: 'key=\"value\"'."
        )
    text = str(error).partition("\nConfig search path")[0].strip()
    return f"{text}\n{cause}" if isinstance(cause, OmegaConfBaseException) else text


def _choices_with(parent: str, key: str) -> list[str]:
    """The choices of a config group of tvf's that have the option `key` in the node `parent`."""
    parts = parent.split(".")
    lengths = range(len(parts), 0, -1)
    groups = (n for n in lengths if parent and conf_dir().joinpath(*parts[:n]).is_dir())
    depth = next(groups, 0)
    group, choices = "/".join(parts[:depth]), []
    for file in sorted((conf_dir() / group).glob("*.yaml")) if depth else ():
        text = file.read_text("utf-8")
        options = yaml.safe_load(text)
        whole = text.startswith("# @package _global_")
        for part in parts if whole else parts[depth:]:
            options = options.get(part) if isinstance(options, dict) else None
        if key in (options or ()) and f"{group}={file.stem}" not in NOT_TO_BE_CHOSEN:
            choices.append(f"{group}={file.stem}")
    return choices


def conf_dir() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
