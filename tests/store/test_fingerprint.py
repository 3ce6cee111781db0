"""Fingerprints: equal for equal values, different for values that behave differently."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from helpers.devices import fabric_on
from tvf.data.augment import FlipsAndCrops
from tvf.store.fingerprint import (
    FingerprintError,
    fingerprint,
    fingerprint_layers,
    numeric_environment,
)


def scaled(by: float) -> Callable[[float], float]:
    return lambda value: value * by


def with_default(by: float) -> Callable[..., float]:
    def scale(value: float, by: float = by) -> float:
        return value * by

    return scale


LAMBDAS = [lambda value: value + 1, lambda value: value + 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled(1), scaled(2)),
        (with_default(1), with_default(2)),
        LAMBDAS,
        (partial(scaled, 1), partial(scaled, 2)),
        ({"a": 1}, {"a": True}),
        ([1, [2, 3]], [[1, 2], 3]),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (FlipsAndCrops(horizontal=0.1), FlipsAndCrops(horizontal=0.2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_behave_differently_have_different_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_attributes_that_are_not_dataclass_fields_count() -> None:
    class Shifted(FlipsAndCrops):
        def __init__(self, by: int) -> None:
            super().__init__()
            object.__setattr__(self, "by", by)

    assert "by" not in {field.name for field in dataclasses.fields(Shifted)}
    assert fingerprint(Shifted(1)) == fingerprint(Shifted(1)) != fingerprint(Shifted(2))


def test_the_code_of_a_base_class_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base class is in another file; only that file changes."""
    monkeypatch.syspath_prepend(tmp_path)

    def fingerprint_with(base: str) -> str:
        (tmp_path / "base_of_layer.py").write_text(
            f"from torch import nn\nclass Base(nn.Module):\n    by = {base}\n"
        )
        (tmp_path / "layer_on_base.py").write_text(
            "import base_of_layer\nclass Layer(base_of_layer.Base):\n    pass\n"
        )
        for name in ("base_of_layer", "layer_on_base"):
            sys.modules.pop(name, None)
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        return fingerprint(sys.modules["layer_on_base"].Layer())

    assert fingerprint_with("1") == fingerprint_with("1") != fingerprint_with("22")


def test_a_value_whose_behaviour_is_not_in_its_content_raises() -> None:
    for value in (object(), iter([])):
        with pytest.raises(FingerprintError, match="does not follow from its content"):
            fingerprint(value)
    layer = nn.Linear(1, 1)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(FingerprintError, match="hooks"):
        fingerprint(layer)


def test_a_traced_module_is_known_by_its_code_its_layers_and_its_functions() -> None:
    class Net(nn.Module):
        def __init__(self, function: Any, weight: float) -> None:
            super().__init__()
            self.layer, self.function = nn.Linear(1, 1), function
            nn.init.constant_(self.layer.weight, weight)
            nn.init.zeros_(self.layer.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(self.layer(x))

    def traced(*options: Any) -> str:
        return fingerprint(fx.symbolic_trace(Net(*options)))

    assert traced(torch.relu, 1) == traced(torch.relu, 1)
    assert len({traced(torch.relu, 1), traced(torch.sigmoid, 1), traced(torch.relu, 2)}) == 3


def test_layers_fingerprint_ignores_the_part_left_out() -> None:
    def network(first: float, last: float) -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
        for value, layer in zip((first, last), net, strict=True):
            for parameter in layer.parameters():
                nn.init.constant_(parameter, value)
        return net

    key = fingerprint_layers(network(1, 1), without=["1"])
    assert (
        key
        == fingerprint_layers(network(1, 2), without=["1"])
        != fingerprint_layers(network(2, 1), without=["1"])
    )
    assert fingerprint_layers(network(1, 1), without=[]) != key


def test_processors_of_another_model_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = fabric_on("cpu")
    before = numeric_environment(fabric, [])
    assert before == numeric_environment(fabric, [])
    globals_ = numeric_environment.__globals__  # the module's name is that of a function too
    monkeypatch.setitem(globals_, "processor_model", lambda: "Another One 9000")
    assert fingerprint(numeric_environment(fabric, [])) != fingerprint(before)
