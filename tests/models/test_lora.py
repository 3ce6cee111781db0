"""Low-rank adapters: they begin as nothing, train alone, and end in the weights of the network."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn

from helpers import small_backbone
from tvf.errors import InputError
from tvf.frontier.split import TracedModel
from tvf.models import (
    Backbone,
    FineTuneModel,
    Group,
    LoraModel,
    TransferModel,
    describe_model,
    group_by_modules,
    load_weights,
    resnet,
    save_weights,
    timm_backbone,
)
from tvf.models.adapters import Adapter, attach, detach, full_rank, is_adaptable
from tvf.training import DiscriminativeOptimizer

PIXELS = torch.randint(
    0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def _step(model: FineTuneModel, steps: int = 1) -> None:
    """SGD steps that train every parameter that trains."""
    optimizer = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.1)(
        model.head_parameters(), model.unfrozen_parameters()
    )
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(PIXELS), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    model.eval()


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 7), (12,)),
    "tokens": (lambda: nn.Linear(12, 7), (5, 12)),
    "convolution": (lambda: nn.Conv2d(6, 8, 3, padding=1), (6, 9, 9)),
    "strided, dilated": (lambda: nn.Conv2d(6, 8, 3, 2, 2, dilation=2, bias=False), (6, 11, 11)),
    "reflecting": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (6, 9, 9)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, padding="same", groups=3), (6, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, stride=2, groups=6), (6, 9, 9)),
    "TensorFlow's padding": (lambda: Conv2dSame(6, 8, 3, stride=2), (6, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_merged_layer_computes_what_the_adapted_one_does(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, inputs = make(), torch.randn(3, *shape)
    plain = layer(inputs)
    adapter = Adapter(layer, rank=2, alpha=3.0)
    attach(layer, adapter)
    assert is_adaptable(layer)
    assert torch.equal(layer(inputs), plain)
    nn.init.normal_(adapter.up.weight, 0, 0.3)
    adapted = layer(inputs)
    assert (adapted - plain).abs().max() > 0.01
    detach(layer)
    assert torch.equal(layer(inputs), plain)
    with torch.no_grad():
        layer.weight += adapter.change().float()
    torch.testing.assert_close(layer(inputs), adapted, rtol=1e-6, atol=1e-6)


def test_no_adapter_has_a_higher_rank_than_its_layer() -> None:
    assert full_rank(nn.Linear(12, 7)) == 7
    assert full_rank(nn.Conv2d(2, 64, 3)) == 18
    assert full_rank(nn.Conv2d(6, 6, 3, groups=6)) == 1
    assert Adapter(nn.Conv2d(6, 6, 3, groups=6), rank=8, alpha=8.0).down.weight.shape == (
        6,
        1,
        3,
        3,
    )


@pytest.mark.parametrize("pct", [0.25, 0.5, 1.0])
def test_lora_without_a_step_is_the_backbone_bit_for_bit(pct: float) -> None:
    plain = FineTuneModel(small_backbone(), 0.0).eval()
    lora = LoraModel(small_backbone(), max(pct, 0.5)).eval()
    assert torch.equal(lora(PIXELS), plain(PIXELS))
    saved = lora.plain_state_dict()
    assert saved.keys() == plain.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in plain.state_dict().items())


def test_fraction_zero_is_transfer_learning_step_for_step() -> None:
    transfer, zero = TransferModel(small_backbone()), LoraModel(small_backbone(), 0.0)
    for model in (transfer, zero):
        _step(model, 3)
    own = zero.state_dict()
    assert own.keys() == transfer.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in transfer.state_dict().items())


def test_building_the_adapters_leaves_the_random_numbers_of_training_as_they_were() -> None:
    states = []
    for build in (FineTuneModel, LoraModel):
        build(small_backbone(), 0.5)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_steps_move_the_head_and_the_adapters_of_the_deepest_groups_and_nothing_else() -> None:
    model = LoraModel(small_backbone(), 0.5, rank=2)  # bn2 has no layer to adapt
    assert [group.name for group in model.trained_groups] == ["conv2"]
    before = copy.deepcopy(model.state_dict())
    _step(model, 2)
    moved = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    adapters = {"adapters.conv2.down.weight", "adapters.conv2.up.weight"}
    assert moved == {"module.head.weight", "module.head.bias"} | adapters
    given = [p for group in model.unfrozen_parameters() for p in group] + model.head_parameters()
    assert {id(p) for p in given} == {id(p) for p in model.parameters() if p.requires_grad}
    assert model.trained_names() == adapters


def test_saved_and_loaded_weights_are_an_ordinary_network_with_the_same_logits(
    tmp_path: Path,
) -> None:
    model = LoraModel(small_backbone(), 1.0, rank=2)
    _step(model, 3)
    trained = model(PIXELS)
    save_weights(model, tmp_path / "best.safetensors", 1)
    plain = FineTuneModel(small_backbone(), 0.0).eval()
    assert not torch.allclose(plain(PIXELS), trained, atol=1e-3)
    for loaded in (plain, model, LoraModel(small_backbone(), 0.5).eval()):
        load_weights(loaded, tmp_path / "best.safetensors", 1)
        torch.testing.assert_close(loaded(PIXELS), trained, rtol=1e-6, atol=1e-6)
    assert all(
        torch.equal(value, plain.state_dict()[k]) for k, value in model.plain_state_dict().items()
    )


def _hooks(model: LoraModel) -> list[str]:
    return [name for name, layer in model.module.named_modules() if layer._forward_hooks]


def test_phases_freeze_adapters_and_leave_untouched_layers_ordinary() -> None:
    model = LoraModel(small_backbone(), 1.0, rank=2)
    names = [group.name for group in model.trained_groups]
    assert names == ["conv2", "conv1"]
    model.unfreeze(1)
    assert _hooks(model) == ["conv2"]
    _step(model)
    assert model.adapters["conv1"].is_zero and not model.adapters["conv2"].is_zero
    model.unfreeze(0)  # what has been learnt stays
    assert _hooks(model) == ["conv2"]
    assert not any(p.requires_grad for p in model.adapters.parameters())


def test_the_split_at_the_frontier_is_the_whole_and_its_prefix_that_of_fine_tuning() -> None:
    example = PIXELS[:3]
    lora, whole = (
        LoraModel(small_backbone(), 0.5, dropout=0.1),
        FineTuneModel(small_backbone(), 0.5),
    )
    cuts = []
    for model in (lora, whole):
        _step(model, 2)
        trace = TracedModel(model.train(), example)
        cuts.append(trace.find_cut())
        trace.check(cuts[-1], example)
    assert cuts[0].fingerprint == cuts[1].fingerprint
    lora.load_plain_state_dict(FineTuneModel(small_backbone(), 0.0).state_dict())
    lora.unfreeze(0)
    deep = TracedModel(lora.train(), example).find_cut()
    transfer = TracedModel(TransferModel(small_backbone()).train(), example).find_cut()
    assert deep.fingerprint == transfer.fingerprint


def test_a_sibling_of_another_job_leaves_its_network_alone_and_has_the_same_frontier() -> None:
    own = FineTuneModel(small_backbone(), 0.25)
    before = own.eval()(PIXELS)
    backbone = Backbone("small", own.module, "head", small_backbone().groups)
    trace = TracedModel(own.train(), PIXELS[:3])
    LoraModel(backbone, 0.5, adapt=False).train()
    sibling = trace.find_cut()
    assert torch.equal(own.eval()(PIXELS), before)
    lora = TracedModel(LoraModel(small_backbone(), 0.5).train(), PIXELS[:3]).find_cut()
    assert sibling.fingerprint == lora.fingerprint


def _mixed() -> Backbone:
    """A convolution, 0, and two equal linear layers, 3 and 4."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.Linear(8, 8),
        nn.Linear(8, 3),
    )
    return Backbone("mixed", module, "5", group_by_modules(module, [["4"], ["3"], ["0"]]))


