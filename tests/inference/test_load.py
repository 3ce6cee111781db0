"""A job's model outside the job: the same numbers, and what cannot be loaded."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tvf
from helpers import IMPORTABLE, SMALL
from helpers.classifier import train_classifier
from helpers.folders import add, write_images
from tvf.data import ReadingRules
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, write_json
from tvf.inference import Item, PredictionTable, Reading, list_items
from tvf.inference.pipeline import AHEAD, classify
from tvf.inference.trust import open_source
from tvf.records import read_predictions, softmax


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def job(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job on two classes of images, with one of tvf's own backbones. Tests do not change it."""
    return train_classifier(images, tmp_path_factory.mktemp("jobs") / "job")


def _validation_files(job: Path, root: Path) -> list[Path]:
    return [root / str(name) for name in read_predictions(job)["val"].names]


@pytest.mark.slow
def test_a_loaded_model_gives_the_jobs_own_logits_bit_for_bit(job: Path, images: Path) -> None:
    model = tvf.load(job)
    recorded = read_predictions(job)["val"]
    table = model.predict(_validation_files(job, images))
    assert model.classes == ("cats", "dogs")
    assert np.array_equal(table.probabilities, softmax(recorded.logits, model.temperature))
    raw = model.predict(_validation_files(job, images), raw=True)
    assert np.array_equal(raw.probabilities, softmax(recorded.logits))
    assert model.temperature != 1.0
    pixels = np.stack([model.reading.read(path) for path in _validation_files(job, images)[:8]])
    with torch.no_grad():
        logits = model.module(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert np.array_equal(logits.numpy(), recorded.logits[:8])


def test_arrays_files_folders_patterns_and_lists_are_the_same_images(
    job: Path, images: Path, tmp_path: Path
) -> None:
    model = tvf.load(job)
    folder = images / "train" / "cats"
    files = sorted(folder.glob("*.png"))
    expected = model.predict(files)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, files)) + "\n")
    arrays = [np.asarray(Image.open(file)) for file in files]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    opened = [Image.open(file) for file in files]
    for given in (folder, str(folder / "*.png"), listed, arrays, tensors, opened):
        found = model.predict(given)
        assert np.array_equal(found.probabilities, expected.probabilities), type(given)
    batch = np.stack([np.asarray(image.resize((40, 40))) for image in opened])
    single = [model.predict(each).probabilities[0] for each in batch]
    assert np.allclose(model.predict(batch).probabilities, single, atol=1e-6)
    assert len(expected) == 24 and {*expected.predicted} <= {"cats", "dogs"}
    assert str(files[0]) in str(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.png", "missing.png does not exist"),
        ("*.missing", "matches no file"),
        ([], "no image to classify"),
        (3, "int is no image"),
        (np.zeros((4, 4)), "pixels must be uint8"),
        (np.zeros((2, 4, 4, 5), np.uint8), "is no image"),
        (np.zeros(4, np.uint8), "is no image"),
        (torch.zeros(4, 4, dtype=torch.uint8), "is no image"),
        ("empty", "empty has no images"),
        ("list.txt", r"list.txt lists files that do not exist: line 2: nowhere.png"),
        ("void.txt", "void.txt names no files"),
    ],
)
def test_what_is_no_image_is_named(
    given: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("here.png").touch()
    Path("list.txt").write_text("here.png\nnowhere.png\n")
    Path("void.txt").write_text("\n")
    with pytest.raises(InputError, match=message):
        list_items(given)


def test_images_in_folders_of_two_classes_have_no_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path / "cats" / "old", "a.png")
    add(tmp_path / "cats" / "dogs", "b.png")
    labels = {Path(i.name).name: i.label for i in list_items(tmp_path, ("cats", "dogs"))}
    assert labels == {"a.png": 0, "b.png": None}
    assert "1 folders are called like a class and lie in one of another class" in caplog.text


def test_an_unreadable_image_costs_no_other(job: Path, images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images / "train" / "cats", tmp_path / "cats")
    model = tvf.load(job)
    before = model.predict(folder)
    (folder / "0a.png").write_bytes(b"not an image")
    after = model.predict(folder)
    assert after.images == before.images
    assert np.allclose(after.probabilities, before.probabilities, atol=1e-6)
    ((name, reason),) = after.failed
    assert name == str(folder / "0a.png") and "it is text" in reason


