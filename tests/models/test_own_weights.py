"""backbone.checkpoint: weights of one's own, however a training script has wrapped them."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.models import check_checkpoint, load_checkpoint, timm_backbone


def small(classes: int = 2) -> nn.Module:
    return timm_backbone("test_resnet", classes, pretrained=False).module


SOURCE = small(classes=7)
STATE = SOURCE.state_dict()
HEADS = ("fc",)


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def is_loaded(module: nn.Module) -> bool:
    own = module.state_dict()
    return all(
        torch.equal(own[name], tensor) for name, tensor in STATE.items() if "fc." not in name
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (STATE, "all 90 tensors of the backbone are from .*; not used: fc.weight, fc.bias"),
        (prefixed("module."), r"\(names that begin with module.\)"),
        (prefixed("backbone."), "begin with backbone."),
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}}}, r"\(state_dict\)"),
        ({"model": prefixed("module.encoder.")}, "model, names that begin with module.encoder."),
        ({"net": {"state_dict": prefixed("_orig_mod.")}}, "net.state_dict, names"),
        (prefixed("model.") | {"proj.weight": torch.zeros(3)}, "not used: .*proj.weight"),
        ({n: t for n, t in STATE.items() if "num_batches_tracked" not in n}, "all"),
        ({n: t for n, t in STATE.items() if not n.startswith("fc.")}, "all"),
        (
            prefixed("student.") | prefixed("teacher."),
            "begin with student.*not used, but as fitting: names that begin with teacher.",
        ),
        (
            {"model_ema": prefixed("m.", {n: t * 2 for n, t in STATE.items()}), "model": STATE},
            "not used, but as fitting: model_ema, names that begin with m.: to use it, save it",
        ),
    ],
)
def test_wrappers_are_found_and_another_head_is_ignored(
    content: dict[str, Any], said: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    module = small()
    head = module.state_dict()["fc.weight"].clone()
    told = load_checkpoint(module, HEADS, str(tmp_path / "weights.pt"))
    assert is_loaded(module)
    assert torch.equal(module.state_dict()["fc.weight"], head)
    assert re.search(said, told), told


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("module."), tmp_path / "w.safetensors")
    module = small()
    load_checkpoint(module, HEADS, str(tmp_path / "w.safetensors"))
    assert is_loaded(module)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in STATE.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("conv1.0.weight"), r"Missing: conv1.0.weight\."),
        (
            without("conv1.0.weight") | {"stem.weight": torch.zeros(2)},
            "Missing: conv1.0.weight. Only in the file: .*stem.weight",
        ),
        (
            STATE | {"conv1.0.weight": torch.zeros(5, 3, 3, 3)},
            r"Not as they must be: conv1.0.weight \[5, 3, 3, 3\] instead of",
        ),
        (STATE | {"layer1.7.conv.weight": torch.zeros(2, 2)}, "It has further layers: layer1.7"),
        (STATE | {"conv1.0.weight": STATE["conv1.0.weight"] * torch.nan}, "with NaN or infinite"),
        (STATE | {"conv1.0.weight": STATE["conv1.0.weight"].to(torch.int8)}, "weight of int8"),
        (STATE | {"conv1.0.weight": STATE["conv1.0.weight"].to_sparse()}, "without plain values"),
        ({"epoch": 3}, "holds no table of tensors"),
        ([torch.zeros(2)], "holds no table of tensors"),
        (torch.zeros(2), "holds no table of tensors"),
        ({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, "more than tensors.*torch.save"),
        (SOURCE, "more than tensors.*torch.save"),
    ],
)
def test_what_does_not_fit_is_told(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    module = small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_checkpoint(module, HEADS, str(tmp_path / "weights.pt"))
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


@pytest.mark.parametrize("content", [b"not weights at all", b"abc", b""])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_damaged_file_is_told(ending: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"w.{ending}").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as weights|more than tensors"):
        load_checkpoint(small(), HEADS, str(tmp_path / f"w.{ending}"))


def test_a_place_without_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    for path, message in (
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "no.pt"), "does not exist"),
        (str(tmp_path / "x.txt"), "must end with one of .safetensors"),
        (3, "must be the path"),
    ):
        with pytest.raises(InputError, match=message):
            check_checkpoint(path)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": STATE, "x": Evil()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="more than tensors"):
        load_checkpoint(small(), HEADS, str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()
