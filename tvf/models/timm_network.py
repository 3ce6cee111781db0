"""Networks from timm: created by name, with their head and their groups found.

What a library says about a name or its weights comes first in every error, then the remedy.
"""

import difflib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from tvf.errors import InputError
from tvf.models.groups import Group, is_below

OFFLINE = "backbone=efficientnet_lite0 needs no download"
LOCAL = "local-dir:"
LOCAL_HOLDS = "config.json and the weights (model.safetensors or pytorch_model.bin)"
SHOWN = 12  # names in an error


def import_timm() -> Any:
    """Import timm without the W&B client, so that a job without a tracker does not load it.

    `timm.utils` imports wandb if it can. While it is imported, wandb is set to None in
    `sys.modules`, which makes Python raise ImportError for it, and timm works without it.
    """
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import timm
        import timm.utils
    finally:
        if hidden:
            del sys.modules["wandb"]
    return timm


def create_timm(name: str, pretrained: bool, options: Mapping[str, Any]) -> Any:
    """What `timm.create_model` makes of `name`; InputError with its reason if it cannot."""
    timm = import_timm()
    if not isinstance(name, str) or not name:
        raise InputError(f"backbone.name={name!r} must be the name of a timm network.")
    own_weights = bool({"pretrained_cfg", "pretrained_cfg_overlay"} & options.keys())
    _check_name(timm, name, pretrained, own_weights)
    checkpoint = options.get("checkpoint_path")
    if checkpoint and not os.path.isfile(os.path.expanduser(str(checkpoint))):
        raise InputError(f"backbone.options.checkpoint_path={checkpoint} must be an existing file.")

    def create() -> Any:
        return timm.create_model(name, pretrained=pretrained, **options)

    try:
        return download(name, create)
    except (TypeError, AssertionError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        given, remedy = f"backbone.name={name}", ""
        if options:
            given = f"backbone.options={dict(options)}"
            remedy = " They must be options of this network."
        elif name.startswith(LOCAL):
            remedy = f" Such a folder holds {LOCAL_HOLDS}, as timm.models.save_for_hf writes them."
        reason = _first_lines(error)
        if isinstance(error, KeyError):  # whose text is the key alone
            reason = f"{reason} is missing"
        raise InputError(f"{given}: timm cannot create {name}: {reason}.{remedy}") from error


def find_heads(
    module: Any, before: Mapping[str, nn.Parameter], name: str, num_classes: int
) -> list[str]:
    """The paths of the layers that `reset_classifier` made anew, a linear head first.

    `before` are the parameters by name before that. A distilled network has two heads, whose mean
    are its logits. Raises InputError unless there is a linear layer that returns `num_classes`.
    """
    anew = {
        path.rpartition(".")[0]
        for path, parameter in module.named_parameters()
        if parameter is not before.get(path)
    }
    classifier = module.get_classifier() if hasattr(module, "get_classifier") else None
    # A head and one for distillation; efficientformerv2 without the second has None for it.
    parts = classifier if isinstance(classifier, tuple | list) else [classifier]
    layers = [layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()]
    linear = [
        layer
        for layer in layers
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes
    ]
    fault = None
    if not linear:
        found = " and ".join(sorted(anew)) or "none"
        fault = f"its head is {found} ({type(classifier).__name__})"
    elif not hasattr(module, "group_matcher"):
        fault = "timm does not group its layers"
    if fault:
        raise InputError(
            f"backbone.name={name} must be a network with linear heads and timm's groups, but "
            f"{fault}. Choose a similar network, or build it in a function of your own: "
            "docs/your-own.md."
        )
    head = next(path for path, layer in module.named_modules() if layer is linear[0])
    return [head, *sorted(anew - {head})]


def size_remedy(module: nn.Module, image_size: int) -> str:
    """What to do about a network that does not accept images of this size."""
    made_for = (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    if not hasattr(module, "pretrained_cfg") or made_for == image_size:
        return "(224 suits most networks.)"
    remedy = f"It was made for data.image_size={made_for}"
    makers = [vars(each).get("__init__") for each in type(module).__mro__]
    if any("img_size" in inspect.signature(make).parameters for make in makers if make):
        remedy += f"; +backbone.options.img_size={image_size} adapts it to yours"
    return f"{remedy}."


def timm_groups(module: Any, heads: Sequence[str], name: str, coarse: bool) -> tuple[Group, ...]:
    """timm's groups of the parameters outside the head, deepest first."""
    from timm.models import group_parameters

    try:
        layers = group_parameters(module, module.group_matcher(coarse=coarse))
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"backbone.name={name}: timm cannot group its layers: {_first_lines(error)}. Set "
            f"backbone.coarse={str(not coarse).lower()}."
        ) from error
    groups = []
    for depth in sorted(layers, reverse=True):
        names = tuple(path for path in layers[depth] if not is_below(path, heads))
        if names:
            groups.append(Group(_common_name(names), names))
    return tuple(groups)


def download(name: str, create: Callable[[], Any]) -> Any:
    """Call `create`, which may download weights; InputError with the reason if it cannot get them.

    Without a network, or for a truncated file, libraries raise different errors.
    """
    try:
        return create()
    except RuntimeError as error:
        raise InputError(_explain_weights(name, error)) from error
    except (OSError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        remedy = (
            f"Weights are downloaded on first use, into {torch.hub.get_dir()} or the hub's cache: "
            "connect to the internet once and delete any damaged file there, or choose a backbone "
            f"that is available offline: {OFFLINE}."
        )
        if name.startswith(LOCAL):
            remedy = f"Such a folder holds {LOCAL_HOLDS}, as timm.models.save_for_hf writes them."
        raise InputError(
            f"cannot load the weights of {name} ({type(error).__name__}: {_first_lines(error)}). "
            f"{remedy}"
        ) from error


def _check_name(timm: Any, name: str, pretrained: bool, own_weights: bool) -> None:
    """Raise InputError if timm does not know the network, or no weights of this name.

    With `own_weights` the options name a file of weights.
    """
    try:
        source, _ = timm.models.parse_model_name(name)
    except ValueError as error:
        raise InputError(f"backbone.name={name!r} is not a timm network: {error}") from error
    if source:  # a hub or a folder: only timm can tell
        return
    architecture, tag = timm.models.split_model_name_tag(name)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them."
        raise InputError(f"backbone.name={name!r} is not a timm network: {hint}")
    configs = timm.models.get_arch_pretrained_cfgs(architecture)
    known = [full.partition(".")[2] for full, config in configs.items() if config.has_weights]
    if tag and configs and name not in configs:
        listed = f"its tags are {_shown(known)}" if known else "it has none"
        raise InputError(
            f"backbone.name={name}: invalid pretrained tag {tag!r}: timm has no such weights of "
            f"{architecture}; {listed}."
        )
    if pretrained and not own_weights and configs and not known:
        near = difflib.get_close_matches(architecture, timm.list_pretrained(), n=3, cutoff=0.5)
        raise InputError(
            f"backbone.name={name}: no pretrained weights exist for {architecture} in timm. Choose "
            f"another network{f', such as {_shown(near)}' if near else ''}, or set "
            "backbone.pretrained=false (random weights)."
        )


def _explain_weights(name: str, error: RuntimeError) -> str:
    text = _first_lines(error)
    if "size mismatch" in text:
        remedy = (
            "The checkpoint is of another network, or of other classes: say how many classes it "
            "has (+backbone.options.num_classes=10); the head is made anew either way"
        )
    elif "key(s) in state_dict" in text:
        remedy = "The checkpoint is of another network: name the one that it was saved from"
    elif (
        "hash value" in text
        or "Invalid magic" in text
        or "PytorchStreamReader" in text
        or "zip" in text
    ):
        remedy = f"Delete the damaged file, in {torch.hub.get_dir()} or the hub's cache"
    elif name.startswith(LOCAL):
        remedy = f"Such a folder holds {LOCAL_HOLDS}, as timm.models.save_for_hf writes them"
    else:
        remedy = f"Choose other weights, or backbone.pretrained=false; {OFFLINE}"
    return f"cannot load the weights of {name} ({type(error).__name__}: {text}). {remedy}."


def _first_lines(error: Exception, number: int = 8) -> str:
    """The text of a library's error in one line, without its end if it is long."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    more = f" ({len(lines)} lines in all)" if len(lines) > number else ""
    return (" ".join(lines[:number]) + more).rstrip(".") or type(error).__name__


def _shown(names: Sequence[str], number: int = SHOWN) -> str:
    more = f" and {len(names) - number} others" if len(names) > number else ""
    return ", ".join(names[:number]) + more


def _common_name(parameters: Sequence[str]) -> str:
    """Name the layers that hold `parameters`, by their common paths.

    blocks.3.0.weight, blocks.3.1.weight: blocks.3; blocks.6.0.weight, head.weight: blocks.6.0+head.
    """
    paths = [name.split(".")[:-1] or [name] for name in parameters]
    tops = dict.fromkeys(path[0] for path in paths)
    return "+".join(
        ".".join(os.path.commonprefix([path for path in paths if path[0] == top])) for top in tops
    )
