"""The images that the weights of a backbone were made for, without building the backbone."""

from collections.abc import Mapping
from typing import Any

from tvf.models.backbones import LITE_INTERPOLATION, LITE_SIZES, check_resnet
from tvf.models.timm_network import check_timm, weights_config
from tvf.models.torchvision_network import check_torchvision, made_for

TIMM = "tvf.models.timm_backbone"
RESNET = "tvf.models.resnet"
TORCHVISION = (RESNET, "tvf.models.torchvision_backbone")
UNKNOWN = 224, "bilinear"  # what most networks are made for


def images_made_for(backbone: Mapping[str, Any]) -> tuple[int, str]:
    """Pixels per side and interpolation of the images that the weights of a config's node need.

    UNKNOWN for backbones that are not tvf's own. Raises InputError for names that nobody knows.
    """
    target, name = str(backbone.get("_target_")), backbone.get("name")
    options: Mapping[str, Any] = backbone.get("options") or {}
    for number, size in enumerate(LITE_SIZES):
        if target == f"tvf.models.efficientnet_lite{number}":
            return size, LITE_INTERPOLATION
    if target in TORCHVISION:
        images = made_for(str(name), backbone.get("weights"))
        return options.get("image_size", images.image_size), images.interpolation
    if target == TIMM:
        config = weights_config(name, _is_published(backbone), options)
        size = config.get("input_size", (3, *UNKNOWN[:1]))[-1]
        return options.get("img_size", size), config.get("interpolation", UNKNOWN[1])
    return UNKNOWN


def check_library_name(backbone: Mapping[str, Any]) -> None:
    """Raise InputError if a config's node names a network, or weights, that its library lacks."""
    target, name = str(backbone.get("_target_")), backbone.get("name")
    if target == TIMM:
        check_timm(name, _is_published(backbone), backbone.get("options") or {})
    elif target in TORCHVISION:
        if target == RESNET:
            check_resnet(str(name))
        check_torchvision(str(name), backbone.get("weights"))


def _is_published(backbone: Mapping[str, Any]) -> bool:
    """Whether a node of timm loads weights that timm knows."""
    return bool(backbone.get("pretrained")) and backbone.get("checkpoint") is None
