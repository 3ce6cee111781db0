"""L2-SP pulls the unfrozen backbone towards where training started, and only that."""

from typing import Any

import pytest
import torch

from helpers import small_backbone
from tvf.errors import InputError
from tvf.models import FineTuneModel
from tvf.training import DiscriminativeOptimizer, StartingPoint

LR, STRENGTH = 0.1, 0.5


def _built(algorithm: Any = torch.optim.SGD, **options: Any) -> tuple[FineTuneModel, Any]:
    model = FineTuneModel(small_backbone(), 0.5)
    build = DiscriminativeOptimizer(algorithm, LR, LR, 0.3, l2_sp=STRENGTH, **options)
    layers = [p for group in model.unfrozen_parameters() for p in group]
    return model, StartingPoint(build, layers)


@pytest.mark.parametrize("decay_all", [True, False])
def test_a_step_is_the_one_computed_by_hand(decay_all: bool) -> None:
    model, build = _built(decay_all=decay_all)
    network: Any = model.module
    weight, bias, head = network.conv2.weight, network.conv2.bias, network.head.weight
    start, bias_start = weight.detach().clone(), bias.detach().clone()
    with torch.no_grad():  # a step or a resume has moved them since
        weight += 1.0
        bias += 1.0
    optimizer = build(model.head_parameters(), model.unfrozen_parameters())
    before, head_before = weight.detach().clone(), head.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0) if parameter.requires_grad else None
    optimizer.step()
    torch.testing.assert_close(weight, before - LR * (2.0 + STRENGTH * (before - start)))
    pull = STRENGTH if decay_all else 0.0
    torch.testing.assert_close(bias, bias_start + 1.0 - LR * (2.0 + pull * 1.0))
    torch.testing.assert_close(head, head_before - LR * (2.0 + 0.3 * head_before))


def test_without_other_gradients_the_backbone_returns_to_its_start() -> None:
    model, build = _built(torch.optim.Adam)
    network: Any = model.module
    weight = network.conv2.weight
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 0.5
    optimizer = build(model.head_parameters(), model.unfrozen_parameters())
    for _ in range(200):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), start, rtol=0, atol=0.02)


def test_the_backbone_does_not_decay_towards_zero_as_well() -> None:
    model, build = _built(torch.optim.AdamW)
    optimizer = build(model.head_parameters(), model.unfrozen_parameters())
    groups = [(g["part"], g["weight_decay"], g.get("l2_sp")) for g in optimizer.param_groups]
    assert groups == [("head", 0.3, None), ("backbone", 0.0, STRENGTH)]


def test_a_strength_out_of_range_raises() -> None:
    for wrong in (-1.0, float("nan"), "strong"):
        with pytest.raises(InputError, match="optimizer.l2_sp"):
            DiscriminativeOptimizer(torch.optim.SGD, LR, LR, l2_sp=wrong)  # type: ignore[arg-type]