def _copy(job: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of the job with these keys of its JSON files changed."""
    other = tmp_path / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(job, other)
    for name, values in changes.items():
        path = other / f"{name}.json"
        write_json(path, json.loads(path.read_text()) | values)
    return other


def _refused(path: Path, message: str, **how: Any) -> None:
    with pytest.raises(InputError, match=message):
        tvf.load(path, **how)


def test_what_cannot_be_loaded_is_refused_with_the_reason(job: Path, tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "plain").mkdir()
    _refused(tmp_path / "plain", "holds no job")
    _refused(job, "an ensemble is of a sweep", ensemble=True)
    _refused(job / BEST_WEIGHTS, "Name the folder of its job")
    for state, words in (
        ("failed", "failed: mend"),
        ("running", "still running"),
        ("paused", "was paused"),
    ):
        other = _copy(job, tmp_path, status={"state": state})
        _refused(other, words)
    other = _copy(job, tmp_path, status={"state": "failed", "error": "interrupted"})
    _refused(other, "was interrupted: resume it")
    _refused(other.parent, "holds no job.* It holds .*other")
    other = _copy(job, tmp_path, summary={"classes": None, "versions": {"tvf": "0.0.1"}})
    _refused(other, "tvf 0.0.1 wrote it, this is .* Load it with that version")
    weights = other / BEST_WEIGHTS
    other = _copy(job, tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    _refused(other, "best.safetensors does not hold this model's weights")


def test_code_of_ones_own_runs_only_if_it_is_trusted(
    job: Path, images: Path, tmp_path: Path
) -> None:
    own = train_classifier(images, tmp_path / "own", backbone=[SMALL])
    _refused(own, r"code of your own \(helpers.small_backbone\).*trust_code=True")
    recorded = read_predictions(own)["val"]
    files = [images / str(name) for name in recorded.names]
    found = tvf.load(own, trust_code=True).predict(files, raw=True)
    assert np.array_equal(found.probabilities, softmax(recorded.logits))
    other = _copy(job, tmp_path, config={"backbone": {"_target_": "nowhere.at_all"}})
    _refused(other, "nowhere.at_all cannot be imported", trust_code=True)
    marker = tmp_path / "ran"
    code = {"_target_": "os.mkdir", "path": str(marker)}
    nested = {"_target_": "tvf.models.resnet", "name": code}
    _refused(_copy(job, tmp_path, config={"backbone": nested}), "code of your own")
    assert not marker.exists()


@pytest.mark.slow
def test_loading_imports_neither_hydra_nor_wandb(job: Path, images: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    code = f"""
import sys, tvf
model = tvf.load({str(job)!r})
model.predict({str(images / "train")!r})
tvf.load({str(sweep)!r})
print(sorted({{"hydra", "omegaconf", "wandb"}} & sys.modules.keys()))
"""
    shutil.copytree(job, sweep / "job")
    write_json(sweep / "sweep.json", {"commands": [], "jobs": {}})
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": IMPORTABLE, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_a_batch_runs_with_the_threads_of_the_training(images: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        job = train_classifier(images, tmp_path / "job", "threads=2")
        torch.set_num_threads(4)
        model, recorded = tvf.load(job), read_predictions(job)["val"]
        table = model.predict(_validation_files(job, images), raw=True)
    finally:
        torch.set_num_threads(before)
    assert model.threads == 2
    assert np.array_equal(table.probabilities, softmax(recorded.logits, 1.0))


@pytest.mark.parametrize(("threads", "at_once"), [(None, 1), (1, 3), (2, 1), (9, 1)])
def test_only_a_few_batches_are_read_ahead(
    threads: int | None, at_once: int, three_threads: None
) -> None:
    """So memory does not grow with the number of images."""
    read: list[Any] = []

    class Counting(Reading):
        def read(self, image: Any) -> np.ndarray:
            read.append(image)
            return np.zeros((32, 32, 3), np.uint8)

    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(at_once)

    def run(pixels: torch.Tensor) -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            most, first = max(most, running), len(seen) < at_once
            seen.append(torch.get_num_threads())
        if first:
            together.wait(60)
        with lock:
            running -= 1
        return np.full((len(pixels), 2), 0.5)

    seen: list[int] = []
    items = [Item(str(number), number) for number in range(1000)]
    for number, chunk in enumerate(classify(items, Counting(32), run, 10, threads)):
        assert [item.name for item in chunk.items] == [str(10 * number + i) for i in range(10)]
        assert len(read) <= 10 * (number + 1 + AHEAD + at_once)
    assert len(read) == 1000
    assert most == at_once and {*seen} == {min(threads or 3, 3)} and torch.get_num_threads() == 3


def test_torchs_threads_are_restored_whatever_ends_a_prediction(three_threads: None) -> None:
    def fails(pixels: torch.Tensor) -> np.ndarray:
        raise InputError("broken")

    def run(pixels: torch.Tensor) -> np.ndarray:
        return np.full((len(pixels), 2), 0.5)

    class Blank(Reading):
        def read(self, image: Any) -> np.ndarray:
            return np.zeros((32, 32, 3), np.uint8)

    items = [Item(str(number), number) for number in range(50)]
    with pytest.raises(InputError, match="broken"):
        next(classify(items, Blank(32), fails, 10, 1))
    first, second = (classify(items, Blank(32), run, 10, 1) for _ in range(2))
    next(first)
    next(second)  # while the first one runs
    first.close()
    assert sum(map(len, second)) == 40
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *found] == [3, 3]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_images_in_memory_are_read_like_the_same_ones_in_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 4096, (50, 40), dtype=np.uint16)
    rgba = rng.integers(0, 256, (50, 40, 4), dtype=np.uint8)
    for reading in (Reading(32), Reading(32, white_point=4095)):
        for number, array in enumerate((deep, rgba, rgba[..., 0], rgba[..., :3])):
            path = tmp_path / f"{number}.png"
            Image.fromarray(array).save(path)
            (item,) = list_items(array)
            assert np.array_equal(reading.read(item.image), reading.read(path)), array.shape


def test_other_numbers_are_taken_where_a_window_says_what_they_mean(tmp_path: Path) -> None:
    values = np.linspace(-1, 2, 32 * 32).reshape(32, 32).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    reading = Reading(32, rules=ReadingRules(window=(0, 1)))
    expected = reading.read(tmp_path / "x.tif")
    for array in (values, values.astype(float), torch.from_numpy(values)[None]):
        with pytest.raises(InputError, match="must be uint8 .*Multiply floats"):
            list_items(array)
        (item,) = list_items(array, window=True)
        assert np.array_equal(reading.read(item.image), expected)
    (item,) = list_items(np.full((32, 32), -300, np.int16), window=True)
    assert reading.read(item.image).max() == 0
    for array in (np.zeros((32, 32, 3), np.float32), np.zeros((32, 32), bool)):
        with pytest.raises(InputError, match="pixels .*must be (grey|numbers)") as error:
            list_items(array, window=True)
        assert "255" not in str(error.value)


def test_a_table_becomes_a_data_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = np.array([[0.25, 0.75], [0.9, 0.1]])
    table = PredictionTable(["x.png", "y.png"], ("a", "b"), probabilities, [])
    frame = table.to_pandas()
    assert list(frame["predicted"]) == ["b", "a"] and list(frame["probability"]) == [0.75, 0.9]
    assert list(frame["p(a)"]) == [0.25, 0.9]
    assert [*table] == [("x.png", "b", 0.75), ("y.png", "a", 0.9)]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        table.to_pandas()


def test_a_data_source_that_would_run_code_is_not_opened_untrusted(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    nested = {"_target_": "os.mkdir", "path": str(marker)}
    folder = {"_target_": "tvf.data.ImageFolder", "root": nested, "image_size": 32}
    for node in (folder, {"_target_": "nowhere.Source"}):
        with pytest.raises(InputError, match="code of your own"):
            open_source({"data": node}, trust_code=False)
    assert not marker.exists()


def test_records_with_odd_values_are_refused_in_words(job: Path, tmp_path: Path) -> None:
    config = json.loads((job / "config.json").read_text())
    for changes, message in (
        ({"config": {"data": config["data"] | {"batch_size": 0}}}, "data.batch_size"),
        ({"config": {"data": None}}, "does not say data"),
        ({"config": {"backbone": config["backbone"] | {"tail": 2}}}, "tail"),
        ({"summary": {"combination": "soup"}}, "what was combined"),
    ):
        _refused(_copy(job, tmp_path, **changes), message)
    odd = _copy(job, tmp_path, config={"fabric": None}, summary={"calibration": "yes"})
    assert tvf.load(odd).temperature == pytest.approx(tvf.load(job).temperature)
