"""The images that the weights of a backbone were made for, without building the backbone."""

from collections.abc import Mapping
from typing import Any

from tvf.models.backbones import LITE_INTERPOLATION, LITE_SIZES
from tvf.models.timm_network import weights_config
from tvf.models.torchvision_network import made_for

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
    if target in ("tvf.models.resnet", "tvf.models.torchvision_backbone"):
        images = made_for(str(name), backbone.get("weights"))
        return options.get("image_size", images.image_size), images.interpolation
    if target == "tvf.models.timm_backbone":
        published = bool(backbone.get("pretrained")) and backbone.get("checkpoint") is None
        config = weights_config(name, published, options)
        size = config.get("input_size", (3, *UNKNOWN[:1]))[-1]
        return options.get("img_size", size), config.get("interpolation", UNKNOWN[1])
    return UNKNOWN
