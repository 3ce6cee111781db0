"""One job, from its config to its record: check, build, fit, test. Below it nothing sees the config."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from tvf.config import (
    build,
    ignored_options,
    is_transfer,
    known_fraction,
    result_config,
    selection_name,
    validate_config,
)
from tvf.distributed import (
    count_devices,
    describe_machine,
    library_versions,
    peak_memory_mb,
    return_freed_memory,
    start_ranks,
)
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, remove_leftovers
from tvf.job.checkpoint import Checkpoints
from tvf.job.head_phase import head_phase
from tvf.job.setup import Job, JobContext, PhaseBuilder, build_job, claim_devices
from tvf.metrics import METRICS, metric_of
from tvf.models import (
    check_not_own_weights,
    count_parameters,
    describe_model,
    is_readable,
    load_initial_weights,
    load_weights,
    save_weights,
)
from tvf.records import (
    LOCK,
    JobRecord,
    Run,
    check_same_configuration,
    failure_reason,
    has_reached,
    is_done,
    mark_failed,
    mark_paused,
)
from tvf.store import Store
from tvf.training import STATE_KEYS, EpochResult, evaluate, fit, holds_best

log = logging.getLogger(__name__)

SPENT = (
    "train_seconds",
    "prefix_seconds",
    "prefix_images",
    "continued_images",
)  # added up over attempts
TESTED = ("test_loss", "test_acc", "test_macro_f1", "test_auroc")  # what a tracker gets as points


def run_job(cfg: DictConfig, context: JobContext) -> dict[str, Any] | None:
    """Train and test one configuration, leave its record in the job's folder, and return its summary.

    Returns None where the folder's job is done, pauses at `stop_after` or, in a sweep, is in the hands of another
    process: jobs of a sweep that differ only in what the model ignores share a folder, and are trained once. Raises
    InputError for a mistake in the config or the data, if the folder holds another configuration, or if another process
    trains in the folder of a job by itself. Whatever else is raised, status.json says so.
    """
    lock = FileLock(context.folder / LOCK)
    try:
        lock.acquire(timeout=1)  # who only asks whether it is held has it for a moment
    except Timeout:
        if context.sweep is None:
            raise InputError(
                f"another process trains in {context.folder}: choose another hydra.run.dir."
            ) from None
        log.info("%s: another process trains this job.", cfg.name)
        return None
    try:
        return _run_alone(cfg, context)
    finally:
        lock.release()


def _run_alone(cfg: DictConfig, context: JobContext) -> dict[str, Any] | None:
    try:
        config = validate_config(cfg)
        check_not_own_weights(config["model"].get("init_from"), context.folder)
    except Exception as error:
        mark_failed(context.folder, str(cfg.get("name")), failure_reason(error))
        raise
    ignored = [
        key for key in ignored_options(config["model"]) if OmegaConf.select(cfg, key) is not None
    ]
    if ignored:
        what = "model=transfer trains the head alone"
        if not is_transfer(config["model"]):
            what = f"model.{'direction' if config['model'].get('train') is None else 'train'} names what trains"
        log.info("%s: %s and ignores %s.", config["name"], what, ", ".join(ignored))
    checkpoints = _checkpoints(config, context)
    if is_done(context.folder, config):
        log.info("%s: done already (%s).", config["name"], context.folder)
        checkpoints.finish()
        return None
    if has_reached(context.folder, config):
        log.info(
            "%s: trained for stop_after=%d epochs already.", config["name"], config["stop_after"]
        )
        mark_paused(context.folder)
        return None
    check_same_configuration(context.folder.parent, {context.folder.name: config})
    for folder in (context.folder, context.folder / "checkpoints"):
        remove_leftovers(folder)
    state = checkpoints.load()
    if state and not STATE_KEYS | {"spent"} <= state.keys():
        log.warning(
            "%s is no checkpoint of a job, so %s starts anew.", checkpoints.last, config["name"]
        )
        state = None
    if (
        state
        and not holds_best(state, metric_of(config))
        and not is_readable(context.folder / BEST_WEIGHTS)
    ):
        log.warning("%s: its best weights cannot be read, so it starts anew.", config["name"])
        state = None
    record = JobRecord(context.folder, config["name"], config, state["history"] if state else ())
    try:
        with record:  # once more within the tracker's context
            return _run(config, context, record, checkpoints, state)
    finally:
        return_freed_memory()


def _checkpoints(config: dict[str, Any], context: JobContext) -> Checkpoints:
    """The checkpoints of this very configuration in the job's folder."""
    of = hashlib.sha256(json.dumps(result_config(config), sort_keys=True).encode()).hexdigest()
    return build(config["checkpoint"], "checkpoint", folder=context.folder / "checkpoints", of=of)


