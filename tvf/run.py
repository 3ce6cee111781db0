"""One job, from its config to its record: check, build, fit, test. Below it nothing sees the config."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf

from tvf.backbones import Backbone, check_image_size
from tvf.build import IGNORED_BY_TRANSFER, build, is_transfer
from tvf.check import check
from tvf.checkpoint import Checkpoints, can_load, load_weights, save_weights
from tvf.data import Dataset
from tvf.devices import (
    claim_gpu,
    describe_machine,
    keep_freed_memory,
    peak_memory_mb,
    reset_peak_memory,
    return_freed_memory,
    set_threads,
    versions,
)
from tvf.errors import InputError
from tvf.files import remove_leftovers
from tvf.fit import STATE, Epoch, evaluate, fit, holds_best
from tvf.freezing import as_frozen, needs_batches
from tvf.metrics import METRICS, metric_of
from tvf.models import FineTuneModel, count, describe
from tvf.planning import Sharing, open_feed
from tvf.recalibration import recalibrate
from tvf.scores import require_both_classes
from tvf.store import Store
from tvf.sweep.manifest import refuse_others, sharing_models
from tvf.tracking import (
    BEST_WEIGHTS,
    LOCK,
    JobRecord,
    Run,
    call_failed,
    call_paused,
    has_reached,
    is_done,
    reason_of,
    results_follow_from,
)

log = logging.getLogger(__name__)

SPENT = ("train_seconds", "prefix_seconds", "prefix_images", "continued_images")  # added up over attempts
TESTED = ("test_loss", "test_acc", "test_macro_f1", "test_auroc")  # what a tracker gets as points
OWN_MODELS = ("tvf.models.FineTuneModel", "tvf.models.TransferModel")


@dataclass(frozen=True)
class Place:
    """Where a job runs: its folder; the sweep's and whether others run beside it; the names of its options."""

    folder: Path
    sweep: Path | None
    parallel: bool
    choices: dict[str, str]


def run_job(cfg: DictConfig, place: Place) -> dict[str, Any] | None:
    """Train and test one configuration, leave its record in the job's folder, and return its summary.

    Returns None where the folder's job is done, pauses at `stop_after` or, in a sweep, is in the hands of another
    process: jobs of a sweep that differ only in what the model ignores share a folder, and are trained once. Raises
    InputError for a mistake in the config or the data, if the folder holds another configuration, or if another process
    trains in the folder of a job by itself. Whatever else is raised, status.json says so.
    """
    lock = FileLock(place.folder / LOCK)
    try:
        lock.acquire(timeout=1)  # who only asks whether it is held has it for a moment
    except Timeout:
        if place.sweep is None:
            raise InputError(f"another process trains in {place.folder}: choose another hydra.run.dir.") from None
        log.info("%s: another process trains this job.", cfg.name)
        return None
    try:
        return _run_alone(cfg, place)
    finally:
        lock.release()


def _run_alone(cfg: DictConfig, place: Place) -> dict[str, Any] | None:
    try:
        config = check(cfg)
    except Exception as error:
        call_failed(place.folder, str(cfg.get("name")), reason_of(error))
        raise
    ignored = [key for key in IGNORED_BY_TRANSFER if OmegaConf.select(cfg, key) is not None]
    if is_transfer(config["model"]) and ignored:
        log.info("%s: model=transfer trains the head alone and ignores %s.", config["name"], ", ".join(ignored))
    checkpoints = _checkpoints(config, place)
    if is_done(place.folder, config):
        log.info("%s: done already (%s).", config["name"], place.folder)
        checkpoints.finish()
        return None
    if has_reached(place.folder, config):
        log.info("%s: trained for stop_after=%d epochs already.", config["name"], config["stop_after"])
        call_paused(place.folder)
        return None
    refuse_others(place.folder.parent, {place.folder.name: config})
    for folder in (place.folder, place.folder / "checkpoints"):
        remove_leftovers(folder)
    state = checkpoints.load()
    if state and not STATE | {"spent"} <= state.keys():
        log.warning("%s is no checkpoint of a job, so %s starts anew.", checkpoints.last, config["name"])
        state = None
    if state and not holds_best(state, metric_of(config)) and not can_load(place.folder / BEST_WEIGHTS):
        log.warning("%s: its best weights cannot be read, so it starts anew.", config["name"])
        state = None
    record = JobRecord(place.folder, config["name"], config, state["history"] if state else ())
    try:
        with record:  # once more within the tracker's context
            return _run(config, place, record, checkpoints, state)
    finally:
        return_freed_memory()


def _checkpoints(config: dict[str, Any], place: Place) -> Checkpoints:
    """The checkpoints of this very configuration in the job's folder."""
    of = hashlib.sha256(json.dumps(results_follow_from(config), sort_keys=True).encode()).hexdigest()
    return build(config["checkpoint"], "checkpoint", folder=place.folder / "checkpoints", of=of)