def test_adapters_of_equal_shape_start_differently_and_as_the_seed_says() -> None:
    def started(seed: int) -> list[Tensor]:
        backbone = _mixed()
        torch.manual_seed(seed)
        adapters: Any = LoraModel(backbone, 1.0).adapters
        return [adapters[path].down.weight for path in "34"]

    first, second = started(1)
    assert first.shape == second.shape and not torch.equal(first, second)
    assert all(map(torch.equal, started(1), [first, second]))
    assert not torch.equal(started(2)[0], first)


WEIGHTS = ("weight", "bias")


class Weighing(nn.Module):
    """Calls one layer, and only uses the weight of another."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3 * 16 * 16, 8)
        self.weighed = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.used(images.flatten(1))
        return self.head(nn.functional.linear(hidden, self.weighed.weight))


def _weighing() -> Backbone:
    torch.manual_seed(0)
    module = Weighing()
    return Backbone("weighing", module, "head", group_by_modules(module, [["weighed"], ["used"]]))


def test_layers_of_which_the_network_uses_only_the_weight_are_left_out_and_named() -> None:
    backbone = _weighing()
    model = LoraModel(backbone, 1.0)
    model.leave_out_unused(backbone, 16)
    assert [*model.adapters] == ["used"]
    assert [group.name for group in model.trained_groups] == ["used"]
    assert describe_model(model, backbone) == (
        "trains adapters of rank 8 beside 1 layer in 1 of 2 groups, 6,235 of 6,251 parameters: "
        "head 27, used 6,208; without adapter: weighed"
    )
    _step(model)
    with pytest.raises(InputError, match="calls none of the layers"):
        LoraModel(backbone := _weighing(), 0.5).leave_out_unused(backbone, 16)


def test_what_is_left_out_in_no_layer_is_named_by_its_parameter() -> None:
    module = Weighing()
    module.token = nn.Parameter(torch.zeros(1, 8))
    names = ("token", *(f"{layer}.{name}" for layer in ("weighed", "used") for name in WEIGHTS))
    backbone = Backbone("tokens", module, "head", (Group("all", names),))
    model = LoraModel(backbone, 1.0, layers="used")
    assert model.left_out == ["token", "weighed"]


def test_the_projection_in_multihead_attention_is_not_called_and_not_adapted() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert not is_adaptable(attention.out_proj)
    assert not is_adaptable(StdConv2d(4, 8, 3))
    assert is_adaptable(nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["layer4/0/conv1", "layer4/0/conv2", "layer4/0/downsample/0", "layer4/1/conv1"]),
        ({"layers": r"downsample"}, ["layer4/0/downsample/0"]),
        ({"layers": [r"1\.conv1", "downsample"]}, ["layer4/0/downsample/0", "layer4/1/conv1"]),
    ],
)
def test_layers_are_chosen_by_kind_and_by_name(options: dict[str, Any], names: list[str]) -> None:
    model = LoraModel(resnet("resnet18", num_classes=3, weights=None), 0.2, rank=1, **options)
    assert [*model.adapters][: len(names)] == names
    with pytest.raises(InputError, match="no such linear layer or convolution"):
        LoraModel(resnet("resnet18", num_classes=3, weights=None), 0.2, layers="linear")


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["linear"], ["4", "3"]),
        (["conv"], ["0"]),
        (["linear", "conv"], ["4", "3", "0"]),
        (["conv", "^3$"], ["3", "0"]),
    ],
)
def test_the_two_kinds_are_words_in_a_list_as_well(layers: list[str], names: list[str]) -> None:
    assert [*LoraModel(_mixed(), 1.0, layers=layers).adapters] == names


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"rank": 0}, "model.rank=0"),
        ({"rank": 2.5}, "model.rank=2.5"),
        ({"alpha": 0}, "model.alpha=0"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"layers": "("}, "model.layers='\\('"),
        ({"layers": []}, "model.layers=\\[\\]"),
        ({"layers": 3}, "model.layers=3"),
        ({"layers": "absent"}, "model.layers='absent'.*conv2"),
        ({"layers": ["conv", "linear"]}, "model.layers='linear'.*conv2"),
        ({"groups": ["bn1"]}, "groups bn1 have no such"),
    ],
)
def test_an_option_out_of_range_raises(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        LoraModel(small_backbone(), 0.5, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {}, 64),
        ("tf_efficientnet_lite0", {}, 64),
        ("convnext_atto", {}, 64),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}, 64),
        ("mixer_s32_224", {"img_size": 64}, 64),
    ],
)
def test_adapted_networks_split_at_the_frontier_and_merge(
    name: str, options: dict[str, Any], size: int
) -> None:
    torch.manual_seed(0)
    backbone = timm_backbone(name, num_classes=3, pretrained=False, options=options)
    model = LoraModel(backbone, 0.5, rank=2)
    model.leave_out_unused(backbone, size)
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    model.eval()
    with torch.no_grad():
        plain = model(pixels)
        for adapter in model.adapters.values():
            assert isinstance(adapter, Adapter)
            nn.init.normal_(adapter.up.weight, 0, 0.05)
        adapted = model(pixels)
        trace = TracedModel(model.train(), pixels)
        cut = trace.find_cut()
        assert cut.weights
        trace.check(cut, pixels)
        model.eval().load_plain_state_dict(model.plain_state_dict())
        merged = model(pixels)
    scale = float(adapted.abs().max())
    assert (adapted - plain).abs().max() > 1e-3 * scale
    assert (adapted - merged).abs().max() <= 1e-5 * scale


class Sharing(nn.Module):
    """Layers of which two share a weight, and one is there twice."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.tied = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)
        self.same = self.again = nn.Conv2d(6, 6, 1)
        self.other, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, num_classes)
        self.other.weight = self.tied.weight

    def forward(self, images: Tensor) -> Tensor:
        values = self.other(self.tied(self.first(images)))
        return self.head(self.again(self.same(values)).mean((2, 3)))


def test_weights_that_layers_share_are_not_adapted(tmp_path: Path) -> None:
    def build(kind: Any) -> Any:
        torch.manual_seed(0)
        net = Sharing(3)
        names = [name for name, _ in net.named_parameters() if not name.startswith("head")]
        deep = Group("deep", tuple(name for name in names if not name.startswith("first")))
        first = Group("first", tuple(name for name in names if name.startswith("first")))
        return kind(Backbone("net", net, head="head", groups=(deep, first)), 1.0)

    model = build(LoraModel)
    assert [name for group in model.trained_groups for name in group.parameters] == ["first.weight"]
    assert {"tied", "same"} <= {*model.left_out}
    _step(model, 3)
    save_weights(model, tmp_path / "best.safetensors", 1)
    plain = build(FineTuneModel)
    load_weights(plain, tmp_path / "best.safetensors", 1)
    torch.testing.assert_close(plain.eval()(PIXELS), model(PIXELS), atol=1e-5, rtol=0)
