"""What jobs and sweeps print and record about their images."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Outcome
from helpers.jobs import summary
from tvf.files import LAST_CHECKPOINT
from tvf.job.checkpoint import DIGEST, MAGIC
from tvf.job.images import check_same_images
from tvf.records import read_sweep
from tvf.records.tracking import _NoRun
from tvf.report.formats import render_report

Shell = Callable[..., Outcome]


def quick(root: Path | str, *more: str) -> list[str]:
    """The overrides of a job of one epoch, for whose images a path may be spelled freely."""
    folder = str(root).replace("'", r"\'")
    given = ["epochs=1", "data.image_size=32", "model=transfer", "tracker=none"]
    return ["data=image_folder", f"data.root='{folder}'", *given, *more]


@pytest.mark.slow
def test_a_job_says_and_records_what_it_read_and_what_it_left_out(
    shell: Shell, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(_NoRun, "set_config", lambda self, values: sent.append(values))
    cats = image_root / "train" / "cats"
    for number in range(20):
        (cats / f"{number}.png").rename(cats / f"{number}.heic")
    shutil.copytree(image_root / "train" / "dogs", image_root / "train" / "dogs" / ".checkpoints")
    shutil.copytree(image_root / "train" / "dogs", image_root / "Testing" / "dogs")
    outcome = shell(*quick(image_root, "hydra.run.dir=job", "data.duplicates=warn"))
    assert outcome.code == 0
    record = summary(tmp_path / "job")
    images = record["images"]
    assert record["classes"] == ["cats", "dogs"]
    by_class = images["by_class"]
    assert by_class["test"] == [0, 24]
    assert (np.array(by_class["train"]) + by_class["val"]).tolist() == [4, 24]
    assert "test 24 (cats 0, dogs 24)" in outcome.out
    assert "Testing/ is read as the test split" in outcome.out
    assert "the test split has no image of cats: its scores say nothing" in outcome.out
    assert "files with other endings 20 (.heic 20; train/cats/0.heic)" in outcome.out
    reasons = [[each["reason"], each["kind"], each["count"]] for each in images["left_out"]]
    assert reasons == [
        ["hidden or system files", "in a folder", 48],
        ["files with other endings", ".heic", 20],
    ]
    assert sent == [{"classes": record["classes"], "images": images}]
    assert len({*images["digests"].values()}) == 3


def test_digests_follow_the_images_and_their_labels_not_their_names(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    from tvf.data import ImageFolder, count_images

    def digests() -> dict[str, str]:
        data = ImageFolder(root=str(image_root), image_size=32, val_fraction=0.1).load()
        return count_images(data)["digests"]

    cats, dogs = (image_root / "train" / name for name in ("cats", "dogs"))
    for part in ("val", "test"):
        shutil.copytree(image_root / "train", image_root / part)
    before = digests()
    assert before["train"] == before["val"] == before["test"]
    (cats / "0.png").rename(cats / "zzz.png")
    assert digests() == before
    (cats / "1.png").rename(dogs / "from cats.png")
    after = digests()
    assert after["train"] != before["train"] and after["val"] == before["val"]


@pytest.mark.slow
def test_a_job_does_not_resume_on_other_images(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    overrides = quick(image_root, "hydra.run.dir=job", "epochs=2")
    shell(*overrides, "stop_after=1")
    content = (tmp_path / "job" / LAST_CHECKPOINT).read_bytes()[len(MAGIC) + DIGEST :]
    (tmp_path / "plain.pt").write_bytes(content)
    state = torch.load(tmp_path / "plain.pt", weights_only=True)["state"]
    assert {*state["images"]} == {"train", "val", "test"}
    image = image_root / "train" / "cats" / "3.png"
    shutil.copy(image_root / "train" / "dogs" / "3.png", image)
    outcome = shell(*overrides)
    assert outcome.code == 1 and "the images have changed since the checkpoint" in outcome.out
    same = {"digests": state["images"], "train": 29, "val": 7, "test": 12}
    check_same_images(state, same, tmp_path)
    check_same_images({}, same, tmp_path)  # of an older version
    check_same_images(None, same, tmp_path)


def test_a_sweep_finds_every_bad_image_before_its_first_job(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    """Also those of a data set that only its last job reads."""
    bad = tmp_path / "bad"
    shutil.copytree(image_root, bad)
    for number in range(12):
        (bad / "train" / "cats" / f"{number}.png").write_bytes(b"GIF89a, but no more of it")
    overrides = quick(image_root, "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    overrides[1] = f"data.root={image_root},{bad}"
    outcome = shell("-m", *overrides)
    assert outcome.code == 1
    assert "error: 12 of 48 images cannot be read" in outcome.err
    assert "12: it is none that Pillow knows (0.png, 1.png, 10.png, ...). Repair" in outcome.err
    assert not list(tmp_path.glob("sweep/*/status.json"))


@pytest.mark.slow
def test_a_class_that_is_not_utf_8_can_be_trained_and_reported_in_every_format(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "p\udcffath 100%"
    image_root.rename(root)
    os.rename(root / "train" / "cats", root / "train" / "caf\udce9\n|<b>")
    os.rename(root / "train" / "dogs" / "1.png", root / "train" / "dogs" / "\udcff.png")
    overrides = quick(root, "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    outcome = shell("-m", *overrides)
    assert outcome.code == 0 and "no report" not in outcome.out
    assert r"caf\xe9\n|<b> " in outcome.out
    (job,) = (path.parent for path in tmp_path.glob("sweep/*/summary.json"))
    assert summary(job)["classes"] == [r"caf\xe9\n|<b>", "dogs"]
    rows = read_sweep(tmp_path / "sweep")
    for kind in ("html", "md", "csv", "json"):  # of all, only png holds no text
        text = b"".join(render_report([tmp_path / "sweep"], rows, kind).values()).decode()
        assert r"p\xffath" in text or kind == "json"
        assert r"caf\xe9" in text.replace("\\\\", "\\") or kind in ("md", "csv")
    log = (job / "job.log").read_text()
    assert r"caf\xe9\n|<b> " in log
    with np.load(job / "predictions.npz") as held:
        names = np.concatenate([held["val_names"], held["test_names"]])
    assert all(str(name).encode() for name in names)
    assert json.loads((job / "config.json").read_text())["data"]["root"] == str(root)


def test_results_are_not_written_where_weights_cannot_be(
    shell: Shell, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "w\udce9").mkdir()
    monkeypatch.chdir(folder)
    outcome = shell(*quick(image_root))
    assert outcome.code == 1 and r"w\xe9/outputs/runs: its path must be UTF-8" in outcome.out
    outcome = shell("-m", *quick(image_root, "seed=1,2"))
    assert outcome.code == 1 and "its path must be UTF-8" in outcome.err
