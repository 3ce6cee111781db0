"""One job from start to end: start or resume, train epoch by epoch, test once, record it all."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tvf.config import Config, build_part, earlier_options, result_config
from tvf.data import count_images, describe_pool
from tvf.distributed import training_begins
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, read_json
from tvf.job.changed_images import describe_changed_images
from tvf.job.checkpoint import Checkpoints
from tvf.job.claim import claim_job
from tvf.job.head_phase import HeadPhase, open_head_phase
from tvf.job.images import check_same_images, log_images
from tvf.job.kept import LOST, KeptWeights
from tvf.job.probe_start import start_from_ridge
from tvf.job.resources import JobContext, claim_devices, explain_memory, open_run
from tvf.job.scoring import score_job, summarise
from tvf.job.setup import Job, build_job, open_job
from tvf.job.stopping import stopped_after_batches
from tvf.lease import remove_leftovers
from tvf.memory import return_freed_memory
from tvf.metrics import METRICS, metric_of
from tvf.models import (
    check_not_own_weights,
    describe_model,
    load_weights,
)
from tvf.records import (
    JobRecord,
    Run,
    check_same_configuration,
    failure_reason,
    has_reached,
    is_done,
    mark_failed,
    mark_paused,
    write_predictions,
)
from tvf.training import EpochResult, TrainingLoop

log = logging.getLogger(__name__)

TESTED = ("test_loss", "test_acc", "test_macro_f1", "test_auroc")  # sent to the tracker once


JobOpener = Callable[[Config, JobContext], AbstractContextManager[Job]]


def run_job(
    config: Config, context: JobContext, opened: JobOpener = open_job
) -> dict[str, Any] | None:
    """Train and test a job, write its record to its folder, and return its summary.

    `opened` builds the job, and closes what it holds at the end of a context.
    Returns None if there is nothing to do, if the job pauses at `stop_after`, or if another process
    of the sweep trains it or has taken it over: jobs that differ only in ignored options share a
    folder and are trained once. Raises InputError for a mistake that only images or weights reveal,
    if the folder holds another configuration, or if another process is training in the folder of a
    single job. Any error is recorded in status.json.
    """
    folder, name, metric = context.folder, config["name"], metric_of(config)
    with claim_job(context, name) as lease:
        if lease is None:
            return None
        with _mistakes_recorded(folder, name):
            check_not_own_weights(config["model"].get("init_from"), folder)
        checkpoints: Checkpoints = build_part(
            config,
            "checkpoint",
            folder=folder / "checkpoints",
            configuration=_fingerprint(result_config(config)),
        )
        if is_done(folder, config):
            log.info("%s: already done (%s).", name, folder)
            if context.sweep is None:  # a sweep has said it for all of its jobs
                if changed := describe_changed_images(folder.parent, {folder.name: config}):
                    log.warning("%s", changed)
            checkpoints.delete()
            return None
        if has_reached(folder, config):
            log.info("%s: already trained to stop_after=%d.", name, config["stop_after"])
            mark_paused(folder)
            return None
        check_same_configuration(folder.parent, {folder.name: config})
        for leftovers in (folder, folder / "checkpoints"):
            remove_leftovers(leftovers)
        with _mistakes_recorded(folder, name):
            context = claim_devices(config, context)  # may wait long, and the job has not begun
            lease.check()
            best_weights = folder / BEST_WEIGHTS
            earlier = {*map(_fingerprint, earlier_options(read_json(folder / "config.json")))}
            state = checkpoints.load_usable(name, metric, best_weights, earlier)
        record = JobRecord(folder, name, config, state["history"] if state else (), lease)
        try:
            # The record's context is inside the run's, which may wait for a network at its end.
            with record, open_run(config, context, record) as run, record:
                explained = partial(explain_memory, config, context)
                with explained(), opened(config, context) as job, explained():
                    summary = train_job(job, record, run, checkpoints, state)
                if summary is not None:
                    checkpoints.delete()
        finally:
            return_freed_memory()
        return summary and summary | {"wandb_mode": run.mode}
    return None  # another process has taken the job over


def _fingerprint(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def train_job(
    job: Job, record: JobRecord, run: Run, checkpoints: Checkpoints, state: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Train and test `job`, resuming from `state`; return its summary, or None if it pauses."""
    tag, best_weights = job.phases.tag, record.folder / BEST_WEIGHTS
    images = count_images(job.phases.data)
    log_images(tag, job.phases.data, images)
    check_same_images(state, images, record.folder)
    run.set_config({"classes": list(job.phases.data.classes), "images": images})
    _log_start(job, state)
    for row in record.metrics:  # epochs of an earlier attempt, which the tracker may lack
        run.log(row, step=row["epoch"])
    with _head_phase(job) as head, stopped_after_batches() as stopped:
        state = job.phases.fabric.broadcast(state)
        if head:
            state = _share_head_phase(job, head, record, run, state)
        if state is not None:
            job.costs.add_earlier(state["spent"])

        kept = KeptWeights(job, record, checkpoints, best_weights)

        def checkpoint() -> dict[str, Any]:
            record.check_lease()
            return loop.state_dict() | {"spent": job.costs.total(), "images": images["digests"]}

        def save_if_due() -> None:
            if stopped() or checkpoints.due():
                kept.save(checkpoint())
            stop_if_asked()

        def stop_if_asked() -> None:
            if stopped():
                log.info("%s was asked to stop: its checkpoint is kept.", tag)
                raise KeyboardInterrupt

        if state is None and job.from_ridge:
            start_from_ridge(job.phases)
            if job.steps.average:
                job.steps.average.reset()
        loop = TrainingLoop(
            job.phases.fabric,
            job.phases.model,
            job.phases,
            job.steps,
            job.loop,
            state=state,
            after_batch=save_if_due,
        )
        if loop.is_best:  # the checkpoint was written, but not the best weights
            kept.keep_best(loop)
        training_begins()
        for epoch in loop:
            record.log(asdict(epoch), every=LOST if job.brief else 0)
            run.log(asdict(epoch), step=epoch.epoch)
            _log_epoch(job, epoch)
            kept.keep_epoch(loop, checkpoint)
            if head and loop.phase_is_over and not loop.is_over:
                head.keep(checkpoint(), best_weights)
            if job.brief and stopped():
                kept.save(checkpoint())
            if not loop.is_over:
                stop_if_asked()
        if job.brief and not loop.is_over:
            kept.save(checkpoint())
    if not loop.is_over:
        record.paused()
        log.info("%s pauses after epoch %d of %d.", tag, len(record.metrics), job.epochs)
        return None
    return _end_job(job, record, run, loop, kept, images)