def _run(
    config: dict[str, Any],
    context: JobContext,
    record: JobRecord,
    checkpoints: Checkpoints,
    state: dict[str, Any] | None,
) -> dict[str, Any] | None:
    facts = {
        "model": context.choices["model"],
        "backbone": config["backbone"].get("name", context.choices["backbone"]),
        "data": context.choices["data"],
        "seed": config["seed"],
        "pct_unfreeze": known_fraction(config["model"]),
    }
    tracker = build(config["tracker"], "tracker")
    group = context.sweep.name if context.sweep else None
    context = claim_devices(context, config["fabric"])
    with ExitStack() as afterwards:
        with tracker.start(
            context.folder, config["name"], group, facts | {"config": config}, record.run_id
        ) as run:
            record.tracked(run)
            afterwards.callback(
                record.tracked, run
            )  # what the tracker could not send is known once it has finished
            # Within the tracker's context, whose end may have to wait for a network.
            with record, build(config["store"], "store").open() as store:
                with _other_ranks(config, context):
                    summary = _train(config, facts, context, record, run, store, checkpoints, state)
            if summary is None:
                return None
            checkpoints.finish()
    return summary | {"wandb_mode": run.mode}


def _train(
    config: dict[str, Any],
    facts: dict[str, Any],
    context: JobContext,
    record: JobRecord,
    run: Run,
    store: Store | None,
    checkpoints: Checkpoints,
    state: dict[str, Any] | None,
) -> dict[str, Any] | None:
    def report(metrics: dict[str, Any]) -> None:
        record.log(metrics)
        run.log(metrics, step=metrics["epoch"])

    tag = _tag(config, facts, context.choices.get("recipe"), in_sweep=context.sweep is not None)
    for metrics in record.metrics:  # of an earlier attempt, which the tracker may never have got
        run.log(metrics, step=metrics["epoch"])
    parts = build_job(config, context, store)
    if facts["pct_unfreeze"] is None:
        facts["pct_unfreeze"] = parts.model.pct_unfreeze
    _start_from(config, facts["backbone"], parts, tag)
    log.info("%s %s", tag, describe_model(parts.model, parts.backbone))
    if facts["pct_unfreeze"] and not parts.model.trained_groups:
        log.warning("%s pct_unfreeze rounds to none of %d groups.", tag, len(parts.backbone.groups))
    if state:
        log.info("%s goes on after epoch %d of an earlier attempt.", tag, len(state["history"]))
    scores = _fit_and_test(config, context, parts, report, tag, checkpoints, state)
    if scores is None:
        record.paused()
        log.info("%s pauses after epoch %d of %d.", tag, len(record.metrics), config["epochs"])
        return None
    tested = {"epoch": scores["best_epoch"]} | {key: scores[key] for key in TESTED}
    run.log(tested, step=config["epochs"] + 1)
    parts.model.unfreeze()
    summary = {"name": config["name"], **facts} | {
        "classes": list(parts.data.classes),
        "unfrozen_groups": [group.name for group in parts.model.trained_groups],
        "trainable_params": count_parameters(
            p for p in parts.model.parameters() if p.requires_grad
        ),
        "total_params": count_parameters(parts.model.parameters()),
        "epochs": config["epochs"],
        **scores,
        "images_per_second": median(epoch["images_per_second"] for epoch in record.metrics),
        "peak_memory_mb": peak_memory_mb(parts.fabric.device),
        "wandb_run_id": run.id,
        "wandb_url": run.url,
        "versions": library_versions(),
        "machine": describe_machine(parts.fabric.device),
    }
    record.done(summary)
    run.set_summary(summary)
    log.info("%s test_loss %.4f test_acc %.3f (weights of epoch %d)", tag, *_of(scores))
    return summary


def _start_from(config: dict[str, Any], backbone: str, parts: Job, tag: str) -> None:
    if (origin := config["model"].get("init_from")) is not None:
        head = f"module.{parts.model.head}"
        weights = load_initial_weights(
            parts.model, origin, backbone, parts.data.classes, head, config["data"]
        )
        log.info("%s starts from the weights in %s.", tag, weights)


def _other_ranks(config: dict[str, Any], context: JobContext) -> AbstractContextManager[None]:
    """In here the other ranks of a job on several devices train along; see tvf.distributed.ranks."""
    devices, sweep = (
        count_devices(config["fabric"]["devices"]),
        str(context.sweep) if context.sweep else None,
    )
    rest = {
        "folder": str(context.folder),
        "sweep": sweep,
        "choices": context.choices,
        "devices": context.devices,
    }
    arguments = {"config": config, **rest}
    return (
        start_ranks(devices, "tvf.job.run:train_along", arguments) if devices > 1 else nullcontext()
    )


