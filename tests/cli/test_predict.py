"""`tvf predict` and `tvf export` as commands: formats, failures, scores, exit codes."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

import tvf
from helpers.classifier import train_classifier
from helpers.folders import write_images
from tvf.cli.main import tvf as command
from tvf.files import write_json

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sweep(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two seeds."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    for seed in (1, 2):
        train_classifier(images, folder / f"seed{seed}", f"seed={seed}")
    write_json(folder / "sweep.json", {"commands": [], "jobs": {}})
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(command, [*map(str, words)])


def _rows(text: str) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(text))]


@pytest.mark.slow
def test_a_labelled_folder_is_classified_and_scored(run: Run, sweep: Path, images: Path) -> None:
    done = run("predict", sweep, images, "--top", "3", "--every-class")
    assert done.exit_code == 0, done.stderr
    rows, model = _rows(done.stdout), tvf.load(sweep)
    table = model.predict(images)
    assert [row["image"] for row in rows] == table.images
    assert [row["class"] for row in rows] == table.predicted
    right = [Path(row["image"]).parent.name == row["class"] for row in rows]
    assert f"accuracy {np.mean(right):.3f}" in done.stderr and "48 images" in done.stderr
    assert f"model: {model.source}" in done.stderr
    trained = sum(by for by in model.summary["images"]["by_class"]["train"])
    assert f"warning: {trained} of these images trained the model" in done.stderr
    for row in rows:
        assert {row["class"], row["class_2"]} == {"cats", "dogs"}
        each = float(row["p(cats)"]) + float(row["p(dogs)"])
        assert each == pytest.approx(1, abs=2e-6)
        assert row["probability"] == row[f"p({row['class']})"]


def test_all_formats_hold_the_same(run: Run, sweep: Path, images: Path, tmp_path: Path) -> None:
    folder = images / "train" / "cats"
    rows = _rows(run("predict", sweep / "seed1", folder).stdout)
    assert run("predict", sweep / "seed1", folder, "-o", "out.csv").stdout == ""
    assert _rows(Path("out.csv").read_text()) == rows
    assert run("predict", sweep / "seed1", folder, "-o", "out.jsonl").exit_code == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [{key: str(value) for key, value in line.items()} for line in lines] == rows
    assert run("predict", sweep / "seed1", folder, "-o", "out.parquet").exit_code == 0
    assert pyarrow.parquet.read_table("out.parquet").to_pylist() == lines
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out.jsonl", "out.parquet"}


@pytest.mark.slow
def test_unreadable_images_are_listed_at_the_end(
    run: Run, sweep: Path, images: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(images / "train" / "cats", tmp_path / "cats")
    for number in range(30):
        (folder / f"bad{number}.png").write_bytes(b"no image")
    done = run("predict", sweep, folder, "-o", "out.csv")
    assert done.exit_code == 1
    assert len(_rows(Path("out.csv").read_text())) == 24
    assert "30 of 54 images could not be read:" in done.stderr
    assert "30: it is text (" in done.stderr and done.stderr.count("Repair or remove") == 1
    assert done.stderr.count("/bad") == 3
    listed = [json.loads(line) for line in Path("out.csv.failed.jsonl").read_text().splitlines()]
    assert len({row["image"] for row in listed}) == 30 and "it is text" in listed[0]["reason"]
    only = run("predict", sweep, *folder.glob("bad*"), "-o", "out.csv")
    assert only.exit_code == 1 and Path("out.csv").read_text() == "image,class,probability\n"
    good = run("predict", sweep, folder / "0.png", "-o", "out.csv")
    assert good.exit_code == 0 and not Path("out.csv.failed.jsonl").exists()
    alone = run("predict", sweep, *folder.glob("bad*"))
    assert all(f"bad{number}.png" in alone.stderr for number in range(30))
    assert "bad7.png: it is text\n" in alone.stderr
    assert alone.stderr.count("Repair or remove") == 1


def test_an_ensemble_averages_the_jobs_of_the_configuration(
    run: Run, sweep: Path, images: Path
) -> None:
    done = run("predict", sweep, images, "--ensemble", "--every-class")
    found = [float(row["p(dogs)"]) for row in _rows(done.stdout)]
    each = [tvf.load(sweep / f"seed{seed}").predict(images).probabilities for seed in (1, 2)]
    assert np.allclose(found, np.mean(each, 0)[:, 1], atol=1e-6)
    assert "an ensemble of" in done.stderr


def test_a_list_on_stdin_names_its_images(
    run: Run, sweep: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((images / "train" / "dogs").glob("*.png"))[:3]
    listed = "\n".join(map(str, files))
    done = CliRunner().invoke(command, ["predict", str(sweep), "-"], input=listed)
    assert [row["image"] for row in _rows(done.stdout)] == [*map(str, files)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SWEEP", "nowhere.png"], "nowhere.png does not exist"),
        (["nowhere", "IMAGES"], "nowhere does not exist"),
        (["IMAGES", "IMAGES"], "holds no job"),
        (["SWEEP", "IMAGES", "-o", "out.txt"], "out.txt does not end in .csv, .jsonl, .parquet"),
        (["SWEEP", "IMAGES", "--format", "parquet"], "needs a file: name it with --output"),
        (["SWEEP", "IMAGES", "-o", "no/where/out.csv"], "out.csv cannot be written"),
        (["SWEEP", "IMAGES", "--device", "warp9"], "--device warp9"),
        (["SWEEP", "IMAGES", "-o", ".", "--format", "csv"], "is a folder"),
        (["SWEEP", "IMAGES", "-o", "SWEEP/sweep.json/out.csv"], "out.csv cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, run: Run, sweep: Path, images: Path
) -> None:
    places = {"SWEEP": str(sweep), "IMAGES": str(images)}
    given = []
    for word in words:
        first, slash, rest = word.partition("/")
        given.append(places.get(first, first) + slash + rest)
    done = run("predict", *given)
    assert done.exit_code == 1
    error = str(done.exception)  # what the shell prints
    assert isinstance(done.exception, SystemExit) and error.startswith("error: ")
    assert message in error and "\n" not in error


def test_parquet_without_its_library_says_what_to_install(
    run: Run, sweep: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = run("predict", sweep, images, "-o", "out.parquet")
    assert done.exit_code == 1 and "pip install 'tvf[parquet]'" in str(done.exception)
    assert not Path("out.parquet").exists()


@pytest.mark.slow
def test_export_prints_the_file_and_its_difference(run: Run, sweep: Path, images: Path) -> None:
    done = run("export", sweep, "--format", "torch_export", "-o", "model.pt2")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "model.pt2\n" and "The largest difference" in done.stderr
    done = run("predict", "model.pt2", images, "--trust-code")
    assert "note: the model does not know which images it was trained on" in done.stderr
    rows = _rows(done.stdout)
    assert [row["class"] for row in rows] == tvf.load(sweep).predict(images).predicted
    refused = run("export", "model.pt2", "-o", "again.onnx", "--trust-code")
    assert refused.exit_code == 1 and "has no module" in str(refused.exception)


def test_a_link_and_a_device_stay_what_they_are(run: Run, sweep: Path, images: Path) -> None:
    Path("link.csv").symlink_to("real.csv")
    assert run("predict", sweep, images, "-o", "link.csv").exit_code == 0
    assert Path("link.csv").is_symlink() and len(_rows(Path("real.csv").read_text())) == 48
    assert run("predict", sweep, images, "--format", "csv", "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.slow
def test_combine_says_what_chose(run: Run, sweep: Path) -> None:
    done = run("combine", sweep)
    assert done.exit_code == 0, done.output
    assert "Validation chose: " in done.stdout and "it is too high" in done.stdout
    done = run("combine", sweep, "--method", "ensemble")
    assert "--method chose: ensemble" in done.stdout and "too high" not in done.stdout
    folder = done.stdout.splitlines()[-1].removeprefix("model: ")
    assert folder == str(sweep / "combine" / "ensemble")
    assert tvf.load(folder).summary["combination"]["members"] == 2
