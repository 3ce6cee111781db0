"""A trained classifier of small images, as a job leaves it."""

from pathlib import Path

from helpers.configs import plain_config
from tvf.job import JobContext, run_job


def train_classifier(root: Path, folder: Path, *overrides: str, sweep: Path | None = None) -> Path:
    """Train a ResNet18 for an epoch on the images below `root`; return the job's folder."""
    config = plain_config(
        "name=job",
        "data=image_folder",
        f"data.root={root}",
        "data.image_size=32",
        "data.batch_size=8",
        "backbone=resnet18",
        "backbone.weights=null",
        "epochs=1",
        "model.pct_unfreeze=0.5",
        "tracker=none",
        "store.mode=off",
        *overrides,
    )
    folder.mkdir(parents=True)
    choices = {"model": "finetune", "backbone": "resnet18", "data": "image_folder"}
    run_job(config, JobContext(folder, sweep, parallel=True, choices=choices))
    return folder
