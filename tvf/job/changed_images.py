"""Whether the images of finished jobs are still the same when their command is given again."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from tvf.config import Config
from tvf.data import DataSource
from tvf.errors import InputError
from tvf.files import read_json
from tvf.job.resources import open_offline
from tvf.records import is_done, read_pool, read_status


def describe_changed_images(folder: Path, jobs: Mapping[str, Config]) -> str | None:
    """What has happened to the images of the jobs that are done; None if nothing has.

    `jobs` are configs by the names of their folders. Jobs of earlier versions did not record their
    images one by one: of those nothing is known.
    """
    alike: dict[str, list[str]] = {}
    for name, config in jobs.items():
        if is_done(folder / name, config):
            images = read_json(folder / name / "summary.json").get("images") or {}
            data = [config["data"].get(key) for key in ("_target_", "root", "path", "limit")]
            alike.setdefault(json.dumps([data, images.get("digest")]), []).append(name)
    texts = []
    for names in alike.values():
        if found := _describe(folder, open_offline(jobs[names[0]]), names):
            texts.append(found)
    if not texts:
        return None
    return (
        f"the images have changed: {'; '.join(texts)}. Finished jobs keep the scores of the images "
        "that they read, and are not trained again. To train on the images as they are now, choose "
        "another folder with hydra.sweep.dir= or hydra.run.dir=."
    )


def _describe(folder: Path, source: DataSource, names: list[str]) -> str | None:
    """What has happened to the images of these jobs, which all read the same ones of a source."""
    job = folder / names[0]
    before = read_pool(job)
    if before is None or not hasattr(source, "count_changes"):
        return None
    since = min(datetime.fromisoformat(read_status(folder / name)["started"]) for name in names)
    classes = read_json(job / "summary.json").get("classes", [])
    count = f"{len(names)} of the jobs" if len(names) > 1 else names[0]
    try:
        counts = source.count_changes(before, classes, since.timestamp())
    except InputError as error:
        return f"since {count} read them ({str(error).rstrip('.')})"
    changes = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    return f"{changes} since {count} read them" if changes else None
