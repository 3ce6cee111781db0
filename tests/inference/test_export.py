"""Exported files: the original's probabilities, what they carry, and what cannot be exported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvf
from helpers import ROOT
from helpers.classifier import train_classifier
from helpers.folders import write_images
from tvf.errors import InputError
from tvf.inference import export_model
from tvf.inference.exported import load_exported
from tvf.inference.model import Model

FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    network = ("backbone=resnet18", "backbone.weights=null")
    job = train_classifier(images, tmp_path_factory.mktemp("jobs") / "job", backbone=network)
    return tvf.load(job)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(("layout", "raw"), [("nhwc", False), ("nchw", True)])
def test_an_exported_file_gives_the_originals_probabilities(
    file_format: str, layout: str, raw: bool, model: Model, images: Path, tmp_path: Path
) -> None:
    done = export_model(model, file_format, tmp_path / FORMATS[file_format], layout, raw)
    assert done.difference <= 1e-4 and done.checked_on == "48 images of its data"
    exported = tvf.load(done.path, trust_code=True)
    assert (exported.classes, exported.temperature) == (model.classes, model.temperature)
    for batch in (1, 3):
        files = sorted((images / "train" / "dogs").glob("*.png"))[:batch]
        for asked in (True,) if raw else (False, True):
            ours, theirs = model.predict(files, raw=asked), exported.predict(files, raw=asked)
            assert np.allclose(ours.probabilities, theirs.probabilities, atol=1e-5)
    with pytest.raises(InputError, match="has no module"):
        _ = exported.module


@pytest.mark.slow
def test_the_example_needs_neither_tvf_nor_torch(
    model: Model, images: Path, tmp_path: Path
) -> None:
    path = export_model(model, "onnx", tmp_path / "model.onnx").path
    files = sorted((images / "train" / "dogs").glob("*.png"))[:3]
    blocked = (
        "import sys; sys.modules['torch'] = sys.modules['tvf'] = None; sys.argv = sys.argv[1:]"
    )
    example = ROOT / "examples" / "onnx_predict.py"
    code = f"{blocked}; exec(compile(open(sys.argv[0]).read(), 'example', 'exec'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(example), str(path), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = [f"{image}: {name} ({p:.3f})" for image, name, p in model.predict(files)]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.slow
def test_the_files_metadata_say_how_to_use_it(model: Model, tmp_path: Path) -> None:
    import onnx

    path = export_model(model, "onnx", tmp_path / "model.onnx").path
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    facts = json.loads(found["tvf"])
    assert facts["classes"] == ["cats", "dogs"] and facts["image_size"] == 32
    assert facts["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert facts["version"] and facts["temperature"] == model.temperature
    assert found["card"] == model.card


class _Network(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(3, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.layer(pixels.float().mean((2, 3)))
        if self.kind == "operator":  # ONNX has none for it
            return logits + torch.linalg.eigvals(logits.T @ logits).real[0]
        if self.kind == "data":  # which branch depends on the images
            return logits if logits.sum() > 0 else -logits
        return logits


def _model(network: nn.Module) -> Model:
    from tvf.inference.images import Reading
    from tvf.inference.model import torch_runner

    run = torch_runner(network.eval(), 1.0, "cpu")
    return Model(("a", "b"), Reading(32), run, "nowhere", network=network)


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_names_the_operator_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="cannot be exported to ONNX: .*linalg_eig"):
        export_model(_model(_Network("operator")), "onnx", tmp_path / "model.onnx")
    for file_format, name in FORMATS.items():
        with pytest.raises(InputError, match="export"):
            export_model(_model(_Network("data")), file_format, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_the_original_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, other = _Network(""), _Network("")
    network.layer.weight.data.zero_()
    loaded = lambda path, trust_code: _model(other)  # noqa: E731
    monkeypatch.setattr("tvf.inference.export.load_exported", loaded)
    with pytest.raises(InputError, match="differs from the original"):
        export_model(_model(network), "torch_export", tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, content: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_exported(path, trust_code=name.endswith(".pt2"))

    refused("model.txt", b"", r"no exported model: those end in .onnx or .pt2")
    refused("model.safetensors", b"", "Name the folder of its job")
    refused("model.pt2", b"nothing", "cannot be read by torch")
    refused("model.onnx", b"nothing", "cannot be read by onnxruntime")
    with pytest.raises(InputError, match="torch unpickles parts .* trust_code=True"):
        load_exported(tmp_path / "model.pt2")
    with pytest.raises(InputError, match="leave out the ensemble and the device"):
        tvf.load(tmp_path / "model.onnx", device="cuda")
    modules: dict[str, Any] = {"onnxruntime": None}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    refused("model.onnx", b"nothing", r"needs onnxruntime, .*pip install 'tvf\[export\]'")


def test_endings_and_options_are_checked_first(tmp_path: Path) -> None:
    model = _model(nn.Identity())
    for file_format, name, layout, message in (
        ("onnx", "model.pt2", "nhwc", "must end in .onnx"),
        ("other", "model.pt2", "nhwc", "--format"),
        ("onnx", "model.onnx", "hwc", "--layout"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(model, file_format, tmp_path / name, layout)
