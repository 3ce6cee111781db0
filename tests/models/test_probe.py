"""A probe reads the pooled outputs of all groups, joined, and only its head trains."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers import SmallNet, small_backbone
from tvf.errors import InputError
from tvf.frontier.split import TracedModel
from tvf.models import (
    Backbone,
    FineTuneModel,
    ProbeModel,
    group_by_modules,
    load_initial_weights,
    load_weights,
    save_weights,
    timm_backbone,
)

PIXELS = torch.randint(
    0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def _pooled_by_hand(pixels: Tensor) -> Tensor:
    """The outputs of conv1, bn1 and conv2, and what the head reads: bn2, rectified."""
    model = FineTuneModel(small_backbone(), 0.0).eval()
    network = model.module
    assert isinstance(network, SmallNet)
    first = network.conv1((pixels / 255 - model.mean) / model.std)
    normed = network.bn1(first)
    second = network.conv2(normed.relu())
    last = network.bn2(second).relu()
    maps = [first, normed, second, last]
    return torch.cat([each.mean((2, 3)) / each.shape[1] ** 0.5 for each in maps], 1)


def _probe() -> ProbeModel:
    return ProbeModel(small_backbone(), image_size=16)


def test_the_head_reads_the_pooled_outputs_of_all_groups_joined() -> None:
    model = _probe().eval()
    widths = {"conv1": 4, "bn1": 4, "conv2": 8, "input of the head": 8}
    assert model.module.widths == widths and model.module.head.in_features == 24
    expected = model.module.head(_pooled_by_hand(PIXELS))
    torch.testing.assert_close(model(PIXELS), expected, rtol=1e-6, atol=1e-6)


def test_only_the_head_trains_and_the_backbone_is_the_same_in_both_modes() -> None:
    model = _probe()
    assert model.trained_groups == () and model.pct_unfreeze == 0
    trains = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trains == ["module.head.weight", "module.head.bias"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model.train()(PIXELS)
    assert torch.equal(logits, model.eval()(PIXELS))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_frontier_is_after_the_join() -> None:
    model = _probe().train()
    trace = TracedModel(model, PIXELS)
    (layout,) = trace.find_cut().layouts
    assert layout.shape == (24,)
    trace.check(trace.find_cut(), PIXELS)


def test_what_is_saved_loads_into_a_network_without_its_weights(tmp_path: Path) -> None:
    model, file = _probe().eval(), tmp_path / "best.safetensors"
    save_weights(model, file, 1)
    other = _probe().eval()
    nn.init.normal_(other.module.head.weight)
    assert other.head_is_new and not torch.equal(other(PIXELS), model(PIXELS))
    load_weights(other, file, 1)
    assert torch.equal(other(PIXELS), model(PIXELS)) and not other.head_is_new
    assert torch.equal(copy.deepcopy(model)(PIXELS), model(PIXELS))


@pytest.mark.parametrize("from_probe", [True, False])
def test_probes_and_other_models_do_not_start_from_each_other(
    tmp_path: Path, from_probe: bool
) -> None:
    models: list[FineTuneModel] = [_probe(), FineTuneModel(small_backbone(), 0.0)]
    source, target = models if from_probe else models[::-1]
    file = tmp_path / "best.safetensors"
    save_weights(source, file, 1)
    heads = [f"module.{head}" for head in target.heads]
    with pytest.raises(InputError, match="model=probe starts from a probe's weights"):
        load_initial_weights(target, str(file), *heads)


def test_tokens_are_averaged_and_the_layers_stay_those_of_the_network() -> None:
    backbone = timm_backbone("vit_tiny_patch16_224", 3, False, options={"img_size": 32, "depth": 2})
    model = ProbeModel(backbone, image_size=32)
    assert {*model.module.widths.values()} == {192} and len(model.module.widths) > 2
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    own = {id(parameter) for parameter in backbone.module.parameters()}
    assert {id(p) for p in model.module.backbone.parameters()} <= own


class Untraceable(SmallNet):
    """Its code asks for a value."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > -1e9 else images.abs())


def test_a_network_that_cannot_be_traced_is_named_with_the_reason() -> None:
    network = Untraceable()
    groups = group_by_modules(network, [["bn2"], ["conv2"], ["bn1"], ["conv1"]])
    with pytest.raises(InputError, match="trace backbone own for .*Choose another backbone"):
        ProbeModel(Backbone("own", network, "head", groups), image_size=16)


class Functional(nn.Module):
    """Uses its layers' weights without calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.conv2d(images, self.conv.weight, self.conv.bias).mean((2, 3))
        return nn.functional.linear(hidden, self.head.weight, self.head.bias)


def test_a_network_without_outputs_to_read_is_an_error() -> None:
    network = Functional()
    backbone = Backbone("own", network, "head", group_by_modules(network, [["conv"]]))
    with pytest.raises(InputError, match="must find outputs of groups in backbone own"):
        ProbeModel(backbone, image_size=16)