def _run(
    config: dict[str, Any], place: Place, record: JobRecord, checkpoints: Checkpoints, state: dict[str, Any] | None
) -> dict[str, Any] | None:
    facts = {
        "model": place.choices["model"],
        "backbone": config["backbone"].get("name", place.choices["backbone"]),
        "data": place.choices["data"],
        "seed": config["seed"],
        "pct_unfreeze": float(config["model"].get("pct_unfreeze") or 0),
    }
    tracker = build(config["tracker"], "tracker")
    group = place.sweep.name if place.sweep else None
    with ExitStack() as afterwards:
        with tracker.start(place.folder, config["name"], group, facts | {"config": config}, record.run_id) as run:
            record.tracked(run)
            afterwards.callback(record.tracked, run)  # what the tracker could not send is known once it has finished
            # Within the tracker's context, whose end may have to wait for a network.
            with record, build(config["store"], "store").open() as store:
                summary = _train(config, facts, place, record, run, store, checkpoints, state)
            if summary is None:
                return None
            checkpoints.finish()
    return summary | {"wandb_mode": run.mode}


def _train(
    config: dict[str, Any],
    facts: dict[str, Any],
    place: Place,
    record: JobRecord,
    run: Run,
    store: Store | None,
    checkpoints: Checkpoints,
    state: dict[str, Any] | None,
) -> dict[str, Any] | None:
    def report(metrics: dict[str, Any]) -> None:
        record.log(metrics)
        run.log(metrics, step=metrics["epoch"])

    tag = _tag(config, facts, in_sweep=place.sweep is not None)
    for metrics in record.metrics:  # of an earlier attempt, which the tracker may never have got
        run.log(metrics, step=metrics["epoch"])
    parts = _build_parts(config, place, store)
    log.info("%s %s", tag, describe(parts.model, parts.backbone))
    if facts["pct_unfreeze"] and not parts.model.trained_groups:
        log.warning("%s pct_unfreeze rounds to none of %d groups.", tag, len(parts.backbone.groups))
    if state:
        log.info("%s goes on after epoch %d of an earlier attempt.", tag, len(state["history"]))
    scores = _fit_and_test(config, place, parts, report, tag, checkpoints, state)
    if scores is None:
        record.paused()
        log.info("%s pauses after epoch %d of %d.", tag, len(record.metrics), config["epochs"])
        return None
    tested = {"epoch": scores["best_epoch"]} | {key: scores[key] for key in TESTED}
    run.log(tested, step=config["epochs"] + 1)
    summary = {"name": config["name"], **facts} | {
        "classes": list(parts.data.classes),
        "unfrozen_groups": [group.name for group in parts.model.trained_groups],
        "trainable_params": count(p for p in parts.model.parameters() if p.requires_grad),
        "total_params": count(parts.model.parameters()),
        "epochs": config["epochs"],
        **scores,
        "images_per_second": median(epoch["images_per_second"] for epoch in record.metrics),
        "peak_memory_mb": peak_memory_mb(parts.fabric.device),
        "wandb_run_id": run.id,
        "wandb_url": run.url,
        "versions": versions(),
        "machine": describe_machine(parts.fabric.device),
    }
    record.done(summary)
    run.summarise(summary)
    log.info("%s test_loss %.4f test_acc %.3f (weights of epoch %d)", tag, *_of(scores))
    return summary


@dataclass(frozen=True)
class Parts:
    """What a job trains: all that its config names, built."""

    fabric: Fabric
    store: Store | None
    data: Dataset
    batch_size: int
    backbone: Backbone
    model: FineTuneModel


