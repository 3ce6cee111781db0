"""torchvision's classifiers: any of them, with a new last layer and groups that are found."""

import re

import pytest
import torch
from torch import nn

from tvf.errors import InputError
from tvf.models import Backbone, check_network, images_made_for, resnet, torchvision_backbone
from tvf.models.torchvision_network import torchvision_names

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make(name: str, classes: int = 3) -> Backbone:
    with torch.device("meta"):
        return torchvision_backbone(name, classes, weights=None)


@pytest.mark.parametrize(
    ("name", "head", "form", "names"),
    [
        ("alexnet", "classifier.6", nn.Linear, ["classifier", "features.10", "features.0"]),
        ("squeezenet1_1", "classifier.1", nn.Conv2d, ["features.12", "features.11", "features.0"]),
        (
            "convnext_tiny",
            "classifier.2",
            nn.Linear,
            ["features.7+classifier.0", None, "features.0"],
        ),
        pytest.param(
            *("densenet121", "classifier", nn.Linear),
            [None, None, "features.conv0+features.norm0"],
            marks=pytest.mark.slow,
        ),
        ("googlenet", "fc", nn.Linear, ["inception5b", "inception5a", "conv1"]),
        (
            "vit_b_32",
            "heads.head",
            nn.Linear,
            [None, None, "conv_proj+class_token+encoder.pos_embedding"],
        ),
        ("resnet18", "fc", nn.Linear, ["layer4", "layer3", "conv1"]),
    ],
)
def test_the_last_layer_is_new_and_groups_are_in_the_order_of_the_graph(
    name: str, head: str, form: type[nn.Module], names: list[str | None]
) -> None:
    backbone = make(name)
    assert backbone.head == head
    assert isinstance(backbone.module.get_submodule(head), form)
    found = [group.name for group in backbone.groups]
    for expected, group in zip(names, [found[0], found[1], found[-1]], strict=True):
        assert expected in (None, group)
    with torch.device("meta"):
        size = backbone.image_size or 224
        assert backbone.module(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_a_resnet_has_the_groups_of_its_own_backbone() -> None:
    own = resnet("resnet18", 2, weights=None)
    assert make("resnet18").groups == own.groups


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out_and_it_is_said(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In training mode torchvision's own return a tuple with their logits."""
    caplog.set_level("INFO")
    backbone = torchvision_backbone(name, 3, weights=None)
    assert f"{name}: its auxiliary classifiers, and their loss, are left out." in caplog.text
    assert not [path for path, _ in backbone.module.named_parameters() if "aux" in path.lower()]
    check_network(backbone, 96, 3)
    # With weights, torchvision's code converts the pixels to this scale; here the buffers do.
    assert (tuple(backbone.mean), tuple(backbone.std)) == ((0.5,) * 3, (0.5,) * 3)
    assert backbone.module.transform_input is False


@pytest.mark.parametrize(
    ("name", "size", "how", "scale"),
    [
        ("swin_v2_t", 256, "bicubic", IMAGENET),
        pytest.param(
            *("efficientnet_v2_l", 480, "bicubic", ((0.5,) * 3, (0.5,) * 3)),
            marks=pytest.mark.slow,
        ),
        ("mobilenet_v2", 224, "bilinear", IMAGENET),
    ],
)
def test_images_are_those_of_the_weights(name: str, size: int, how: str, scale: tuple) -> None:
    backbone = make(name)
    assert (backbone.image_size, backbone.interpolation) == (size, how)
    assert (tuple(backbone.mean), tuple(backbone.std)) == scale
    node = {"_target_": "tvf.models.torchvision_backbone", "name": name, "weights": None}
    assert images_made_for(node) == (size, how)


@pytest.mark.parametrize(
    ("weights", "pretrained", "size"),
    [("IMAGENET1K_SWAG_E2E_V1", False, 384), ("DEFAULT", False, 224), (None, True, 224)],
)
def test_a_network_built_without_its_weights_takes_images_of_their_size(
    weights: str | None, pretrained: bool, size: int
) -> None:
    """As it is when a trained model is loaded, or a checkpoint."""
    with torch.device("meta"):
        backbone = torchvision_backbone("vit_b_16", 2, weights, pretrained=pretrained)
    assert backbone.image_size == size
    node = {"_target_": "tvf.models.torchvision_backbone", "name": "vit_b_16", "weights": weights}
    assert images_made_for(node)[0] == size


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet_v4", {}, "'mobilenet_v4' is not a classifier.*did you mean mobilenet_v"),
        ("fcn_resnet50", {}, "is not a classifier of torchvision"),
        ("vgg16", {"weights": "V9"}, "backbone.weights=V9 must be one of IMAGENET1K_V1"),
        ("vgg16", {"options": {"img_size": 3}}, "backbone.options=.*cannot create vgg16"),
    ],
)
def test_mistakes_are_told_before_anything_is_downloaded(
    name: str, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        torchvision_backbone(name, 2, **{"weights": None, **options})


def test_all_classifiers_of_torchvision_are_offered() -> None:
    names = torchvision_names()
    assert len(names) >= 80
    assert not [name for name in names if re.search("rcnn|deeplab|raft|r3d|quantized", name)]
