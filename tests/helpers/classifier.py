"""A trained classifier of small images, as a job leaves it."""

from collections.abc import Sequence
from pathlib import Path

from helpers.configs import plain_config
from tvf.job import JobContext, run_job

# A job of a ResNet18 takes six times as long.
TINY = ("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false")


def train_classifier(
    root: Path, folder: Path, *overrides: str, backbone: Sequence[str] = TINY
) -> Path:
    """Train a network for an epoch on the images below `root`; return the job's folder."""
    config = plain_config(
        "name=job",
        "data=image_folder",
        f"data.root={root}",
        "data.image_size=32",
        "data.interpolation=bilinear",
        "data.batch_size=8",
        *backbone,
        "epochs=1",
        "model.pct_unfreeze=0.5",
        "tracker=none",
        "store.mode=off",
        *overrides,
    )
    folder.mkdir(parents=True)
    name = backbone[0].removeprefix("backbone=")
    choices = {"model": "finetune", "backbone": name, "data": "image_folder"}
    run_job(config, JobContext(folder, None, parallel=True, choices=choices))
    return folder