def _build_parts(config: dict[str, Any], place: Place, store: Store | None) -> Parts:
    keep_freed_memory()
    fabric = build_fabric(config["fabric"], place.parallel)
    set_threads(config["threads"], fabric.device, in_sweep=place.sweep is not None)
    reset_peak_memory(fabric.device)
    options = build(config["data"], "data")
    data = options.load(progress=not place.parallel, store=store)
    require_both_classes(metric_of(config), data.val.labels)
    torch.manual_seed(config["seed"])  # the new head, and dropout
    backbone = build(config["backbone"], "backbone", num_classes=len(data.classes))
    check_image_size(backbone, options.image_size)
    model = build(config["model"], "model", backbone=backbone)
    single = needs_batches(model.train()) or model.frozen_bn == "recalibrate"
    if single and min(options.batch_size, len(data.train)) == 1:
        raise InputError("BatchNorm layers cannot train on single images: raise data.batch_size (or data.limit).")
    if config["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return Parts(fabric, store, data, options.batch_size, backbone, model)


def _fit_and_test(
    config: dict[str, Any],
    place: Place,
    parts: Parts,
    report: Callable[[dict[str, Any]], None],
    tag: str,
    checkpoints: Checkpoints,
    state: dict[str, Any] | None,
) -> dict[str, Any] | None:
    model, best_weights = parts.model, place.folder / BEST_WEIGHTS
    optimizer = build(config["optimizer"], "optimizer")(model.head_parameters(), model.unfrozen_parameters())
    scheduler = build(config["scheduler"], "scheduler")(optimizer)
    module, optimizer = parts.fabric.setup(model, optimizer)

    metric = metric_of(config)
    chooses = "" if metric == "accuracy" else f" val_{METRICS[metric]} %.3f"

    def on_epoch(epoch: Epoch) -> None:
        report(dataclasses.asdict(epoch))
        log.info(
            "%s epoch %d/%d train_loss %.4f train_acc %.3f val_loss %.4f val_acc %.3f" + chooses,
            *(tag, epoch.epoch, config["epochs"]),
            *(epoch.train_loss, epoch.train_acc, epoch.val_loss, epoch.val_acc),
            *([epoch.score(metric)] if chooses else []),
        )

    start = time.perf_counter()
    if model.frozen_bn == "recalibrate":
        recalibrate(parts.fabric, module, parts.data.train, parts.batch_size, parts.store)
    feed = open_feed(
        *(parts.fabric, module, parts.data, build(config["augment"], "augment")),
        epochs=config["epochs"],
        store=parts.store,
        sharing=_sharing(config, place, parts),
        show=not place.parallel,
        tag=tag,
    )
    earlier = state["spent"] if state else dict.fromkeys(SPENT, 0)

    def spent() -> dict[str, float]:
        now = {key: getattr(feed, key) for key in SPENT[1:]} | {"train_seconds": time.perf_counter() - start}
        return {key: earlier[key] + now[key] for key in SPENT}

    best = fit(
        *(parts.fabric, feed, optimizer, scheduler),
        epochs=config["epochs"],
        batch_size=parts.batch_size,
        seed=config["seed"],
        metric=metric,
        on_epoch=on_epoch,
        on_best=lambda epoch: save_weights(model, best_weights, epoch.epoch),
        progress=not place.parallel,
        state=state,
        save=lambda state: checkpoints.save(state | {"spent": spent()}),
        due=checkpoints.due,
        stop_after=config["stop_after"],
    )
    if best is None:
        return None
    trained, training = time.perf_counter(), spent()
    load_weights(model, best_weights, best.epoch)
    # Once more of validation, for what epochs have no room for: scores by class.
    val = evaluate(parts.fabric, feed.evaluate("val"), parts.data.val.labels, parts.batch_size)
    test = evaluate(parts.fabric, feed.evaluate("test"), parts.data.test.labels, parts.batch_size)
    return {
        "metric": metric,
        "best_epoch": best.epoch,
        **val.named("val"),
        **test.named("test"),
        **spent(),
        **{key: training[key] for key in ("train_seconds", "prefix_seconds")},
        "prefix_kept": feed.prefix_kept,
        "test_seconds": time.perf_counter() - trained,
        "approximations": feed.approximations,
    }


def _sharing(config: dict[str, Any], place: Place, parts: Parts) -> Sequence[Sharing]:
    """How the jobs of the sweep that pass through the same frozen layers freeze the backbone, and how many do so."""

    def sharing(node: dict[str, Any]) -> Sharing:
        other = build(node, "model", backbone=parts.backbone)

        def freeze() -> None:
            other.unfreeze()
            other.train()

        return Sharing(freeze, nodes.count(node))

    nodes = sharing_models(place.sweep, config) if place.sweep else []
    # Building a model of the user's own over this backbone might do anything to it.
    kinds = [node for i, node in enumerate(nodes) if node not in nodes[:i] and node["_target_"] in OWN_MODELS]
    with as_frozen(parts.model):
        return [sharing(node) for node in kinds]


def _tag(config: dict[str, Any], facts: dict[str, Any], in_sweep: bool) -> str:
    """What a job's lines begin with: [transfer], [finetune pct=0.5], in a sweep with the seed where the name has it."""
    words = [facts["model"]]
    if not is_transfer(config["model"]):
        words.append(f"pct={facts['pct_unfreeze']:g}")
    if in_sweep and config["name"].endswith(f"seed{facts['seed']}"):
        words.append(f"seed={facts['seed']}")
    return f"[{' '.join(words)}]"


def build_fabric(node: dict[str, Any], parallel: bool) -> Fabric:
    """Lightning Fabric; workers that run side by side on a machine with several GPUs take one each."""
    devices = node.get("devices")
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(f"fabric.devices={devices} is refused: a job trains on one device: 1, or [its number].")
    if parallel and node.get("accelerator") != "cpu" and torch.cuda.device_count() > 1:
        node = {**node, "devices": [claim_gpu()]}
    try:
        fabric = build(node, "fabric")
        fabric.launch()
        return fabric
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"fabric cannot be set up: {error}. fabric=cpu with its defaults runs everywhere.") from error


def _of(scores: dict[str, Any]) -> tuple[float, float, int]:
    return scores["test_loss"], scores["test_acc"], scores["best_epoch"]
