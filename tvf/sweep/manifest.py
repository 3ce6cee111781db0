"""sweep.json: the configs of a sweep's jobs, so that each of them knows what the others will need."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from tvf.files import read_json, write_json

# What two jobs must have in common for their images to pass through the same frozen layers.
SHARED = ("backbone", "data", "augment", "fabric", "channels_last", "store")


def write_manifest(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Note the configs of jobs by the names of their folders, beside those that the sweep had before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    with FileLock(folder / ".lock"):
        write_json(path, {"jobs": read_json(path).get("jobs", {}) | configs})


def sharing_models(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The model nodes of those jobs of the sweep in `folder` that share frozen layers with `config`'s job."""
    jobs = read_json(folder / "sweep.json").get("jobs", {}).values()
    return [job["model"] for job in jobs if _frozen_alike(job, config)]


def _frozen_alike(job: dict[str, Any], config: dict[str, Any]) -> bool:
    same_batchnorm = job["model"].get("frozen_bn") == config["model"].get("frozen_bn")
    return same_batchnorm and all(job[key] == config[key] for key in SHARED)
