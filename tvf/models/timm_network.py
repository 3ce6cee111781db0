"""Networks from timm: created by name, with their head and their groups found.

What a library says about a name or its weights comes first in every error, then the remedy.
"""

import difflib
import inspect
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tvf.errors import InputError
from tvf.models.download import LOCAL, LOCAL_HOLDS, download, first_lines
from tvf.models.found_groups import find_groups, name_groups, use_order
from tvf.models.groups import Group, is_below

log = logging.getLogger(__name__)

SHOWN = 12  # names in an error
OWN_WEIGHTS = {"pretrained_cfg", "pretrained_cfg_overlay"}  # options that name other weights


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
    check_timm(name, pretrained, options)
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
        reason = first_lines(error)
        if isinstance(error, KeyError):  # whose text is the key alone
            reason = f"{reason} is missing"
        raise InputError(f"{given}: timm cannot create {name}: {reason}.{remedy}") from error


def weights_config(name: Any, pretrained: bool, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What timm says of the weights that `create_timm` would load: input_size, interpolation, mean.

    Loads none. InputError for a name that timm does not know.
    """
    timm = import_timm()
    chosen = {key: value for key, value in options.items() if key in OWN_WEIGHTS}
    check_timm(name, pretrained, options)
    if ":" not in name and not chosen:
        return timm.get_pretrained_cfg(name).to_dict()
    options = {key: value for key, value in options.items() if key != "checkpoint_path"}
    with torch.device("meta"):  # a hub or a folder knows its own
        return create_timm(name, False, options).pretrained_cfg


def find_heads(
    module: Any, before: Mapping[str, nn.Parameter], name: str, num_classes: int
) -> list[str]:
    """The paths of the layers that `reset_classifier` made anew, the last layer first.

    `before` are the parameters by name before that. A distilled network has two heads, whose mean
    are its logits. Raises InputError unless there is a linear layer, or a convolution, that returns
    `num_classes`.
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
    last = [layer for layer in layers if outputs(layer) == num_classes]
    if not last:
        found = " and ".join(sorted(anew)) or "none"
        raise InputError(
            f"backbone.name={name} must be a network with a linear head, but its head is {found} "
            f"({type(classifier).__name__}). Choose a similar network, or build it in a function "
            "of your own: docs/your-own.md."
        )
    head = next(path for path, layer in module.named_modules() if layer is last[0])
    return [head, *sorted(anew - {head})]


def outputs(layer: nn.Module) -> int | None:
    """How many values a linear layer or a convolution returns for an image, or a place in it."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


class PooledNetwork(nn.Module):
    """A network that returns features, with a linear head on their mean over the image.

    For networks that are published without a classifier, and cannot be given one by their library.
    """

    def __init__(self, features: Any, name: str, num_classes: int) -> None:
        super().__init__()
        self.features, self.pretrained_cfg = features, features.pretrained_cfg
        size = features.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
        try:
            with torch.no_grad():
                found = features.eval()(torch.zeros(1, 3, size, size))
        except Exception as error:  # a network's code can raise anything
            raise InputError(
                f"backbone.name={name} is no network for images alone: {first_lines(error)}."
            ) from error
        if not isinstance(found, torch.Tensor) or found.dim() not in (2, 3, 4):
            raise InputError(
                f"backbone.name={name} must return logits, or features of the image, but returns "
                f"a {type(found).__name__}. Remove the option that changes that."
            )
        width = getattr(features, "num_features", None)
        channels = 1 if found.dim() == 4 and found.shape[-1] != width else found.dim() - 1
        self.places = tuple(dim for dim in range(1, found.dim()) if dim != channels)
        self.head = nn.Linear(found.shape[channels], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, num_classes] of images [N, 3, H, W]."""
        features = self.features(images)
        return self.head(features.mean(self.places) if self.places else features)


def takes_image_size(module: nn.Module) -> bool:
    """Whether timm can make the network for images of another size: its option is img_size."""
    makers = [vars(each).get("__init__") for each in type(module).__mro__]
    return any("img_size" in inspect.signature(make).parameters for make in makers if make)


def timm_groups(
    name: str, module: Any, heads: Sequence[str], size: int, coarse: bool
) -> tuple[Group, ...]:
    """The groups of the parameters outside the head, deepest first.

    timm's own, or where it has none those that a pass over images of `size` pixels finds.
    """
    from timm.models import group_parameters

    try:
        if not hasattr(module, "group_matcher"):
            raise NotImplementedError("it has no groups")
        layers = group_parameters(module, module.group_matcher(coarse=coarse))
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        log.info(
            "timm does not group the layers of %s (%s): its modules are the groups, in the order "
            "in which they run.",
            name,
            first_lines(error),
        )
        return find_groups(module, heads, use_order(module, torch.zeros(1, 3, size, size)))
    found = [
        [path for path in layers[depth] if not is_below(path, heads)]
        for depth in sorted(layers, reverse=True)
    ]
    return name_groups([names for names in found if names])


def check_timm(name: Any, pretrained: bool, options: Mapping[str, Any]) -> None:
    """Raise InputError if timm does not know the network, or no weights of this name.

    Reaches for nothing that is not installed: only `create_timm` can tell whether a hub knows it.
    """
    timm = import_timm()
    own_weights = bool(OWN_WEIGHTS & options.keys())  # a file of weights
    if not isinstance(name, str) or not name:
        raise InputError(f"backbone.name={name!r} must be the name of a timm network.")
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


def _shown(names: Sequence[str], number: int = SHOWN) -> str:
    more = f" and {len(names) - number} others" if len(names) > number else ""
    return ", ".join(names[:number]) + more
