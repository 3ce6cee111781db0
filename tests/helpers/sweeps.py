"""Sweep folders as tvf writes them, with scores that a test chooses."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import norm

from helpers.configs import compose_once
from tvf.config.build import to_plain
from tvf.files import read_json
from tvf.records.predictions import Predictions, write_predictions
from tvf.records.sweep import write_manifest

FULL = 1600  # training images of add_curves without a limit
LIMITS = (100, 200, 400, 800, None)


@cache
def _base() -> str:
    return json.dumps(to_plain(compose_once("tracker=none", "name=job")))


def base_config() -> dict[str, Any]:
    """The config of a job without overrides, except for the tracker."""
    return json.loads(_base())


def add_job(
    sweep: Path,
    fraction: float,
    seed: int,
    scores: Sequence[float] = (0.7, 0.8),
    *,
    state: str = "done",
    epochs: int | None = None,
    seconds: float | None = None,
    changes: dict[str, Any] | None = None,
    manifest: bool = True,
    **summary: Any,
) -> Path:
    """Add a job whose validation accuracy is `scores`, epoch by epoch.

    `changes` are changes to its config, by dotted keys; `summary` are changes to its summary. A job
    whose `state` is waiting is only in sweep.json.
    """
    config = base_config() | {
        "seed": seed,
        "epochs": epochs or len(scores),
        "name": f"fine-tuning-{fraction}-seed{seed}",
    }
    config["model"]["pct_unfreeze"] = fraction
    overrides = [f"model.pct_unfreeze={fraction}", f"seed={seed}"]
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
        overrides.append(f"{key}={'null' if value is None else value}")
    number = len(list(sweep.glob("*/status.json")))
    folder = sweep / f"{config['name']}-{number:08x}"
    if manifest:
        _note_job(sweep, folder.name, config)
    if state == "waiting":
        return folder
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "status.json").write_text(json.dumps(_status(config["name"], state)))
    lines = [json.dumps(_epoch(number, score)) for number, score in enumerate(scores, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if state == "done":
        values = _summary(config, fraction, scores)
        if seconds is not None:
            values["train_seconds"] = seconds
        (folder / "summary.json").write_text(json.dumps(values | summary))
    return folder


def add_training(
    sweep: Path,
    fraction: float,
    correct: Sequence[bool],
    *,
    seed: int = 1,
    places: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    earlier: Sequence[Sequence[bool]] | None = None,
    tested: Sequence[bool] = (True, True, True, False),
    first_tested: int = 1000,
    changes: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Add a finished job with predictions for its validation images, and for test images.

    `correct` says which of them it classified correctly, `tested` which test images, from
    `first_tested` on; `places` are the images (by default the first ones), `groups` their groups,
    of which the test images have the first ones. `earlier` is the same as
    `correct` for the epochs before the best one, the last; if it is None, there was one that the
    predictions do not have, as in older versions.
    """
    hits = np.asarray(correct, bool)
    images = np.arange(len(hits)) if places is None else np.asarray(places)
    labels = images % 2

    def predict(images: np.ndarray, labels: np.ndarray, hits: np.ndarray) -> Predictions:
        logits = np.eye(2)[np.where(hits, labels, 1 - labels)].astype(np.float32)
        ids = np.array([f"{image:032d}" for image in images], "S32")
        grouped = None if groups is None else np.asarray(groups)[: len(images)]
        return Predictions(ids, images.astype(str), labels, logits, grouped)

    epochs = None if earlier is None else np.array([*earlier, hits], bool)
    score = float(hits.mean())
    scores = [score - 0.1, score] if epochs is None else epochs.mean(axis=1).tolist()
    folder = add_job(sweep, fraction, seed, scores, changes=changes, **more)
    test = first_tested + np.arange(len(tested))
    predictions = {
        "val": predict(images, labels, hits),
        "test": predict(test, test % 2, np.array(tested)),
    }
    if epochs is not None:
        classes = np.where(epochs, labels, 1 - labels).astype(np.uint8)
        predictions["val"] = replace(predictions["val"], epoch_classes=classes)
    write_predictions(folder, predictions, np.empty(0, "S32"))
    return folder


def add_folder_job(
    sweep: Path,
    root: Path,
    fraction: float = 0.5,
    seed: int = 1,
    scores: Sequence[float] = (0.7, 0.8),
    **options: Any,
) -> Path:
    """A job on the image folder `root`; `options` are more of the node `data`."""
    given = {"_target_": "tvf.data.ImageFolder", "root": str(root), "image_size": 224} | options
    changes = {f"data.{key}": value for key, value in given.items()}
    folder = add_job(sweep, fraction, seed, scores, manifest=False, changes=changes)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("task", "split_by"):  # options of ELPV
        del config["data"][key]
    path.write_text(json.dumps(config))
    return folder


