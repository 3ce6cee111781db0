import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from helpers import small_backbone
from tvf.errors import InputError
from tvf.models.finetune import FineTuneModel, TransferModel
from tvf.training.optimizer import DiscriminativeOptimizer


def _trained(model: FineTuneModel, steps: int = 5) -> dict[str, torch.Tensor]:
    optimizer = DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001)(
        model.head_parameters(), model.unfrozen_parameters()
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
        nn.functional.cross_entropy(
            model(pixels), torch.randint(0, 3, (8,), generator=generator)
        ).backward()
        optimizer.step()
    return model.state_dict()


def _modes(model: FineTuneModel) -> dict[str, bool]:
    return {name: model.module.get_submodule(name).training for name in ("bn1", "bn2")}


@pytest.mark.parametrize("frozen_bn", ["eval", "batch"])
def test_fraction_zero_is_transfer_learning_step_for_step(frozen_bn: str) -> None:
    transfer = _trained(TransferModel(small_backbone(), frozen_bn=frozen_bn))
    zero = _trained(FineTuneModel(small_backbone(), 0.0, frozen_bn=frozen_bn))
    assert all(torch.equal(transfer[name], zero[name]) for name in zero)


def test_the_model_normalises_pixels_itself() -> None:
    backbone = small_backbone()
    model = FineTuneModel(backbone, 0.0).eval()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in (backbone.mean, backbone.std)
    )
    expected = backbone.module((pixels / 255 - mean) / std)
    assert torch.equal(model(pixels), expected)
    assert torch.equal(model(pixels.float()), expected)


def test_frozen_batchnorm_stays_in_eval_mode_whenever_the_model_trains() -> None:
    model = FineTuneModel(small_backbone(), 0.5)  # bn2 and conv2 train
    for _ in range(2):
        model.train()
        assert _modes(model) == {"bn1": False, "bn2": True}
        model.eval()
        assert _modes(model) == {"bn1": False, "bn2": False}


def test_batch_mode_trains_frozen_batchnorm_like_a_plain_loop() -> None:
    model = FineTuneModel(small_backbone(), 0.5, frozen_bn="batch").train()
    assert _modes(model) == {"bn1": True, "bn2": True}


def test_the_model_lists_every_parameter_that_trains_and_no_other() -> None:
    for pct in (0, 0.25, 0.5, 1):
        model = FineTuneModel(small_backbone(), pct)
        given = [*model.head_parameters(), *itertools.chain(*model.unfrozen_parameters())]
        training = [p for p in model.parameters() if p.requires_grad]
        assert {id(p) for p in given} == {id(p) for p in training}
        assert len(given) == len(training)


def test_head_and_backbone_have_their_own_learning_rates() -> None:
    model = FineTuneModel(small_backbone(), 0.5)
    optimizer = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.01, 0.5)(
        model.head_parameters(), model.unfrozen_parameters()
    )
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.1, 0.5),
        (0.01, 0.5),
    ]
    before = copy.deepcopy(model.state_dict())
    for parameter in itertools.chain(model.head_parameters(), *model.unfrozen_parameters()):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, lr in (("module.head.weight", 0.1), ("module.conv2.weight", 0.01)):
        torch.testing.assert_close(
            model.state_dict()[name], before[name] - lr * (1 + 0.5 * before[name])
        )


@pytest.mark.parametrize(
    "arguments",
    [{"frozen_bn": "on"}, {"frozen_bn": "recalibrate"}, {"unit": "layers"}, {"pct_unfreeze": 2.0}],
)
def test_an_option_out_of_range_raises(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError):
        FineTuneModel(small_backbone(), **{"pct_unfreeze": 0.5, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": 0.0}, {"backbone_lr": float("nan")}, {"weight_decay": -1.0}]
)
def test_a_learning_rate_out_of_range_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="optimizer"):
        DiscriminativeOptimizer(torch.optim.Adam, **{"lr": 0.1, "backbone_lr": 0.1, **wrong})


def test_an_algorithm_is_fused_if_it_supports_it() -> None:
    model = FineTuneModel(small_backbone(), 0.5)
    for algorithm, fused, found in (
        (torch.optim.Adam, True, True),
        (torch.optim.Adam, False, None),
        (torch.optim.RMSprop, True, None),
    ):
        optimizer = DiscriminativeOptimizer(algorithm, 0.1, 0.1, fused=fused)(
            model.head_parameters(), model.unfrozen_parameters()
        )
        assert optimizer.defaults.get("fused") == found
