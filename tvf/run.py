"""One job, from its config to its record: check, build, fit, test. The only place below the shell that sees the config.

`check` raises every error that can be known without reading images or weights, so that a sweep can be refused whole.
"""

import dataclasses
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from tvf.backbones import Backbone, check_image_size
from tvf.build import build, check_node, explain, is_transfer, unknown_key
from tvf.checkpoint import load_weights, save_weights
from tvf.data import Dataset
from tvf.devices import claim_device, keep_freed_memory, peak_memory_mb, reset_peak_memory
from tvf.errors import InputError, require_count
from tvf.fit import Epoch, evaluate, fit
from tvf.freezing import check_fraction, select_groups
from tvf.models import FineTuneModel
from tvf.tracking import JobRecord, Run, is_done

log = logging.getLogger(__name__)

NODES = ("model", "backbone", "data", "augment", "optimizer", "scheduler", "fabric", "tracker")
VALUES = ("name", "project", "epochs", "seed", "threads", "channels_last")
# What the code, not the YAML, gives to a target.
GIVEN = {"model": ("backbone",), "backbone": ("num_classes",)}


@dataclass(frozen=True)
class Place:
    """Where a job runs: its folder; the sweep's name and whether others run beside it; the names of its options."""

    folder: Path
    sweep: str | None
    parallel: bool
    choices: dict[str, str]


def run_job(cfg: DictConfig, place: Place) -> dict[str, Any] | None:
    """Train and test one configuration, leave its record in the job's folder, and return its summary.

    Returns None where the folder's job is done, or in the hands of another process: jobs of a sweep that differ only in
    what the model ignores share a folder, and are trained once. Raises InputError for a mistake in the config or the
    data. Whatever is raised, status.json says so.
    """
    try:
        with FileLock(place.folder / ".lock", timeout=0):
            return _run_locked(cfg, place)
    except Timeout:
        log.info("%s: another process trains this job.", cfg.name)
        return None


def _run_locked(cfg: DictConfig, place: Place) -> dict[str, Any] | None:
    try:
        config = check(cfg)
        if is_transfer(config["model"]) and OmegaConf.select(cfg, "model.pct_unfreeze") is not None:
            log.info("%s: model=transfer trains the head alone and ignores model.pct_unfreeze.", config["name"])
        if is_done(place.folder, config):
            log.info("%s: done already (%s).", config["name"], place.folder)
            return None
        record = JobRecord(place.folder, config["name"], config)
    except BaseException as error:
        JobRecord(place.folder, str(cfg.get("name")), {}).failed(error)
        raise
    try:
        summary = _run(config, place, record)
    except BaseException as error:
        record.failed(error)
        raise
    record.done(summary)
    return summary


