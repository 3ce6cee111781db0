"""Cutting networks: prefix and suffix together are the full network, whatever is frozen."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from helpers import small_backbone
from tvf.frontier.split import TracedModel
from tvf.frontier.trace import TraceError
from tvf.models.batchnorm import hold_frozen_batchnorm

PIXELS = torch.randint(
    0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TORCHVISION = ["resnet18", "resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0", "vit_b_16"]
TIMM = [
    "tf_efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "mobilenetv3_small_100",
    "regnety_002",
]
# With every kind of block, but not as many of each in a row.
FEWER_BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: models.ResNet(models.resnet.Bottleneck, [2, 2, 1, 1]),
    "densenet121": lambda: models.DenseNet(32, (3, 3, 3, 3), 64),
    "vit_b_16": lambda: models.VisionTransformer(64, 16, 3, 12, 192, 768),
    "vit_tiny_patch16_224": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3),
}
FAST = ("mobilenetv3_small_100",)


class Normalized(nn.Module):
    """A network whose frozen BatchNorm layers stay in eval mode, as FineTuneModel's do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        return self.module(pixels / 255 - 0.5)

    def train(self, mode: bool = True) -> "Normalized":
        super().train(mode)
        if mode:
            hold_frozen_batchnorm(self.module)
        return self


def _whole_network(name: str) -> nn.Module:
    return timm.create_model(name) if name in TIMM else models.get_model(name)


def _network(name: str) -> Normalized:
    """Random weights, and random BatchNorm statistics, scales and shifts."""
    torch.manual_seed(0)
    network = FEWER_BLOCKS[name]() if name in FEWER_BLOCKS else _whole_network(name)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, 0, 0.1)
            nn.init.normal_(layer.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return Normalized(network)


def _boundaries(network: nn.Module) -> list[int]:
    """The number of parameters, in the order of the forward pass, before each block of layers."""
    names = [name.split(".")[:4] for name, _ in network.named_parameters()]
    return [i for i, path in enumerate(names) if i == 0 or path[:-1] != names[i - 1][:-1]]


def _patterns(network: nn.Module) -> list[list[bool]]:
    """Which parameters are frozen: all before each boundary, and random ones."""
    count, generator = len(list(network.parameters())), random.Random(0)
    patterns = [[i < boundary for i in range(count)] for boundary in _boundaries(network)]
    patterns += [
        [generator.random() < share for _ in range(count)] for share in (0.3, 0.7, 0.9, 0.97, 0.99)
    ]
    return [pattern if not all(pattern) else [*pattern[:-1], False] for pattern in patterns]


def _gradients(network: nn.Module, output: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in TORCHVISION + TIMM],
)
def test_prefix_then_suffix_is_the_network_at_every_boundary_and_for_random_patterns(
    name: str,
) -> None:
    """In eval mode outputs agree bit for bit, gradients to 1e-6; training mode is checked too."""
    network = _network(name)
    traces = {mode: TracedModel(network.train(mode), PIXELS) for mode in (True, False)}
    depths = []
    for frozen in _patterns(network):
        for parameter, freeze in zip(network.parameters(), frozen, strict=True):
            parameter.requires_grad_(not freeze)
        network.train()
        cut = traces[False].find_cut()
        depths.append(cut.depth)
        if len(depths) % 8 == 1:  # not always: it runs the network and both sides again
            traces[True].check(traces[True].find_cut(), PIXELS)
        prefix, suffix = traces[False].extract(None, cut), traces[False].extract(cut, None)
        assert prefix is not None and suffix is not None
        assert not {n for n, p in prefix.named_parameters() if p.requires_grad}
        network.eval()
        logits = network(PIXELS)
        with torch.no_grad():
            activations = prefix(PIXELS)
            assert torch.equal(suffix(*[tensor.clone() for tensor in activations]), network(PIXELS))
        assert [tuple(t.shape[1:]) for t in activations] == [layout.shape for layout in cut.layouts]
        expected = _gradients(network, logits)
        actual = _gradients(network, suffix(*activations))
        assert actual.keys() == expected.keys()
        for parameter, gradient in expected.items():
            bound = 1e-6 * gradient.abs().max()
            assert (actual[parameter] - gradient).abs().max() <= bound, parameter
    assert max(depths) > min(depths)


