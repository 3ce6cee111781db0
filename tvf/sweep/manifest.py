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
    """The model nodes of the jobs of the sweep in `folder`, not yet done, that share frozen layers with `config`'s."""
    jobs = read_json(folder / "sweep.json").get("jobs", {})
    return [
        job["model"]
        for name, job in jobs.items()
        if _shared(job) == _shared(config) and read_json(folder / name / "status.json").get("state") != "done"
    ]


def _shared(config: dict[str, Any]) -> list[Any]:
    frozen_bn = (config.get("model") or {}).get("frozen_bn")
    nodes = [config.get(key) for key in SHARED]
    if frozen_bn != "recalibrate":  # whose statistics are means over batches
        nodes = [{**node, "batch_size": None} if isinstance(node, dict) else node for node in nodes]
    return [*nodes, frozen_bn]