def _end_job(
    job: Job,
    record: JobRecord,
    run: Run,
    loop: TrainingLoop,
    kept: KeptWeights,
    images: dict[str, Any],
) -> dict[str, Any]:
    """Test a job that has trained, and write the rest of its record; return its summary."""
    scores, predictions = score_job(job, loop, kept.load_best)
    pool = describe_pool(job.phases.data.train.pool)
    record.check_lease()
    write_predictions(record.folder, predictions, job.trained_on, pool)
    summary = summarise(job, record, run, scores) | {"images": images}
    if tested := {key: summary[key] for key in TESTED if key in summary}:
        run.log(tested | {"epoch": summary["best_epoch"]}, step=job.epochs + 1)
    record.done(summary)
    run.set_summary(summary)
    _log_end(job, summary)
    return summary


def follow_job(
    config: Config,
    folder: str,
    sweep: str | None,
    choices: dict[str, str],
    devices: list[int] | None,
    workers: int,
) -> None:
    """Run on the other ranks of a job: train along with rank 0, which keeps all records."""
    context = JobContext(
        folder=Path(folder),
        sweep=Path(sweep) if sweep else None,
        parallel=True,
        choices=choices,
        devices=devices,
        workers=workers,
    )
    with explain_memory(config, context), build_part(config, "store").open() as store:
        job = build_job(config, context, store)
        phases = job.phases
        state = phases.fabric.broadcast(None)
        loop = TrainingLoop(phases.fabric, phases.model, phases, job.steps, job.loop, state)
        for _ in loop:
            pass
        if loop.is_over:
            best_weights = context.folder / BEST_WEIGHTS
            score_job(job, loop, partial(load_weights, phases.model, best_weights))


@contextmanager
def _mistakes_recorded(folder: Path, name: str) -> Iterator[None]:
    """Write an InputError, or one of CUDA, to status.json; later ones are the JobRecord's."""
    try:
        yield
    except (InputError, RuntimeError) as error:
        mark_failed(folder, name, failure_reason(error))
        raise


def _head_phase(job: Job) -> AbstractContextManager[HeadPhase | None]:
    phases = job.phases
    return open_head_phase(job.head_phase, phases.store, phases.model) or nullcontext()


def _share_head_phase(
    job: Job, head: HeadPhase, record: JobRecord, run: Run, state: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The state after the head phase if another job has trained it; `state` if this job resumes."""
    if state is not None:
        head.hold(state)
        return state
    state = head.take(record.folder / BEST_WEIGHTS, job.loop.metric, job.phases.tag)
    if state is not None:
        epochs = len(state["history"])
        log.info("%s takes epochs 1 to %d from another job.", job.phases.tag, epochs)
        job.costs.restart()
        for row in state["history"]:
            record.log(row)
            run.log(row, step=row["epoch"])
    return state


def _log_start(job: Job, state: dict[str, Any] | None) -> None:
    tag, model = job.phases.tag, job.phases.model
    log.info("%s %s", tag, describe_model(model, job.backbone))
    if job.facts["pct_unfreeze"] and not model.trained_groups:
        log.warning("%s pct_unfreeze rounds to none of %d groups.", tag, len(job.backbone.groups))
    if state:
        log.info("%s resumes after epoch %d.", tag, len(state["history"]))
        now = job.phases.fabric.device.type
        if (before := state.get("device", now)) != now:
            log.warning("%s was trained on %s so far: digits may differ.", tag, before)


def _log_epoch(job: Job, epoch: EpochResult) -> None:
    metric = job.loop.metric
    line = (
        f"{job.phases.tag} epoch {epoch.epoch}/{job.epochs} "
        f"train_loss {epoch.train_loss:.4f} train_acc {epoch.train_acc:.3f}"
    )
    if epoch.val_loss is not None:
        line += f" val_loss {epoch.val_loss:.4f} val_acc {epoch.val_acc:.3f}"
    if epoch.val_loss is not None and metric != "accuracy":
        line += f" val_{METRICS[metric]} {epoch.score(metric):.3f}"
    log.info("%s", line)


def _log_end(job: Job, summary: dict[str, Any]) -> None:
    if "test_loss" not in summary:
        log.info("%s has the weights of epoch %d.", job.phases.tag, summary["best_epoch"])
        return
    log.info(
        "%s test_loss %.4f test_acc %.3f (weights of epoch %d)",
        job.phases.tag,
        summary["test_loss"],
        summary["test_acc"],
        summary["best_epoch"],
    )
