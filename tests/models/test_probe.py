"""The probe of all depths: what its head reads, what trains, and where its frontier is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import small_backbone
from tvf.errors import InputError
from tvf.frontier.split import TracedModel
from tvf.models import Backbone, ProbeModel, group_by_modules, timm_backbone
from tvf.models.probe import output_layers, pooled_dimensions

PIXELS = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1))


class Dropping(nn.Module):
    """A network that drops activations in training, and lets a group's output be a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.pair = Pair()
        self.deep = nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        first, _ = self.pair(self.stem(images))
        return self.classifier(self.drop(self.deep(first.mean((2, 3)))))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 1)

    def forward(self, hidden: Tensor) -> tuple[Tensor, int]:
        return self.one(hidden) * 2, 3


def dropping() -> Backbone:
    module = Dropping()
    groups = group_by_modules(module, [["deep"], ["pair"], ["stem"]])
    return Backbone("dropping", module, "classifier", groups)


def read_by_hand(backbone: Backbone, images: Tensor) -> Tensor:
    """Each group's pooled output, the deepest one left out for what the head reads."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs, output: seen.update(
            {name: inputs[0] if name == "head" else output}
        )

    for name in ("conv1", "bn1", "conv2", "head"):
        backbone.module.get_submodule(name).register_forward_hook(keep(name))
    backbone.module.eval()((images / 255 - 0.5) / 0.25)
    pooled = [seen[name].mean((2, 3)) for name in ("conv1", "bn1", "conv2")] + [seen["head"]]
    return torch.cat([each / each.shape[1] ** 0.5 for each in pooled], 1)


def test_the_head_reads_the_pooled_outputs_of_all_groups() -> None:
    backbone = small_backbone()
    backbone = Backbone("small", backbone.module, "head", backbone.groups, mean=[0.5], std=[0.25])
    model = ProbeModel(backbone, 16).eval()
    assert [width for _, width in model.probe.depths.values()] == [4, 4, 8, 8]
    features = read_by_hand(small_backbone(), PIXELS.float())
    torch.testing.assert_close(model(PIXELS), model.probe.head(features))
    assert backbone.module.get_submodule("head") is not model.probe.head  # is left as it was
    assert not isinstance(backbone.module.get_submodule("head"), nn.Identity)


def test_only_the_head_trains_and_the_frontier_is_its_input() -> None:
    model = ProbeModel(small_backbone(), 16)
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trains == {"module.head.weight", "module.head.bias"}
    cut = TracedModel(model.train(), PIXELS.float()).find_cut()
    assert cut is not None and [layout.shape for layout in cut.layouts] == [(24,)]


def test_the_network_is_never_in_training_mode() -> None:
    model = ProbeModel(dropping(), 16).train()
    assert torch.equal(model(PIXELS), model(PIXELS))
    assert [*model.probe.depths] == ["stem", "pair", "head"]


def test_a_probe_of_a_transformer_pools_its_tokens() -> None:
    backbone = timm_backbone("test_vit", 2, pretrained=False)
    model = ProbeModel(backbone, 160).eval()
    assert {(1,), ()} <= {dimensions for dimensions, _ in model.probe.depths.values()}
    assert model(torch.zeros(2, 3, 160, 160)).shape == (2, 2)


def test_a_network_that_cannot_be_traced_is_an_error() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.body(images.mean((2, 3)))
            return self.head(-hidden if hidden.sum() > 0 else hidden)

    module = Branching()
    backbone = Backbone("mine", module, "head", group_by_modules(module, [["body"]]))
    with pytest.raises(InputError, match=r"model=probe needs a network that torch.fx .* mine is"):
        ProbeModel(backbone, 16)
    assert isinstance(module.head, nn.Linear)


@pytest.mark.parametrize(
    ("shape", "dimensions"),
    [
        ((2, 8, 3, 3), (2, 3)),
        ((2, 7, 7, 96), (1, 2)),
        ((2, 5, 8), (1,)),
        ((2, 8), ()),
        ((2,), None),
    ],
)
def test_maps_and_tokens_are_pooled_over_their_places(
    shape: tuple[int, ...], dimensions: tuple[int, ...] | None
) -> None:
    assert pooled_dimensions(torch.zeros(shape)) == dimensions
    assert pooled_dimensions(torch.zeros(shape, dtype=torch.long)) is None


def test_a_groups_output_is_among_its_largest_layers() -> None:
    backbone = dropping()
    assert [output_layers(backbone.module, group) for group in backbone.groups] == [
        ["deep"],
        ["pair"],
        ["stem"],
    ]
