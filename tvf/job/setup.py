"""From a job's config, as plain data, to what it trains: its parts, its phases, and what each phase trains with."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim import Optimizer

from tvf.config import build, build_phases
from tvf.data import DataSplits, split_batches
from tvf.distributed import (
    RankStrategy,
    claim_gpus,
    count_devices,
    keep_freed_memory,
    reset_peak_memory,
    set_threads,
)
from tvf.errors import InputError
from tvf.frontier import CacheOptions, InputPipeline, SiblingJobs, open_pipeline
from tvf.job.recalibration import recalibrate
from tvf.metrics import metric_of
from tvf.models import Backbone, FineTuneModel, check_image_size, needs_batches, preserve_freezing
from tvf.records import sibling_configs
from tvf.store import Store
from tvf.training import (
    Phase,
    PhaseSetup,
    StepOptions,
    balanced_weights,
    carry_optimizer_state,
    make_schedule,
    require_both_classes,
)

log = logging.getLogger(__name__)

OWN_MODELS = ("tvf.models.FineTuneModel", "tvf.models.TransferModel")


@dataclass(frozen=True)
class JobContext:
    """Where a job runs: its folder; the sweep's and whether others run beside it; the names of its options.

    `devices` are the GPUs that it has claimed, where others run beside it on a machine with several.
    """

    folder: Path
    sweep: Path | None
    parallel: bool
    choices: dict[str, str]
    devices: list[int] | None = None


@dataclass(frozen=True)
class Job:
    """What a job trains: all that its config names, built."""

    fabric: Fabric
    store: Store | None
    data: DataSplits
    batch_size: int
    backbone: Backbone
    model: FineTuneModel
    phases: tuple[Phase, ...]


def build_job(config: dict[str, Any], context: JobContext, store: Store | None) -> Job:
    """Build all of it, images and weights included. Raises InputError."""
    keep_freed_memory()
    fabric = build_fabric(
        config["fabric"] | ({"devices": context.devices} if context.devices else {})
    )
    set_threads(
        config["threads"],
        fabric.device,
        in_sweep=context.sweep is not None,
        ranks=fabric.world_size,
    )
    reset_peak_memory(fabric.device)
    options = build(config["data"], "data")
    data = options.load(progress=not context.parallel, store=store)
    require_both_classes(metric_of(config), data.val.labels)
    torch.manual_seed(config["seed"])  # the new head, and dropout
    backbone = build(config["backbone"], "backbone", num_classes=len(data.classes))
    check_image_size(backbone, options.image_size)
    model = build(config["model"], "model", backbone=backbone)
    single = needs_batches(model.train()) or model.frozen_bn == "recalibrate"
    if single and min(options.batch_size, len(data.train)) == 1:
        raise InputError(
            "BatchNorm layers cannot train on single images: raise data.batch_size (or data.limit)."
        )
    if config["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    phases = build_phases(config, len(model.trained_groups))
    return Job(fabric, store, data, options.batch_size, backbone, model, phases)


def claim_devices(context: JobContext, node: dict[str, Any]) -> JobContext:
    """The context with the GPUs that this job takes, where jobs run side by side on a machine with several.

    Raises InputError where the machine has not as many devices.
    """
    gpus = 0 if node.get("accelerator") == "cpu" else torch.cuda.device_count()
    count, there = count_devices(node["devices"]), gpus or os.cpu_count() or 1
    if count > there:
        what = "GPUs" if gpus else "cores, and no GPU that it may use"
        raise InputError(
            f"fabric.devices={count} is refused: this machine has {there} {what}. Choose fewer."
        )
    if context.parallel and gpus > 1:
        return replace(context, devices=claim_gpus(count))
    return context


def build_fabric(node: dict[str, Any]) -> Fabric:
    """Lightning Fabric, for one device or, within `tvf.distributed`, for this process's one of several."""
    more: dict[str, Any] = {}
    if count_devices(node["devices"]) > 1:
        more["strategy"] = RankStrategy()
        node = {key: value for key, value in node.items() if key != "strategy"}
    try:
        fabric = build(node, "fabric", **more)
        fabric.launch()
        return fabric
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"fabric cannot be set up: {error}. fabric=cpu with its defaults runs everywhere."
        ) from error


