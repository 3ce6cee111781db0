"""What a network returns is looked at before it trains, in both modes; so is what it changes."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.models import Backbone, check_network, group_by_modules
from tvf.models.batchnorm import has_state

Outputs = namedtuple("Outputs", "logits aux")


class Network(nn.Module):
    """A network of one's own whose logits are changed by `finish`."""

    def __init__(self, finish: Callable[[nn.Module, Tensor], Any], outputs: int = 2) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.fc, self.finish = nn.Linear(4, outputs), finish

    def forward(self, images: Tensor) -> Any:
        hidden = self.drop(self.norm(self.pool(self.conv(images)).flatten(1)))
        return self.finish(self, self.fc(hidden))


def _backbone(finish: Callable[[nn.Module, Tensor], Any], outputs: int = 2) -> Backbone:
    net = Network(finish, outputs)
    return Backbone("own", net, "fc", group_by_modules(net, [["norm"], ["conv"]]))


def test_logits_pass_and_the_check_leaves_no_trace() -> None:
    backbone = _backbone(lambda net, logits: logits)
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    state = torch.get_rng_state()
    check_network(backbone, 16, 2)
    after = backbone.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(state, torch.get_rng_state()) and backbone.module.training


@pytest.mark.parametrize(
    ("finish", "outputs", "message"),
    [
        (
            lambda net, y: y,
            1000,
            "in eval mode it has 1000 outputs for 2 classes. Replace its last",
        ),
        (
            lambda net, y: Outputs(y, y) if net.training else y,
            2,
            r"in training mode it returns a Outputs \(logits: a tensor \[2, 2\]",
        ),
        (lambda net, y: {"logits": y}, 2, r"in eval mode it returns a dict \(logits: "),
        (lambda net, y: [y, y], 2, "returns a list"),
        (lambda net, y: None, 2, "returns nothing"),
        (lambda net, y: y.argmax(1), 2, "of int64. Return the scores of the classes"),
        (lambda net, y: y.squeeze(), 2, r"a tensor \[2\] of float32. Keep the batch"),
        (lambda net, y: y[..., None, None], 2, r"a tensor \[1, 2, 1, 1\].*flatten\(1\)"),
        (lambda net, y: y.repeat(2, 1), 2, r"a tensor \[2, 2\].*Pool and flatten"),
        (lambda net, y: y.softmax(1), 2, "returns probabilities, which add up to 1"),
        (lambda net, y: y.detach(), 2, "has no gradient"),
        (lambda net, y: y + 0j, 2, "of complex64. Return real numbers"),
        (lambda net, y: y > 0, 2, "of bool. Return the scores of the classes"),
        (
            lambda net, y: y.mean(0, keepdim=True),
            2,
            r"in eval mode .*\[1, 2\].* for 2 images. Return",
        ),
        (lambda net, y: y[:1] if net.training else y, 2, r"in training .*for 2 images. Return one"),
        (lambda net, y: y / 0, 2, "returns (inf|-inf|nan) for finite images in eval"),
        (lambda net, y: y * (y - y).log(), 2, "returns (inf|-inf|nan) for finite images in eval"),
        (
            lambda net, y: y * float("nan") if net.training else y,
            2,
            r"returns nan for finite images in training mode \(4 of 4 logits\)",
        ),
        (
            lambda net, y: net.missing if net.training else y,
            2,
            "fails in training mode: AttributeError.*test_network_check.*TVF_DEBUG=1",
        ),
        (
            lambda net, y: net.fc(y) if net.training else y,
            2,
            "fails in training mode: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            lambda net, y: y.missing,
            2,
            r"does not accept images.*AttributeError.*test_network_check",
        ),
    ],
)
def test_every_other_output_is_named_with_the_remedy(
    finish: Callable[[nn.Module, Tensor], Any], outputs: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_network(_backbone(finish, outputs), 16, 2)


def test_auxiliary_logits_of_googlenet_are_named() -> None:
    from torchvision.models import googlenet

    net = googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=2)
    names = [name for name, layer in net.named_children() if [*layer.parameters()]]
    groups = group_by_modules(net, [[name] for name in reversed(names) if name != "fc"])
    with pytest.raises(InputError, match="in training mode it returns a GoogLeNetOutputs"):
        check_network(Backbone("own", net, "fc", groups), 48, 2)


@pytest.mark.parametrize("head", ["", "nowhere", "pool"])
def test_a_head_that_is_no_layer_with_parameters_is_an_error(head: str) -> None:
    net = Network(lambda net, logits: logits)
    with pytest.raises(InputError, match=f"its head '{head}' must be the path of a layer"):
        Backbone("own", net, head, group_by_modules(net, [["fc"], ["norm"], ["conv"]]))


class Running(nn.Module):
    """Subtracts a running mean, which training updates in the way that `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.mean, self.count = how, nn.Buffer(torch.ones(1)), 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if self.how == "in place":
                self.mean.mul_(0.9).add_(0.1 * x.mean().detach())
            elif self.how == "assigned":
                self.mean = 0.9 * self.mean + 0.1 * x.mean().detach()
            else:
                self.count += 1
        return x - self.mean


@pytest.mark.parametrize("how", ["in place", "assigned", "counted"])
def test_layers_that_training_changes_are_found_and_restored(how: str) -> None:
    layer = Running(how)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), layer, nn.Flatten(), nn.Linear(2 * 14 * 14, 2))
    before = layer.mean
    check_network(Backbone("own", net, "3", group_by_modules(net, [["0"]])), 16, 2)
    assert [name for name, other in net.named_modules() if has_state(other)] == ["1"]
    assert layer.mean is before and float(layer.mean) == 1 and layer.count == 0


def test_a_network_that_divides_by_an_images_contrast_passes() -> None:
    """Black images have none, photographs do."""
    backbone = _backbone(lambda net, logits: logits)
    backbone.module.conv.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda layer, inputs: (inputs[0] / inputs[0].std((1, 2, 3), keepdim=True),)
    )
    check_network(backbone, 16, 2)


class Growing(nn.Module):
    """Registers a buffer and a layer when it first runs, and then fails in the mode `fails`."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(1))
            self.extra = nn.ReLU()
        if self.fails == ("training" if self.training else "eval"):
            raise ValueError("not today")
        return self.extra(x)


@pytest.mark.parametrize("fails", ["eval", "training", "never"])
def test_what_a_forward_registers_is_gone_after_the_check(fails: str) -> None:
    layer = Growing(fails)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), layer, nn.Flatten(), nn.Linear(2 * 14 * 14, 2))
    backbone = Backbone("own", net, "3", group_by_modules(net, [["0"]]))
    if fails == "never":
        check_network(backbone, 16, 2)
    else:
        with pytest.raises(InputError, match="not today"):
            check_network(backbone, 16, 2)
    assert not [*layer.buffers(), *layer.children()] and net.training
