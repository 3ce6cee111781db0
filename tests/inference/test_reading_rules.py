"""A job that read a table by another rule: its model reads images in the same way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tvf
from helpers.configs import plain_config
from helpers.folders import write_images
from tvf.data import ReadingRules
from tvf.errors import InputError
from tvf.inference.export import export_model
from tvf.inference.reading_rules import read_rules, warn_of_own_source
from tvf.inference.trust import open_source
from tvf.job import JobContext, run_job
from tvf.records import read_predictions, softmax

RULES = ReadingRules("pad", "bicubic", "white", (100.0, 3000.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 12 bits, kept in 16."""
    root = write_images(tmp_path_factory.mktemp("data"))
    for path in root.rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 16).save(path)
    return root


@pytest.fixture(scope="module")
def job(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    lines = [f"{name},{name.split('/')[1]}" for name in names]
    (folder / "labels.csv").write_text("\n".join(["filename,class", *lines]))
    config = plain_config(
        *("name=job", "data=table", f"data.path={folder}/labels.csv", "data.image_size=32"),
        *("data.resize=pad", "data.interpolation=bicubic", "data.pad_color=white"),
        "data.window=[100,3000]",
        *("data.batch_size=8", "backbone=resnet18", "backbone.weights=null", "epochs=1"),
        *("model.pct_unfreeze=0.5", "tracker=none", "store.mode=off"),
    )
    job = tmp_path_factory.mktemp("jobs") / "job"
    job.mkdir()
    choices = {"model": "finetune", "backbone": "resnet18", "data": "table"}
    run_job(config, JobContext(job, None, parallel=True, choices=choices))
    return job


@pytest.mark.slow
def test_a_loaded_model_reads_as_its_job_did_without_trust(job: Path, folder: Path) -> None:
    model = tvf.load(job)
    assert model.reading.rules == RULES
    recorded = read_predictions(job)["val"]
    table = model.predict([folder / str(name) for name in recorded.names])
    assert np.array_equal(table.probabilities, softmax(recorded.logits, model.temperature))
    assert (
        "padded with white to a square of 32×32 pixels, by bicubic interpolation, with values from "
        "100 to 3000 as black to white;"
    ) in model.card
    assert "the table `labels.csv`" in model.card
    config = json.loads((job / "config.json").read_text())
    assert len(open_source(config, trust_code=False).catalog()) == 48


@pytest.mark.slow
def test_a_loaded_model_has_the_window_that_its_training_images_gave(
    folder: Path, tmp_path: Path
) -> None:
    config = plain_config(
        *("name=job", "data=image_folder", f"data.root={folder}", "data.image_size=32"),
        *("data.window=[2%,98%]", "data.batch_size=8", "backbone=resnet18"),
        "data.interpolation=bilinear",
        *("backbone.weights=null", "epochs=1", "model=transfer", "tracker=none", "store.mode=off"),
    )
    choices = {"model": "transfer", "backbone": "resnet18", "data": "image_folder"}
    run_job(config, JobContext(tmp_path, None, parallel=True, choices=choices))
    model, found = tvf.load(tmp_path), json.loads((tmp_path / "summary.json").read_text())
    assert model.reading.rules.window == tuple(found["images"]["window"])
    recorded = read_predictions(tmp_path)["test"]
    table = model.predict([folder / str(name) for name in recorded.names])
    assert np.array_equal(table.probabilities, softmax(recorded.logits, model.temperature))
    assert "as black to white" in model.card and "2%" not in model.card
    done = export_model(model, "torch_export", tmp_path / "model.pt2")
    assert done.checked_on == "48 images of its data"
    assert tvf.load(done.path, trust_code=True).reading == model.reading


@pytest.mark.slow
def test_exported_files_keep_the_rule(job: Path, folder: Path, tmp_path: Path) -> None:
    model = tvf.load(job)
    done = export_model(model, "torch_export", tmp_path / "model.pt2")
    assert done.checked_on == "48 images of its data"
    exported = tvf.load(done.path, trust_code=True)
    assert exported.reading == model.reading
    files = [str(path) for path in sorted((folder / "train" / "cats").glob("*.png"))]
    ours, theirs = model.predict(files), exported.predict(files)
    assert np.allclose(ours.probabilities, theirs.probabilities, atol=1e-5)


@pytest.mark.slow
def test_a_record_with_an_unknown_rule_is_refused(job: Path) -> None:
    path = job / "config.json"
    before = path.read_text()
    config = json.loads(before)
    path.write_text(json.dumps(config | {"data": config["data"] | {"resize": "tile"}}))
    try:
        with pytest.raises(InputError, match="config.json: data.resize=tile must be one of"):
            tvf.load(job)
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("target", "options", "rules", "said"),
    [
        (
            "own.Source",
            {"resize": "pad", "window": [0, 9]},
            ReadingRules("pad", window=(0, 9)),
            "pad",
        ),
        (
            "own.Source",
            {"resize": [224], "interpolation": "box"},
            ReadingRules("crop", "box"),
            "224",
        ),
        ("own.Source", {"image_size": 32}, ReadingRules(), "image folders."),
        ("tvf.data.ImageFolder", {"resize": "pad"}, ReadingRules("pad"), None),
    ],
)
def test_options_of_ones_own_data_source_are_taken_if_they_are_rules(
    target: str,
    options: dict[str, Any],
    rules: ReadingRules,
    said: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = {"data": {"_target_": target, **options}}
    assert read_rules(config, {}) == rules
    warn_of_own_source(config, Path("job"))
    assert (said in caplog.text) if said else not caplog.records
    assert ("do not know resize=[224]" in caplog.text) == (said == "224")
