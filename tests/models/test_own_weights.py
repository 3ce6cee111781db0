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
from tvf.models.positions import describe_resampling, resample_positions


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


def _transformer(size: int, name: str = "test_vit") -> nn.Module:
    options = {"img_size": size}
    return timm_backbone(name, 2, pretrained=False, options=options).module


def test_position_embeddings_are_resampled_for_other_images(tmp_path: Path) -> None:
    source, module = _transformer(96), _transformer(160)
    path = tmp_path / "weights.pt"
    torch.save({"model": prefixed("module.", source.state_dict())}, path)
    said = load_checkpoint(module, ("head",), str(path))
    assert "position embeddings resampled from 6×6 to 10×10" in said
    own, before = module.get_parameter("pos_embed"), source.get_parameter("pos_embed")
    tokens = own.shape[1] - 100
    torch.testing.assert_close(own[:, :tokens], before[:, :tokens], rtol=0, atol=0)
    corners = [tokens, tokens + 9, -10, -1], [tokens, tokens + 5, -6, -1]
    for there, here in zip(*corners, strict=True):  # each is nearest to the corner it came from
        distances = (before[0, tokens:] - own[0, there]).norm(dim=1)
        assert distances.argmin() == (here - tokens) % 36 if here > 0 else here % 36
    same = load_checkpoint(_transformer(96), ("head",), str(path))
    assert "resampled" not in same


def test_positions_that_cannot_be_resampled_are_an_error(tmp_path: Path) -> None:
    state = _transformer(96).state_dict()
    state["pos_embed"] = state["pos_embed"][:, :-1]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="Position embeddings are for images of one size"):
        load_checkpoint(_transformer(160), ("head",), str(tmp_path / "weights.pt"))
    other = timm_backbone("test_vit2", 2, pretrained=False).module
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(other, ("head",), str(tmp_path / "weights.pt"))


def test_positions_of_torchvisions_transformers_and_of_windows_are_resampled() -> None:
    from torchvision.models import VisionTransformer

    module = VisionTransformer(64, 16, 1, 2, 8, 16)
    found, own = torch.randn(1, 1 + 9, 8), module.encoder.pos_embedding
    new = resample_positions(module, "encoder.pos_embedding", found, own)
    assert new is not None and new.shape == own.shape and torch.equal(new[:, 0], found[:, 0])

    class Windows(nn.Module):
        window_size = (4, 4)

    windows = Windows()
    table, own = torch.ones(25, 3), torch.zeros(49, 3)
    name = "relative_position_bias_table"
    new = resample_positions(windows, name, table, own)
    assert new is not None and new.shape == own.shape
    torch.testing.assert_close(new, torch.ones_like(own))
    assert describe_resampling(windows, name, table, own) == "windows of 3×3 to 4×4"
    assert resample_positions(windows, name, torch.ones(25, 4), own) is None