def add_predictions(
    folder: Path,
    val: Mapping[str, tuple[int, Sequence[float]]],
    test: Mapping[str, tuple[int, Sequence[float]]] | None = None,
    digests: Mapping[str, bytes] | None = None,
) -> None:
    """Give a job the label and probabilities of images by name; the temperature is 1.

    `digests` says what is in the images, by default the same as their names. By default there is
    one test image, which is classified correctly.
    """
    row = next(iter(val.values()))[1]
    splits = {"val": val, "test": test or {"unseen": (int(np.argmax(row)), row)}}
    predictions = {}
    for split, images in splits.items():
        labels, rows = zip(*images.values(), strict=True)
        names = [*images]
        ids = [(digests or {}).get(name, name.encode()[:32]) for name in names]
        predictions[split] = Predictions(
            np.array(ids, "S32"),
            np.array(names, str),
            np.array(labels, np.int64),
            np.log(np.array(rows, np.float32)),
        )
    write_predictions(folder, predictions, np.empty(0, "S32"))
    scores = {"nll": 0.5, "brier": 0.4, "ece": 0.1}
    recorded = {split: {"raw": scores, "scaled": scores} for split in splits}
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) | {"calibration": {"temperature": 1.0, **recorded}}
    path.write_text(json.dumps(summary))


def add_curves(
    sweep: Path,
    accuracies: Mapping[float, Callable[[float], float]],
    limits: Sequence[int | None] = LIMITS,
) -> None:
    """Add fractions × limits of training images × five folds of 400 images, with predictions.

    `accuracies` are functions of the number of training images, `FULL` without a limit. Images
    differ in difficulty, for each fraction in its own way.
    """
    rng = np.random.default_rng(0)
    images, folds = 2000, 5
    difficulty = rng.standard_normal(images)
    for fraction, accuracy in accuracies.items():
        own = rng.standard_normal(images)
        for limit, fold in product(limits, range(folds)):
            trained = min(limit or FULL, FULL)
            places = np.flatnonzero(np.arange(images) % folds == fold)
            noise = rng.standard_normal(len(places))
            hard = np.sqrt([0.85, 0.12, 0.03]) @ [difficulty[places], own[places], noise]
            add_training(
                sweep,
                fraction,
                (hard < norm.ppf(accuracy(trained))).tolist(),
                places=places.tolist(),
                changes={"data.train_limit": limit, "data.folds": folds, "data.fold": fold},
                images={"pool": 2500, "digest": "d" * 32, "train": trained, "val": len(places)},
            )


def _note_job(sweep: Path, name: str, config: dict[str, Any]) -> None:
    """What `write_manifest` does in a sweep that nothing else writes to, without its fsyncs."""
    path = sweep / "sweep.json"
    manifest = read_json(path)
    if "jobs" in manifest:
        path.write_text(json.dumps(manifest | {"jobs": manifest["jobs"] | {name: config}}))
    else:
        command = {"folder": str(sweep), "arguments": ["-m", "seed=1,2"]}
        write_manifest(sweep, {name: config}, command)


def _status(name: str, state: str) -> dict[str, Any]:
    return {
        "state": state,
        "name": name,
        "error": "RuntimeError: broke" if state == "failed" else None,
        "wandb_run_id": None,
        "wandb_mode": None,
    }


def _epoch(number: int, score: float) -> dict[str, float]:
    return {
        "epoch": number,
        "train_loss": 0.5 / number,
        "train_acc": min(score + 0.05, 1.0),
        "val_loss": 0.6 / number,
        "val_acc": score,
        "val_macro_f1": score - 0.1,
        "val_auroc": score + 0.05,
        "epoch_seconds": 1.0,
    }


def _summary(config: dict[str, Any], fraction: float, scores: Sequence[float]) -> dict[str, Any]:
    best = max(scores)
    return {
        "name": config["name"],
        "model": "finetune",
        "backbone": "efficientnet_lite0",
        "data": "elpv",
        "seed": config["seed"],
        "pct_unfreeze": fraction,
        "classes": ["functional", "defective"],
        "unfrozen_groups": ["a"] * round(9 * fraction),
        "trainable_params": 2562 + int(1e6 * fraction),
        "total_params": 3373570,
        "epochs": len(scores),
        "metric": config["data"]["metric"],
        "best_epoch": scores.index(best) + 1,
        "val_loss": 0.4,
        "val_acc": best,
        "val_macro_f1": best - 0.1,
        "val_auroc": best + 0.05,
        "val_recall": [best, best - 0.2],
        "val_confusion": [[200, 70], [40, 83]],
        "test_loss": 0.45,
        "test_acc": best - 0.02,
        "test_macro_f1": best - 0.12,
        "test_auroc": best + 0.03,
        "test_recall": [best, best - 0.2],
        "test_confusion": [[350, 100], [60, 146]],
        "train_seconds": 10 + 100 * fraction,
        "prefix_seconds": 8.0,
        "prefix_kept": True,
        "images_per_second": 500 / (1 + fraction),
        "peak_memory_mb": 600 + 400 * fraction,
        "wandb_run_id": None,
        "wandb_url": None,
        "approximations": [],
        "versions": {"python": "3.11", "torch": "2"},
        "machine": {"host": "here", "cores": 2, "gpu": None},
    }
