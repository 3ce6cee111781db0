"""The store changes nothing but the time: equal epochs with and without it, each image once."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import IMPORTABLE, SMALL, Outcome, forks
from helpers.jobs import metrics, summary
from tvf.data.augment import FlipsAndCrops, ViewRows
from tvf.data.sources.elpv import Elpv
from tvf.data.splits import divide, limit_pool

Shell = Callable[..., Outcome]
# 39 images to train on: the last batch has 7, for which some libraries choose other kernels.
QUICK = (
    "epochs=2",
    "data.limit=64",
    "data.split_by=cell",
    "data.image_size=40",
    "data.batch_size=16",
    "tracker=none",
    "threads=1",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["model.pct_unfreeze=0"], id="0"),
        pytest.param(["model.pct_unfreeze=0.25", "augment=crop_flip"], id="0.25 crop_flip"),
        pytest.param(["model.pct_unfreeze=0.5", "augment.views=2", "epochs=3"], id="0.5 two views"),
        pytest.param(["model.pct_unfreeze=1.0"], id="1.0"),
        pytest.param(["model.pct_unfreeze=0.25", "augment=torchvision"], id="0.25 torchvision"),
        pytest.param(["model.pct_unfreeze=0.5", "model.frozen_bn=batch"], id="0.5 batch"),
        pytest.param(
            ["model.pct_unfreeze=0.25", "model.frozen_bn=recalibrate"], id="0.25 recalibrate"
        ),
        pytest.param(
            [
                "model.pct_unfreeze=0",
                "fabric.precision=64-true",
                "data.limit=40",
                "data.image_size=32",
            ],
            id="0 in 64 bits",
        ),
    ],
)
def test_epochs_are_equal_bit_for_bit_with_a_cold_or_warm_store_and_without(
    shell: Shell, tmp_path: Path, options: list[str]
) -> None:
    for name, mode in (("off", "off"), ("cold", "on"), ("warm", "on"), ("auto", "auto")):
        outcome = shell(*QUICK, *options, f"store.mode={mode}", f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.out + outcome.err
    off = metrics(tmp_path / "off")
    for name in ("cold", "warm", "auto"):
        assert metrics(tmp_path / name) == off, name
        assert summary(tmp_path / name)["test_loss"] == summary(tmp_path / "off")["test_loss"]
    assert summary(tmp_path / "warm")["prefix_images"] == 0
    approximations = ["2 views for 3 epochs"] if "augment.views=2" in options else []
    assert summary(tmp_path / "cold")["approximations"] == approximations


def distinct_images(views: int, limit: int, folds: int | None = None) -> int:
    """How many images with flips jobs see in all: of one division of the pool, or of its folds."""
    shown = set()
    for fold in range(folds or 1):
        source = Elpv(image_size=40, limit=limit, split_by="cell", folds=folds, fold=fold)
        catalog = source.catalog()
        catalog = catalog.take(limit_pool(catalog, source))
        places = divide(catalog, source)
        rows = ViewRows(FlipsAndCrops(horizontal=0.5), len(catalog))
        for view in range(1, views + 1):
            shown |= set(rows.rows_of_view(view)[places["train"]])
        shown |= set(rows.rows_of_view(0)[places["val"]]) | set(
            rows.rows_of_view(0)[places["test"]]
        )
    return len(shown)


@pytest.mark.slow
def test_each_distinct_image_passes_through_the_frozen_layers_once(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter agrees with the formula in the docs and with what the first convolution saw."""
    batches = []
    convolve = torch.conv2d

    def count_images(images: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        if weight.shape[1] == 3:
            batches.append(len(images))
        return convolve(images, weight, *rest, **more)

    monkeypatch.setattr(nn.functional, "conv2d", count_images)
    # Enough that every view has at least 16 new images; fewer would be padded to 16.
    arguments = (*QUICK, "data.limit=250", "model.pct_unfreeze=0.25", "store.mode=on")
    assert shell(*arguments, "hydra.run.dir=cold").code == 0
    cold = sum(batches)
    batches.clear()
    assert shell(*arguments, "hydra.run.dir=warm").code == 0
    overhead = sum(batches)  # for the size check, the trace and its check, equal in both runs
    distinct = distinct_images(views=2, limit=250)
    assert 250 < distinct < 2 * 250
    assert summary(tmp_path / "cold")["prefix_images"] == distinct == cold - overhead


@pytest.mark.slow
def test_mixed_precision_is_reported_and_close(shell: Shell, tmp_path: Path) -> None:
    small = ("data.limit=40", "data.image_size=32")
    arguments = (*QUICK, *small, "model.pct_unfreeze=0.25", "fabric.precision=bf16-mixed")
    for mode in ("off", "on"):
        assert shell(*arguments, f"store.mode={mode}", f"hydra.run.dir={mode}").code == 0
    assert summary(tmp_path / "off")["approximations"] == ["precision bf16-mixed"]
    assert "precision bf16-mixed" in summary(tmp_path / "on")["approximations"]
    for one, other in zip(metrics(tmp_path / "on"), metrics(tmp_path / "off"), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)


@pytest.mark.slow
def test_a_half_precision_store_is_reported_and_close(shell: Shell, tmp_path: Path) -> None:
    arguments = (*QUICK, "model.pct_unfreeze=0")
    assert shell(*arguments, "store.mode=off", "hydra.run.dir=off").code == 0
    assert shell(*arguments, "store.mode=on", "store.dtype=float16", "hydra.run.dir=half").code == 0
    assert summary(tmp_path / "half")["approximations"] == ["float16 store"]
    for one, other in zip(metrics(tmp_path / "half"), metrics(tmp_path / "off"), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["train_loss"] != other["train_loss"]


@pytest.mark.slow
def test_recalibrated_statistics_give_another_model_than_pretrained_ones(
    shell: Shell, tmp_path: Path
) -> None:
    for frozen_bn in ("eval", "recalibrate"):
        arguments = (
            *QUICK,
            "model=transfer",
            f"model.frozen_bn={frozen_bn}",
            f"hydra.run.dir={frozen_bn}",
        )
        assert shell(*arguments).code == 0
    assert metrics(tmp_path / "eval") != metrics(tmp_path / "recalibrate")


@pytest.mark.slow
def test_activations_computed_with_two_threads_serve_a_job_with_one(
    shell: Shell, tmp_path: Path
) -> None:
    arguments = (*QUICK, "model.pct_unfreeze=0.25", "store.mode=on")
    for name, threads in (("two", 2), ("one", 1)):
        assert shell(*arguments, f"threads={threads}", f"hydra.run.dir={name}").code == 0
    assert shell(*arguments, "threads=1", "store.mode=off", "hydra.run.dir=off").code == 0
    assert summary(tmp_path / "one")["prefix_images"] == 0
    for row, expected in zip(metrics(tmp_path / "one"), metrics(tmp_path / "off"), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_full_store_changes_no_number(shell: Shell, tmp_path: Path) -> None:
    """With room for the images of one split only: a warning, and the same epochs."""
    arguments = (*QUICK, "epochs=3", "model.pct_unfreeze=0.5")
    assert shell(*arguments, "store.mode=off", "hydra.run.dir=off").code == 0
    outcome = shell(*arguments, "store.mode=on", "store.max_gb=0.0005", "hydra.run.dir=full")
    assert outcome.code == 0
    assert "store: no longer caching train images: " in outcome.out
    assert metrics(tmp_path / "full") == metrics(tmp_path / "off")


def _run(folder: Path, store: Path, *arguments: str) -> forks.Process:
    kind = "sweep" if "-m" in arguments else "run"
    return forks.train(
        *arguments,
        f"hydra.{kind}.dir={folder}",
        cwd=folder.parent,
        TVF_STORE=str(store),
        PYTHONPATH=IMPORTABLE,
    )


@pytest.mark.slow
def test_a_parallel_sweep_equals_one_without_a_store_and_computes_each_image_once(
    tmp_path: Path,
) -> None:
    """Fractions × folds, two jobs at a time, in a cold store: each image once per chain of cuts."""
    grid = ("model.pct_unfreeze=0,0.25,0.5", "data.folds=2", "data.fold=0,1")
    outputs = {}
    for mode, launcher in (("on", "local"), ("off", "basic")):
        arguments = ("-m", *grid, *QUICK, SMALL, "data.limit=167", f"store.mode={mode}")
        arguments += (f"hydra/launcher={launcher}",)
        process = _run(tmp_path / mode, tmp_path / "store", *arguments)
        outputs[mode], _ = process.communicate()
        assert process.returncode == 0, outputs[mode]
    # Folder names hash all overrides, store.mode too, so jobs are matched by their metrics.
    on, off = (
        sorted(
            json.dumps(metrics(path.parent)) for path in (tmp_path / mode).glob("*/metrics.jsonl")
        )
        for mode in ("on", "off")
    )
    assert on == off and len(set(on)) == 6
    distinct = distinct_images(views=2, limit=167, folds=2)
    summaries = [summary(path.parent) for path in (tmp_path / "on").glob("*/summary.json")]
    assert sum(job["prefix_images"] for job in summaries) == distinct
    # Two deeper cuts: each image continues once from one cut to the next.
    assert sum(job["continued_images"] for job in summaries) == 2 * distinct


@pytest.mark.slow
def test_after_a_kill_while_filling_the_store_the_next_job_reuses_what_is_there(
    tmp_path: Path,
) -> None:
    arguments = (*QUICK, "data.limit=1067", "model=transfer", "store.mode=on")
    killed = _run(tmp_path / "killed", tmp_path / "store", *arguments)

    def stored() -> int:
        """How many rows of activations the store has; 0 and 1 in these files mean none."""
        files = (tmp_path / "store" / "activations").rglob("*.crc")
        return sum(int((np.fromfile(file, np.uint32) > 1).sum()) for file in files)

    for _ in range(6000):
        if stored() >= 200:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = stored()
    assert left >= 200 and not (tmp_path / "killed" / "summary.json").exists()
    for name, mode in (("again", "on"), ("off", "off")):
        process = _run(tmp_path / name, tmp_path / "store", *arguments, f"store.mode={mode}")
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert metrics(tmp_path / "again") == metrics(tmp_path / "off")
    distinct = distinct_images(views=2, limit=1067)
    assert summary(tmp_path / "again")["prefix_images"] == distinct - left


def test_view_rows_hold_each_distinct_image_once() -> None:
    augment = FlipsAndCrops(horizontal=0.5, padding=1, seed=3)
    images = torch.randint(
        0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    rows, samples, table = ViewRows(augment, 50), np.arange(50), []
    for view in range(12):
        new = rows.new_samples(view)
        pixels = images[torch.from_numpy(new)]
        table += list(augment(pixels, new, view) if view else pixels)
        assert rows.starts[view + 1] == len(table)
        expected = augment(images, samples, view) if view else images
        assert all(
            torch.equal(table[row], image)
            for row, image in zip(rows.rows_of_view(view), expected, strict=True)
        )
    distinct = {image.numpy().tobytes() for image in table}
    assert len(distinct) == len(table) < 12 * 50
    # Some later view shows an image as it is, and finds it in the first table.
    assert any((rows.rows_of_view(view) < 50).any() for view in range(1, 12))
