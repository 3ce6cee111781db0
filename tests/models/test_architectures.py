"""Some of the networks of docs/backbones.md, tried as that page tries them."""

import pytest
import timm

from helpers.architectures import TIMM, TORCHVISION, try_network
from tvf.models.torchvision_network import torchvision_names

SLOW = [
    ("torchvision", "squeezenet1_1"),
    ("torchvision", "googlenet"),
    ("timm", "resnetv2_50x1_bit"),
    ("timm", "levit_128s"),
    ("timm", "pit_ti_224"),
]


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "test_resnet"),
        ("timm", "test_vit"),
        ("timm", "test_nfnet"),
        ("timm", "test_convnext2"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW),
    ],
)
def test_head_groups_frontier_and_saving_are_right(library: str, name: str) -> None:
    trial = try_network(library, name)
    assert trial.untraced is None
    assert trial.cuts[0] > trial.cuts[1] > trial.cuts[2] == 0


def test_the_page_tries_many_networks_that_exist() -> None:
    assert len(TIMM) + len(TORCHVISION) >= 60
    assert {*TORCHVISION} <= {*torchvision_names()}
    assert {*TIMM} <= {*timm.list_models()}