def train_along(
    config: dict[str, Any],
    folder: str,
    sweep: str | None,
    choices: dict[str, str],
    devices: list[int] | None,
) -> None:
    """What the other ranks of a job do: train with rank 0, which has the record, the tracker and the checkpoints."""
    context = JobContext(
        Path(folder),
        Path(sweep) if sweep else None,
        parallel=True,
        choices=choices,
        devices=devices,
    )
    with build(config["store"], "store").open() as store:
        parts = build_job(config, context, store)
        _start_from(config, config["backbone"].get("name", choices["backbone"]), parts, "")
        _fit_and_test(config, context, parts, lambda metrics: None, "", None, None)


def _fit_and_test(
    config: dict[str, Any],
    context: JobContext,
    parts: Job,
    report: Callable[[dict[str, Any]], None],
    tag: str,
    checkpoints: Checkpoints | None,
    state: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Train and test. Other ranks than 0 have no checkpoints, and are given the state to go on from."""
    model, best_weights, metric = parts.model, context.folder / BEST_WEIGHTS, metric_of(config)
    chooses = "" if metric == "accuracy" else f" val_{METRICS[metric]} %.3f"

    def on_epoch(epoch: EpochResult) -> None:
        report(dataclasses.asdict(epoch))
        log.info(
            "%s epoch %d/%d train_loss %.4f train_acc %.3f val_loss %.4f val_acc %.3f" + chooses,
            *(tag, epoch.epoch, config["epochs"]),
            *(epoch.train_loss, epoch.train_acc, epoch.val_loss, epoch.val_acc),
            *([epoch.score(metric)] if chooses else []),
        )

    start = time.perf_counter()
    stages = PhaseBuilder(config, context, parts, tag)
    state = parts.fabric.broadcast(state)
    with head_phase(config, context, parts) or nullcontext() as head:
        if head and state is not None:
            head.hold(state)
        elif head and (state := head.take(context, metric, tag)):
            for row in state["history"]:
                report(row)
            log.info(
                "%s epochs 1 to %d, of the head alone, are another job's.",
                tag,
                len(state["history"]),
            )
            start = time.perf_counter()  # its seconds are among those that were spent
        earlier = state["spent"] if state else dict.fromkeys(SPENT, 0)

        def spent() -> dict[str, float]:
            now = stages.spent() | {"train_seconds": time.perf_counter() - start}
            return {key: earlier[key] + now[key] for key in SPENT}

        def with_costs(state: dict[str, Any]) -> dict[str, Any]:
            return state | {"spent": spent()}

        best = fit(
            *(parts.fabric, model, parts.phases, stages.start, stages.ways),
            seed=config["seed"],
            metric=metric,
            on_epoch=on_epoch,
            on_best=lambda epoch: (
                save_weights(model, best_weights, epoch.epoch) if checkpoints else None
            ),
            on_phase=lambda state: head.keep(with_costs(state), context) if head else None,
            progress=not context.parallel,
            state=state,
            save=lambda state: checkpoints.save(with_costs(state)) if checkpoints else None,
            due=lambda: checkpoints is not None and checkpoints.due(),
            stop_after=config["stop_after"],
        )
    if best is None:
        return None
    trained, training = time.perf_counter(), spent()
    parts.fabric.barrier()  # rank 0 has written the weights
    load_weights(model, best_weights, best.epoch)
    feed = stages.feed_of(best.phase - 1)
    # Once more of validation, for what epochs have no room for: scores by class.
    val = evaluate(parts.fabric, feed.evaluate("val"), parts.data.val.labels, parts.batch_size)
    test = evaluate(parts.fabric, feed.evaluate("test"), parts.data.test.labels, parts.batch_size)
    return {
        "metric": metric,
        "best_epoch": best.epoch,
        "best_phase": best.phase,
        **val.named("val"),
        **test.named("test"),
        **spent(),
        **{key: training[key] for key in ("train_seconds", "prefix_seconds")},
        "prefix_kept": stages.prefix_kept,
        "test_seconds": time.perf_counter() - trained,
        "approximations": stages.approximations,
    }


def _tag(config: dict[str, Any], facts: dict[str, Any], recipe: str | None, in_sweep: bool) -> str:
    """What a job's lines begin with: [finetune pct=0.5 lp_ft], in a sweep with the seed where the name has it."""
    words = [facts["model"]]
    if not is_transfer(config["model"]):
        words.append(selection_name(config["model"]) or f"pct={facts['pct_unfreeze']:g}")
    if recipe not in (None, "direct"):
        words.append(recipe)
    if in_sweep and config["name"].endswith(f"seed{facts['seed']}"):
        words.append(f"seed={facts['seed']}")
    return f"[{' '.join(words)}]"


def _of(scores: dict[str, Any]) -> tuple[float, float, int]:
    return scores["test_loss"], scores["test_acc"], scores["best_epoch"]
