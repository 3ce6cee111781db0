"""The commands at the top of docs/own-data.md, on small images and for one epoch."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torchvision import models

from helpers import ROOT, forks
from helpers.folders import write_images

QUICK = ("data.image_size=32", "data.batch_size=8", "epochs=1", "tracker=none")


def _commands() -> list[list[str]]:
    """The commands of the first block of the page, without `tvf`."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    block = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[0].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("tvf ")]


NAMES = {
    "predictions": {"cats", "dogs"},
    "diagnoses": {"00", "01"},
    "pets": {"kitten", "puppy"},
    "own-weights": {"cats", "dogs"},
}


def _save_pets(folder: Path) -> None:
    """The photos as a data set of Hugging Face."""
    datasets = pytest.importorskip("datasets")
    files = sorted((folder / "photos").glob("*/*.png"))
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["kitten", "puppy"])}
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [int(file.parent.name == "dogs") for file in files],
    }
    found = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    datasets.DatasetDict({"train": found}).save_to_disk(folder / "pets")


@pytest.mark.slow
def test_the_commands_of_the_page_end_with_predictions(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    shutil.move(tmp_path / "data" / "train", tmp_path / "photos")
    rows = [("filename", "diagnosis", "patient")]
    for file in sorted((tmp_path / "photos").glob("*/*.png")):
        rows.append((f"{file.parent.name}-{file.name}", f"0{len(rows) % 2}", f"p{len(rows) % 12}"))
        for folder in ("scans", "new"):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / folder / rows[-1][0])
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    _save_pets(tmp_path)
    state = models.mobilenet_v3_small(num_classes=7).state_dict()
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    commands = _commands()
    assert len(commands) == 8
    for command in commands:
        process = forks.tvf(*command, *(QUICK if command[0] == "train" else ()), cwd=tmp_path)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for name, classes in NAMES.items():
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            predicted = [row["class"] for row in csv.DictReader(file)]
        assert len(predicted) == 48 and {*predicted} <= classes
