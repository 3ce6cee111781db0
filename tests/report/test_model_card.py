"""The model card: of the recommended job, whole, and readable by the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCard

from helpers.sweeps import add_job
from tvf.files import MODEL_CARD
from tvf.records import Predictions, read_sweep, write_predictions
from tvf.report import compare, describe_job
from tvf.report.model_card import jobs_of_choice, write_cards

RESULTS: dict[str, Any] = {
    "classes": ["cat | tiger", "dog"],
    "test_confusion": [[1000, 2], [3, 4]],
    "images": {"by_class": {"train": [5, 6], "val": [7, 8], "test": [9, 1000]}, "train": 11},
    "calibration": {
        "temperature": 1.5,
        **{
            split: {
                "raw": {"nll": 0.5, "brier": 0.4, "ece": 0.123},
                "scaled": {"nll": 0.4, "brier": 0.3, "ece": 0.02},
            }
            for split in ("val", "test")
        },
    },
}


def _predict(job: Path) -> Path:
    """Give a job predictions, without which its calibration is not known."""
    logits = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    names = np.array([f"{number}.png" for number in range(20)])
    both = Predictions(np.array(names, "S32"), names, np.arange(20) % 2, logits)
    write_predictions(job, {"val": both, "test": both}, np.empty(0, "S32"))
    return job


def _sweep(folder: Path, **changes: Any) -> Path:
    for seed, bonus in ((1, 0.0), (2, 0.004), (3, 0.002)):
        for fraction, score in ((0.0, 0.7), (0.25, 0.9)):
            job = add_job(folder, fraction, seed, (score + bonus,), **RESULTS | changes)
            (job / "checkpoints").mkdir(exist_ok=True)
    return folder


def test_the_best_job_of_the_recommended_configuration_has_the_card(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path / "sweep")
    (comparison,) = compare(read_sweep(sweep))
    assert [job["seed"] for job in jobs_of_choice(comparison)] == [2, 3, 1]
    assert comparison.choice.chosen is not None and comparison.choice.chosen.fraction == 0.25
    (path,) = write_cards(sweep, [comparison])
    assert path == Path(jobs_of_choice(comparison)[0]["path"]) / MODEL_CARD
    text = path.read_text()
    assert text == describe_job(path.parents[1])
    assert "| validation accuracy | 0.904 | 0.902 (retraining ±0.005" in text
    assert "best of its configuration's trainings by validation" in text
    # Another choice later leaves one card.
    (path.parents[2] / jobs_of_choice(comparison)[1]["folder"] / MODEL_CARD).write_text("old")
    assert write_cards(sweep, [comparison]) == [path]
    assert [*sweep.glob(f"*/{MODEL_CARD}")] == [path]


def test_every_section_says_what_is_recorded(tmp_path: Path) -> None:
    job = _predict(add_job(tmp_path / "sweep", 0.25, 1, (0.9,), **RESULTS))
    text = describe_job(job)
    assert r"| cat \| tiger | 5 | 7 | 9 |" in text and "| dog | 6 | 8 | 1,000 |" in text
    assert r"| cat \| tiger | 1,000 | 2 |" in text
    assert "| test | 0.500 | 0.400 | 0.123 |" in text
    assert "| test, scaled | 0.400 | 0.300 | 0.020 |" in text and "makes" not in text
    assert "Temperature 1.500" in text
    assert "CC-BY-NC-SA-4.0" in text and "Apache-2.0" in text
    for heading in ("Use", "Data", "Training", "Scores", "Calibration", "Confusion", "Limits"):
        assert f"\n## {heading}\n" in text


def test_a_temperature_that_does_not_help_on_test_images_is_said(tmp_path: Path) -> None:
    calibration = RESULTS["calibration"] | {
        "test": {
            "raw": {"nll": 0.5, "brier": 0.4, "ece": 0.1},
            "scaled": {"nll": 0.6, "brier": 0.4, "ece": 0.1},
        }
    }
    job = _predict(add_job(tmp_path / "sweep", 0.25, 1, **RESULTS | {"calibration": calibration}))
    assert "On the test images it makes probabilities worse." in describe_job(job)


def test_the_header_is_one_that_the_hub_reads(tmp_path: Path) -> None:
    timm = {"backbone._target_": "tvf.models.timm_backbone", "backbone.name": "vit_tiny.in1k"}
    job = add_job(
        tmp_path / "sweep", 0.5, 1, (0.8,), changes=timm, test_acc=0.75, test_macro_f1=0.5
    )
    text = describe_job(job)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "tvf" and header["base_model"] == "timm/vit_tiny.in1k"
    data: Any = ModelCard(text).data
    assert data.eval_results is not None
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found["accuracy"] == 0.75 and found["f1"] == 0.5
    assert data.eval_results[0].dataset_split == "test"


def test_a_record_of_an_earlier_version_has_a_card_with_less(tmp_path: Path) -> None:
    job = add_job(tmp_path / "sweep", 0.5, 1, (0.8,), test_confusion=None)
    text = describe_job(job)
    assert "## Calibration\n\nNot known" in text and "## Confusion\n\nNot shown" in text
