"""Searches by Optuna whose jobs are simulated: written to their folders as if trained."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from helpers import ROOT
from tvf.records.job import JobRecord
from tvf.records.rows import read_history
from tvf.records.sweep import read_trials, write_manifest
from tvf.sweep.composing import compose_jobs, place_jobs
from tvf.sweep.optuna_search import Search, open_search

Course = Callable[[dict[str, Any]], list[float] | None]  # scores by epoch; None: the job fails
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


class Interrupted(Exception):
    """The simulated search was interrupted, before one of its jobs."""


@contextmanager
def composed(folder: Path, *overrides: str, sweeper: str = "optuna") -> Iterator[DictConfig]:
    """Compose the config of a sweep, as Hydra gives it to the sweep's callback."""
    given = [f"hydra.sweep.dir={folder}", f"hydra/sweeper={sweeper}", "hydra/launcher=basic"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.compose_config(
            "config", [*given, "tracker=none", *overrides], RunMode.MULTIRUN, from_shell=False
        )


_known: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}


def _compose_once(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Any]:
    """`compose_jobs`, which takes 0.1 s per job, for each job once. None is named by its sweep."""
    for job in map(tuple, jobs):
        if job not in _known:
            (_known[job],) = compose_jobs(config, [job])
    found = [_known[tuple(job)] for job in jobs]
    return [(name, json.loads(json.dumps(given))) for name, given in found]


@contextmanager
def opened(folder: Path, *overrides: str) -> Iterator[Search]:
    """Open a search; the images of its jobs are not read."""
    with (
        composed(folder, *overrides) as config,
        patch("tvf.sweep.composing.compose_jobs", _compose_once),
        patch("tvf.sweep.optuna_search.compose_jobs", _compose_once),
    ):
        search = open_search(config)
        search._images_read = True
        yield search


def run(
    folder: Path, course: Course, *overrides: str, most: int | None = None
) -> list[dict[str, Any]]:
    """Run a search whose jobs have the scores of `course`, and return its trials.

    Raises Interrupted before more than `most` jobs are launched.
    """
    with opened(folder, *overrides) as search:
        write_manifest(folder, {})
        search.note()
        for batch in search.batches():
            for job in batch:
                if most == 0:
                    raise Interrupted
                most = None if most is None else most - 1
                train(search.config, job, course)
    return read_trials(folder)


def train(config: DictConfig, job: Sequence[str], course: Course) -> None:
    """Write the files of a job that has trained, or has been paused by its stop_after."""
    stop = [text.partition("=")[2] for text in job if text.startswith("stop_after=")]
    ((name,), jobs, _) = place_jobs(
        config, [[text for text in job if not text.startswith("stop_after=")]]
    )
    folder, given = Path(config.hydra.sweep.dir) / name, jobs[name]
    folder.mkdir(parents=True, exist_ok=True)
    scores = course(given)
    record = JobRecord(folder, str(given["name"]), given, read_history(folder))
    try:
        with record:
            assert scores is not None, "it broke"
            until = int(stop[0]) if stop else len(scores)
            for number, score in list(enumerate(scores, 1))[len(record.metrics) : until]:
                record.log({"epoch": number, "val_acc": score, "val_loss": 0.5})
            if until < len(scores):
                record.paused()
            else:
                summary = {"metric": "accuracy", "val_acc": max(scores), "val_loss": 0.5}
                record.done(summary | {"name": str(given["name"]), "train_seconds": 1.0})
    except AssertionError:
        return
