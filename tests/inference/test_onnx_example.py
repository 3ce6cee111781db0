"""The example without tvf makes the same squares, whatever rules a file names, or none."""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from tvf.data import ReadingRules, read_image

FIRST = {"format": 1, "classes": ["a", "b"], "image_size": 32, "white_point": None}


def _run(facts: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The images [1, 32, 32, 3] that the example passes to a network with these metadata."""
    seen: list[np.ndarray] = []

    class Session:
        def __init__(self, path: str) -> None:
            pass

        def get_modelmeta(self) -> SimpleNamespace:
            return SimpleNamespace(custom_metadata_map={"tvf": json.dumps(facts)})

        def run(self, names: None, given: dict[str, np.ndarray]) -> list[list[list[float]]]:
            seen.append(given["images"])
            return [[[0.25, 0.75]]]

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(sys, "argv", ["onnx_predict.py", "model.onnx", str(path)])
    runpy.run_path(str(ROOT / "examples" / "onnx_predict.py"))
    (images,) = seen
    return images


@pytest.fixture(params=[(50, 33), (20, 61)], ids=str)
def photo(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (*request.param, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_the_example_makes_the_squares_of_training(
    resize: str,
    interpolation: str,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = ReadingRules(resize, interpolation, "#10f020")
    found = _run(FIRST | asdict(rules), photo, monkeypatch)
    assert np.array_equal(found, read_image(photo, 32, rules=rules)[None])
    assert capsys.readouterr().out == f"{photo}: b (0.750)\n"


def test_files_that_name_no_rules_are_read_by_the_first_ones(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _run(FIRST, photo, monkeypatch)
    assert np.array_equal(found, read_image(photo, 32)[None])


def test_the_example_does_not_run_with_a_window(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="use tvf predict"):
        _run(FIRST | asdict(ReadingRules(window=(0, 9))), photo, monkeypatch)