class Dropping(nn.Module):
    """Layers, then something random or batch-dependent, where every prefix ends, then layers."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.middle = middle
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.second(self.middle(self.first(pixels.flatten(1) / 255).relu())))


SMALL = torch.randint(
    0, 256, (5, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return timm.layers.drop_path(x, 0.5, self.training)  # type: ignore[attr-defined]


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.mean, self.var, training=self.training)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "middle",
    [
        nn.Dropout(0.5),
        Functional(),
        timm.layers.drop.DropPath(0.5),
        DropPath(),
        nn.BatchNorm1d(8),
        FunctionalNorm(),
    ],  # type: ignore[attr-defined]
    ids=lambda middle: type(middle).__name__,
)
def test_random_layers_and_batch_statistics_are_never_in_the_prefix(middle: nn.Module) -> None:
    network = Dropping(middle).train()
    state = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    cut = TracedModel(network, SMALL).find_cut()
    assert cut.layouts[0].shape == (8,) and cut.weights == 12 * 8 + 8
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())


@pytest.mark.parametrize(
    "middle", [nn.Dropout(0.0), nn.Identity(), nn.BatchNorm1d(8).eval(), nn.LayerNorm(8)]
)
def test_layers_that_are_deterministic_per_sample_are_in_the_prefix(middle: nn.Module) -> None:
    network = Dropping(middle).train()
    if isinstance(middle, nn.BatchNorm1d):
        middle.eval()
    backbone_weights = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert TracedModel(network, SMALL).find_cut().weights == backbone_weights


def test_batchnorm_that_trains_is_not_in_the_prefix_of_evaluation() -> None:
    """Even without parameters and before anything that trains: its statistics change."""
    network = Dropping(nn.BatchNorm1d(8, affine=False)).train()
    evaluation = TracedModel(network.eval(), SMALL)
    network.train()
    assert evaluation.find_cut().weights == 12 * 8 + 8


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_frozen_layers_that_mix_samples_are_an_error() -> None:
    network = Dropping(Mixing()).train()
    trace = TracedModel(network, SMALL)
    with pytest.raises(TraceError, match="mix the samples"):
        trace.check(trace.find_cut(), SMALL)


def test_a_network_that_does_not_trace_says_why() -> None:
    with pytest.raises(TraceError, match="control flow"):
        TracedModel(Dropping(Branching()).train(), SMALL)


class InPlace(nn.Module):
    """Modifies in place what the suffix reads too, which separate copies cannot reproduce."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 8), nn.Linear(8, 2)
        self.first.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.first(pixels.flatten(1) / 255)
        before = self.head(hidden)
        hidden.mul_(2)
        return before + self.head(hidden)


def test_a_prefix_and_suffix_that_do_not_reproduce_the_network_are_an_error() -> None:
    network = InPlace().train()
    trace = TracedModel(network, SMALL)
    with pytest.raises(TraceError, match="do not reproduce the full network"):
        trace.check(trace.find_cut(), SMALL)


def _cuts(counts: list[int]) -> tuple[TracedModel, dict[int, Any]]:
    """Cuts of one network, by how many of its four groups are frozen."""
    module = small_backbone().module
    network = Normalized(module)
    trace = TracedModel(network.train(), PIXELS)
    order = ["conv1", "bn1", "conv2", "bn2"]
    cuts = {}
    for count in counts:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] not in order[:count])
        network.train()
        cuts[count] = trace.find_cut()
    return trace, cuts


def test_a_deeper_cut_continues_from_a_shallower_one_found_by_its_digests() -> None:
    trace, cuts = _cuts([2, 3, 4])
    other, again = _cuts([2])
    assert again[2].digests == cuts[2].digests and again[2].fingerprint == cuts[2].fingerprint
    found = other.locate(cuts[2].digests, again[2])
    assert found is not None and found.nodes == again[2].nodes
    assert trace.continues(cuts[2], cuts[4]) and not trace.continues(cuts[4], cuts[2])
    assert trace.extract(cuts[4], cuts[2]) is None
    to_shallow = trace.extract(None, cuts[2])
    shallow_to_deep = trace.extract(cuts[2], cuts[4])
    to_deep = trace.extract(None, cuts[4])
    assert to_shallow is not None and shallow_to_deep is not None and to_deep is not None
    with torch.no_grad():
        continued = shallow_to_deep(*to_shallow(PIXELS))
        assert all(map(torch.equal, continued, to_deep(PIXELS)))
        assert len(continued) == len(to_deep(PIXELS))


def test_fingerprints_depend_on_weights_statistics_and_structure() -> None:
    def cut_fingerprint(change: Callable[[Any], object]) -> str:
        module: Any = small_backbone().module
        change(module)
        module.requires_grad_(False)
        module.head.requires_grad_(True)
        return TracedModel(Normalized(module).train(), PIXELS).find_cut().fingerprint

    original = cut_fingerprint(lambda module: None)
    assert original == cut_fingerprint(lambda module: module.head.weight.data.add_(1))
    for change in (
        lambda module: module.conv1.weight.data[0, 0, 0, 0].add_(1e-3),
        lambda module: module.bn1.running_var[0].add_(1e-3),
        lambda module: setattr(module.bn2, "eps", 1e-3),
        lambda module: setattr(module.conv2, "stride", (1, 1)),
    ):
        assert cut_fingerprint(change) != original


class StandardisedConv(nn.Conv2d):
    """As in BiT: each filter is normalised, by an operation that is made for batches of images."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return nn.functional.conv2d(input, weight, self.bias, self.stride, self.padding)


def test_statistics_of_weights_do_not_mix_the_images_of_a_batch() -> None:
    network = nn.Sequential(
        StandardisedConv(3, 4, 3), nn.ReLU(), StandardisedConv(4, 5, 3), nn.Flatten()
    )
    model = Normalized(network)
    network[0].requires_grad_(False)
    traced = TracedModel(model.train(), PIXELS)
    cut = traced.find_cut()
    assert [node.target for node in cut.nodes] == ["module.1"]
    assert cut.weights == 4 * 3 * 9 + 4
    traced.check(cut, PIXELS)
