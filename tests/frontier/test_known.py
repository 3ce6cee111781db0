"""What is known of a network when the next job traces it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import small_backbone
from helpers.devices import fabric_on
from tvf import findings
from tvf.frontier import split
from tvf.frontier.digests import NodeDigests
from tvf.frontier.known import identify
from tvf.frontier.split import TracedModel
from tvf.models.finetune import FineTuneModel

FABRIC = fabric_on("cpu")
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_findings", {})
    monkeypatch.setattr(findings, "_new", set())


def network(seed: int, fraction: float = 0.5, **options: Any) -> FineTuneModel:
    """A network of which the seed draws the head alone."""
    torch.manual_seed(0)
    model = FineTuneModel(small_backbone(), fraction, **options)
    torch.manual_seed(seed)
    for parameter in model.head_parameters():
        nn.init.normal_(parameter)
    return model.train()  # type: ignore[return-value]


def cut_of(model: FineTuneModel) -> tuple[str, ...]:
    """The digests of the model's cut."""
    trace = TracedModel(model, PIXELS, identify(FABRIC, model))
    cut = trace.find_cut()
    trace.check(cut, PIXELS)
    return cut.digests


def test_a_network_is_observed_and_checked_once_whatever_its_head_weighs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observed, original = list[nn.Module](), split.observe_nodes

    def observe(model: nn.Module, *how: Any) -> Any:
        observed.append(model)
        return original(model, *how)

    monkeypatch.setattr(split, "observe_nodes", observe)
    alone = TracedModel(network(2), PIXELS).find_cut().digests
    assert cut_of(network(1)) == alone and len(observed) == 2
    monkeypatch.setattr(NodeDigests, "_from_inputs", lambda *_: pytest.fail("it is known"))
    monkeypatch.setattr(TracedModel, "extract", lambda *_: pytest.fail("it is checked"))
    assert cut_of(network(2)) == alone and len(observed) == 2


def test_what_computes_something_else_is_another_network() -> None:
    same = identify(FABRIC, network(1))
    assert same == identify(FABRIC, network(2))
    others = [network(1, 1.0), network(1, head_dropout=0.5), network(1).eval(), network(1)]
    next(others[-1].module.parameters()).data[0] += 1
    found = {identify(FABRIC, other) for other in others}
    assert len(found) == len(others) and not found & {same, None}


class _Centred(nn.Module):
    """A head of a buffer and a linear layer."""

    def __init__(self, layer: nn.Module, mean: float) -> None:
        super().__init__()
        self.layer = layer
        self.mean = nn.Buffer(torch.tensor(mean))

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features - self.mean)


def test_digests_of_what_the_head_consists_of_are_not_remembered() -> None:
    found = []
    for mean in (0.0, 1.0):
        backbone = small_backbone()
        backbone.module.head = _Centred(backbone.module.get_submodule("head"), mean)
        model = FineTuneModel(backbone, 0.0).train()
        alone = TracedModel(model, PIXELS)
        trace = TracedModel(model, PIXELS, identify(FABRIC, model))
        cut = trace.find_cut()
        trace.check(cut, PIXELS)
        assert cut.digests == alone.find_cut().digests
        found.append(cut.digests)
    assert found[0] != found[1]


def test_of_a_network_with_hooks_nothing_is_known() -> None:
    model = network(1)
    next(iter(model.module.children())).register_forward_hook(lambda *_: None)
    assert identify(FABRIC, model) is None
    TracedModel(model, PIXELS, None)
    assert not findings._findings
