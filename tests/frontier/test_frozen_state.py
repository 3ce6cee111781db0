"""Frozen layers with state, of any kind: held in eval mode, and the prefix is exact with them."""

import pytest
import torch
from torch import Tensor, nn

from tvf.frontier.split import TracedModel
from tvf.frontier.trace import TraceError
from tvf.models import Backbone, FineTuneModel, check_network, group_by_modules

PIXELS = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


class Running(nn.Module):
    """A layer of one's own with a running mean and a scale."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.mean = in_place, nn.Buffer(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean
        if self.training:
            mean = x.mean((0, 2, 3)).detach()
            if self.in_place:
                self.mean.mul_(0.9).add_(0.1 * mean)
            else:
                self.mean = 0.9 * self.mean + 0.1 * mean
        return (x - mean[:, None, None]) * self.scale[:, None, None]


LAYERS = {
    "instance": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "affine instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "batch without parameters": lambda: nn.BatchNorm2d(4, affine=False),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
    "own in place": lambda: Running(in_place=True),
    "own assigned": lambda: Running(in_place=False),
    "own nested": lambda: nn.Sequential(nn.Sequential(Running(in_place=True), nn.ReLU())),
}


def _model(layer: nn.Module, fraction: float) -> FineTuneModel:
    """The layer after a convolution, without a block around it: its parent holds the head."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Conv2d(4, 8, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    groups = [group for group in group_by_modules(net, [["3"], ["1"], ["0"]]) if group.parameters]
    backbone = Backbone("own", net, "6", tuple(groups))
    check_network(backbone, 16, 2)
    return FineTuneModel(backbone, fraction).train()


def _buffers(model: FineTuneModel) -> list[Tensor]:
    return [buffer.clone() for buffer in model.module.buffers()]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("fraction", [0.0, 0.34])
def test_a_frozen_layer_keeps_its_state_and_the_prefix_computes_what_the_network_does(
    name: str, fraction: float
) -> None:
    model = _model(LAYERS[name](), fraction)
    before = _buffers(model)
    model(PIXELS)
    assert all(map(torch.equal, before, _buffers(model)))
    trace = TracedModel(model, PIXELS)
    cut = trace.find_cut()
    trace.check(cut, PIXELS)
    assert cut.weights >= 4 * 3 * 9  # the convolution before the layer, at least


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_trains_moves_and_is_in_no_prefix(name: str) -> None:
    model = _model(LAYERS[name](), 1.0)
    before = _buffers(model)
    model(PIXELS)
    assert not all(map(torch.equal, before, _buffers(model)))
    try:
        assert TracedModel(model, PIXELS).find_cut().weights == 0
    except TraceError as error:  # the network runs as a whole, with a warning
        assert "own" in name and ("in place" in str(error) or "trace" in str(error))
    assert all(isinstance(buffer, Tensor) for buffer in model.module.buffers())
    model(PIXELS)


def test_a_plain_loop_keeps_updating_frozen_statistics() -> None:
    layer = nn.InstanceNorm2d(4, track_running_stats=True)
    model = _model(layer, 0.0)
    model.frozen_bn = "batch"
    model.train()(PIXELS)
    assert layer.training and layer.running_mean is not None and layer.running_mean.any()