def check(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data, if every key is known and every value that can be checked by itself is right.

    Raises InputError with the key, its value, the rule and the remedy.
    """
    config = _plain(cfg)
    for key in config:
        if key not in (*NODES, *VALUES):
            raise unknown_key(str(key), (*NODES, *VALUES))
    for key in (*NODES, *VALUES):
        if key not in config:
            raise InputError(f"{key} is missing from the config.")
    require_count("epochs", config["epochs"], 1)
    require_count("seed", config["seed"], 0)
    if config["threads"] is not None:
        require_count("threads", config["threads"], 1)
    for name in NODES:
        check_node(config[name], name, GIVEN.get(name, ()))
    if config["model"].get("pct_unfreeze") is not None:
        check_fraction(config["model"]["pct_unfreeze"])
    if is_transfer(config["model"]):
        config["model"]["pct_unfreeze"] = None
    for name in ("data", "augment", "optimizer", "tracker"):
        build(config[name], name)
    return config


def _run(config: dict[str, Any], place: Place, record: JobRecord) -> dict[str, Any]:
    keep_freed_memory()
    reset_peak_memory()
    set_threads(config["threads"], in_sweep=place.sweep is not None)
    fabric = build_fabric(config["fabric"], place.parallel)
    options = build(config["data"], "data")
    data = options.load(progress=not place.parallel)
    torch.manual_seed(config["seed"])  # the new head, and dropout
    backbone = build(config["backbone"], "backbone", num_classes=len(data.classes))
    check_image_size(backbone, options.image_size)
    model = build(config["model"], "model", backbone=backbone)
    tag = f"[{model.kind} pct={model.pct_unfreeze:g}]" if model.kind == "finetune" else f"[{model.kind}]"
    log.info("%s %s", tag, describe(model, backbone))
    facts = {
        "name": config["name"],
        "model": model.kind,
        "backbone": backbone.name,
        "data": place.choices["data"],
        "seed": config["seed"],
        "pct_unfreeze": model.pct_unfreeze,
    }
    tracker = build(config["tracker"], "tracker")
    flat = {key: value for key, value in facts.items() if key != "name"}
    with tracker.start(place.folder, config["name"], place.sweep, flat | {"config": config}) as run:
        scores = _train_and_test(config, place, record, run, fabric, model, data, tag)
        summary = facts | {
            "unfrozen_groups": [group.name for group in model.trained_groups],
            "trainable_params": count(p for p in model.parameters() if p.requires_grad),
            "total_params": count(model.parameters()),
            "epochs": config["epochs"],
            **scores,
            "peak_memory_mb": peak_memory_mb(fabric.device),
            "wandb_run_id": run.id,
            "wandb_mode": run.mode,
            "wandb_url": run.url,
        }
        run.summarise(summary)
    log.info("%s test_loss %.4f test_acc %.3f (weights of epoch %d)", tag, *_of(scores))
    return summary


def _train_and_test(
    config: dict[str, Any],
    place: Place,
    record: JobRecord,
    run: Run,
    fabric: Fabric,
    model: FineTuneModel,
    data: Dataset,
    tag: str,
) -> dict[str, Any]:
    if config["channels_last"]:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    best_weights = place.folder / "checkpoints" / "best.safetensors"
    optimizer = build(config["optimizer"], "optimizer")(model.head_parameters(), model.unfrozen_parameters())
    scheduler = build(config["scheduler"], "scheduler")(optimizer)
    module, wrapped = fabric.setup(model, optimizer)

    def on_epoch(epoch: Epoch, is_best: bool) -> None:
        metrics = dataclasses.asdict(epoch)
        record.log(metrics)
        run.log(metrics)
        if is_best:
            save_weights(model, best_weights)
        log.info(
            "%s epoch %d/%d train_loss %.4f train_acc %.3f val_loss %.4f val_acc %.3f",
            *(tag, epoch.epoch, config["epochs"]),
            *(epoch.train_loss, epoch.train_acc, epoch.val_loss, epoch.val_acc),
        )

    start = time.perf_counter()
    best = fit(
        *(fabric, module, wrapped, scheduler, data, build(config["augment"], "augment")),
        epochs=config["epochs"],
        batch_size=config["data"]["batch_size"],
        seed=config["seed"],
        on_epoch=on_epoch,
        progress=not place.parallel,
    )
    seconds = time.perf_counter() - start
    load_weights(model, best_weights)
    test_loss, test_acc = evaluate(fabric, module, data.test)
    run.log({"epoch": best.epoch, "test_loss": test_loss, "test_acc": test_acc})
    return {
        "best_epoch": best.epoch,
        "val_loss": best.val_loss,
        "val_acc": best.val_acc,
        "test_loss": test_loss,
        "test_acc": test_acc,
        "train_seconds": seconds,
    }


def describe(model: FineTuneModel, backbone: Backbone) -> str:
    """Which groups train and how many parameters each has, in a line."""
    sizes = [("head", count(model.head_parameters()))]
    for group in model.trained_groups:
        sizes.append((group.name, count(backbone.module.get_parameter(name) for name in group.parameters)))
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes)
    trained, total = sum(size for _, size in sizes), count(model.parameters())
    groups = f"{len(model.trained_groups)} of {len(backbone.groups)} groups"
    return f"trains {groups}, {trained:,} of {total:,} parameters: {parts}"


def tabulate_groups(cfg: DictConfig, fractions: Iterable[float] = (0, 0.25, 0.5, 0.75, 1.0)) -> str:
    """A Markdown table: of each fraction the groups that train and their parameters, the head's not counted."""
    backbone: Backbone = build(_plain(cfg.backbone), "backbone", num_classes=1)
    unit = cfg.model.get("unit", "groups")
    rows = [f"| `pct_unfreeze` | groups of {backbone.name} that train | parameters |", "|---|---|---|"]
    for pct in fractions:
        chosen = select_groups(backbone.module, backbone.groups, pct, unit)
        size = count(backbone.module.get_parameter(name) for group in chosen for name in group.parameters)
        rows.append(f"| {pct:g} | {', '.join(group.name for group in chosen) or 'none'} | {size:,} |")
    return "\n".join(rows)


def _plain(node: DictConfig) -> dict[str, Any]:
    """The node as plain data; InputError where a value is missing or refers to none."""
    try:
        plain: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error
    return plain


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters)


def set_threads(threads: int | None, *, in_sweep: bool) -> None:
    """CPU threads of this job. By default all cores for a job by itself, and one for each job of a sweep.

    Results differ in the last digits with the number of threads: so a sweep gives the same ones however many of its
    jobs run at once.
    """
    if threads is None and in_sweep and not torch.cuda.is_available():
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


def build_fabric(node: dict[str, Any], parallel: bool) -> Fabric:
    """Lightning Fabric; workers that run side by side on a machine with several GPUs take one each."""
    if parallel and node.get("accelerator") != "cpu" and torch.cuda.device_count() > 1:
        node = {**node, "devices": [claim_device(torch.cuda.device_count())]}
    try:
        return build(node, "fabric")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"fabric: {error} (fabric=cpu runs everywhere)") from error


def _of(scores: dict[str, Any]) -> tuple[float, float, int]:
    return scores["test_loss"], scores["test_acc"], scores["best_epoch"]