class PhaseBuilder:
    """Begins the phases of a job: sets the model up, then freezes it and builds for each phase what it trains with."""

    def __init__(self, config: dict[str, Any], context: JobContext, parts: Job, tag: str) -> None:
        self._config, self._place, self._parts, self._tag = config, context, parts, tag
        self._feeds: list[InputPipeline] = []
        self._index: int | None = None  # of the phase whose feed is the last
        self._module: Any = parts.fabric.setup_module(parts.model)
        if (
            parts.model.frozen_bn == "recalibrate"
        ):  # all that is frozen at the start, before anything takes a copy of it
            parts.model.unfreeze(parts.phases[0].groups)
            recalibrate(parts.fabric, self._module, parts.data.train, parts.batch_size, parts.store)
        optimizer, data = build(config["optimizer"], "optimizer"), parts.data
        weights = (
            balanced_weights(data.train.labels, data.classes)
            if config["data"].get("class_weights")
            else None
        )
        average = build(config["average"], "average")
        self.ways = StepOptions(
            parts.batch_size,
            build(config["loss"], "loss", class_weights=weights),
            build(config["mix"], "mix"),
            getattr(optimizer, "clip_norm", None),
            average(parts.model) if average else None,
        )
        self._optimizer = optimizer

    def start(self, index: int, before: Optimizer | None) -> PhaseSetup:
        """Freeze the model as the phase does, and build its feed, optimizer and schedule. See `tvf.training.loop`."""
        parts, phase = self._parts, self._parts.phases[index]
        parts.model.unfreeze(phase.groups)
        if len(parts.phases) > 1:
            names = ", ".join(["head", *(group.name for group in parts.model.unfrozen_groups)])
            limit, plural = (
                "at most " if phase.stopping.patience else "",
                "" if phase.epochs == 1 else "s",
            )
            numbers = (index + 1, len(parts.phases), limit, phase.epochs, plural)
            log.info("%s phase %d/%d: %s%d epoch%s of %s", self._tag, *numbers, names)
        self._index, feed = index, self._open(index)
        head, groups = parts.model.head_parameters(), parts.model.unfrozen_parameters()
        optimizer = self._optimizer(head, groups, phase.lr, phase.backbone_lr)
        if before is not None:
            carry_optimizer_state(before, optimizer)
        count = sum(
            1 for _ in split_batches(torch.arange(len(parts.data.train)).numpy(), parts.batch_size)
        )
        schedule = make_schedule(
            build(self._config["scheduler"], "scheduler"), optimizer, phase.epochs, count
        )
        wrapped: Any = parts.fabric.setup_optimizers(optimizer)
        return PhaseSetup(feed, wrapped, schedule)

    def feed_of(self, index: int) -> InputPipeline:
        """The feed of a phase, for the weights that the model has now."""
        if index != self._index:  # whose prefix is another, or has moved since
            self._parts.model.unfreeze(self._parts.phases[index].groups)
            self._index = index
            self._open(index)
        return self._feeds[-1]

    def _open(self, index: int) -> InputPipeline:
        parts = self._parts
        augment = build(self._config["augment"], "augment")
        options = CacheOptions(
            epochs=epochs_of(parts.phases, index),
            store=parts.store,
            siblings=list(self._sharing(index)),
            mixed=self.ways.mix is not None,
            show_progress=not self._place.parallel,
        )
        uncached = InputPipeline(parts.fabric, self._module, parts.data, augment)
        feed = open_pipeline(uncached, options, self._tag)
        self._feeds.append(feed)
        return feed

    def spent(self) -> dict[str, float]:
        """Seconds in the prefix, and the images that went through it, in all phases."""
        keys = ("prefix_seconds", "prefix_images", "continued_images")
        return {key: sum(getattr(feed, key) for feed in self._feeds) for key in keys}

    @property
    def prefix_kept(self) -> bool:
        """Whether the store has what the prefixes gave, for other jobs too."""
        used = [feed for feed in self._feeds if feed.prefix_seconds]
        return bool(used) and all(feed.prefix_kept for feed in used)

    @property
    def approximations(self) -> list[str]:
        """What is not exact in some phase."""
        views, epochs = self._feeds[0].augment.views, self._config["epochs"]
        few = (
            [f"{views} views for {epochs} epochs"]
            if isinstance(views, int) and views < epochs
            else []
        )
        return list(
            dict.fromkeys([*few, *(each for feed in self._feeds for each in feed.approximations)])
        )

    def _sharing(self, index: int) -> Iterator[SiblingJobs]:
        """How jobs that pass through the same frozen layers in these epochs freeze the backbone, and how many do."""
        backbone, own = self._parts.backbone, set(epochs_of(self._parts.phases, index))
        jobs = sibling_configs(self._place.sweep, self._config) if self._place.sweep else []
        with preserve_freezing(self._parts.model):
            for node, jobs_alike in _alike(jobs):
                counts: list[int] = []
                try:
                    other = build(node, "model", backbone=backbone)
                    for job in jobs_alike:
                        phases = build_phases(job, len(other.trained_groups))
                        at_once = (i for i in range(len(phases)) if own & {*epochs_of(phases, i)})
                        counts += {phases[i].groups for i in at_once}
                except InputError:  # the other job's matter
                    continue
                for groups in dict.fromkeys(counts):
                    yield SiblingJobs(_freezing(other, groups), counts.count(groups))


def epochs_of(phases: Sequence[Phase], index: int) -> range:
    """The epochs of a phase, from 1, if none before it ends early."""
    before = sum(phase.epochs for phase in phases[:index])
    return range(before + 1, before + phases[index].epochs + 1)


def _alike(jobs: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each model node of the jobs, and those that have it."""
    # Building a model of the user's own over this backbone might do anything to it.
    nodes = [job["model"] for job in jobs if job["model"]["_target_"] in OWN_MODELS]
    for index, node in enumerate(nodes):
        if node not in nodes[:index]:
            yield node, [job for job in jobs if job["model"] == node]


def _freezing(model: FineTuneModel, groups: int) -> Any:
    def freeze() -> None:
        model.unfreeze(groups)
        model.train()

    return freeze
