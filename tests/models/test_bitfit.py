"""Biases alone, or normalisation alone: the right parameters move, and no statistics do."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers import small_backbone
from tvf.errors import InputError
from tvf.models import (
    Backbone,
    BitFitModel,
    FineTuneModel,
    NormModel,
    TransferModel,
    group_by_modules,
)
from tvf.training import DiscriminativeOptimizer

MODELS = (BitFitModel, NormModel)


def _moved(model: FineTuneModel) -> set[str]:
    """The tensors that training steps change."""
    before = copy.deepcopy(model.state_dict())
    optimizer = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.1)(
        model.head_parameters(), model.unfrozen_parameters()
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), torch.arange(8) % 3).backward()
        optimizer.step()
    return {
        name.removeprefix("module.")
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }


def test_biases_of_the_deepest_groups_move_and_nothing_else() -> None:
    head = {"head.weight", "head.bias"}
    assert _moved(BitFitModel(small_backbone(), 0.25)) == head | {"bn2.bias"}
    assert _moved(BitFitModel(small_backbone(), 0.5)) == head | {"bn2.bias", "conv2.bias"}


def test_normalisation_of_the_deepest_groups_moves_and_nothing_else() -> None:
    head = {"head.weight", "head.bias"}
    assert _moved(NormModel(small_backbone(), 0.5)) == head | {"bn2.weight", "bn2.bias"}
    both = {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}
    assert _moved(NormModel(small_backbone(), 1.0)) == head | both


@pytest.mark.parametrize("model", MODELS)
def test_statistics_stay_frozen_where_weight_or_bias_trains(model: type[FineTuneModel]) -> None:
    statistics = {"bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked"}
    trained = model(small_backbone(), 0.5)
    assert not _moved(trained) & statistics
    assert [*trained.frozen_batchnorm()] == ["bn1", "bn2"]
    assert _moved(model(small_backbone(), 0.5, frozen_bn="batch")) >= statistics
    whole = FineTuneModel(small_backbone(), 0.5)  # whose trained layers are not frozen
    assert _moved(whole) >= statistics and [*whole.frozen_batchnorm()] == ["bn1"]


@pytest.mark.parametrize("model", MODELS)
def test_fraction_zero_is_transfer_learning(model: type[FineTuneModel]) -> None:
    zero, transfer = model(small_backbone(), 0.0), TransferModel(small_backbone())
    assert _moved(zero) == _moved(transfer)
    own = zero.state_dict()
    assert all(torch.equal(own[name], value) for name, value in transfer.state_dict().items())


def test_groups_without_such_parameters_are_an_error_that_names_them() -> None:
    with pytest.raises(InputError, match="no normalisation layers to train in the groups conv2"):
        NormModel(small_backbone(), None, groups=["conv2"])


def test_a_network_without_such_parameters_is_not_told_to_unfreeze_more() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    backbone = Backbone("plain", network, "3", group_by_modules(network, [["0"]]))
    with pytest.raises(InputError, match="to train in this network: choose model=lora"):
        NormModel(backbone, 1.0)


def test_every_network_has_its_own_names_for_biases_and_normalisation() -> None:
    beit = timm.create_model("beit_base_patch16_224", depth=1, embed_dim=24, num_heads=2)
    names = BitFitModel.choose(beit)
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.norm1.bias"} <= names
    assert not any("weight" in name or "table" in name for name in names)
    assert NormModel.choose(beit) >= {"blocks.0.norm1.weight", "blocks.0.norm1.bias"}
    assert not any("mlp" in name or "attn" in name for name in NormModel.choose(beit))
    convnext = timm.create_model("convnextv2_atto")  # with global response normalisation
    assert "stages.0.blocks.0.mlp.grn.weight" in NormModel.choose(convnext)
    resnet = timm.create_model("resnet18")
    expected = {
        f"{path}.{name}"
        for path, layer in resnet.named_modules()
        if isinstance(layer, _BatchNorm)
        for name in ("weight", "bias")
    }
    assert NormModel.choose(resnet) == expected
