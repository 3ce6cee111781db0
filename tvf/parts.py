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

from tvf.backbones import Backbone, check_image_size
from tvf.build import build
from tvf.collectives import Ranks
from tvf.data import Dataset
from tvf.data.order import batches
from tvf.devices import claim_gpus, count_devices, keep_freed_memory, reset_peak_memory, set_threads
from tvf.errors import InputError
from tvf.feed import Feed
from tvf.fit import Stage
from tvf.freezing import as_frozen, needs_batches
from tvf.metrics import metric_of
from tvf.models import FineTuneModel
from tvf.objective import balanced
from tvf.optim import carry_state
from tvf.planning import Sharing, open_feed
from tvf.recalibration import recalibrate
from tvf.recipes import Phase
from tvf.schedules import start
from tvf.scores import require_both_classes
from tvf.steps import Ways
from tvf.store import Store
from tvf.sweep.manifest import sharing_jobs

log = logging.getLogger(__name__)

OWN_MODELS = ("tvf.models.FineTuneModel", "tvf.models.TransferModel")


@dataclass(frozen=True)
class Place:
    """Where a job runs: its folder; the sweep's and whether others run beside it; the names of its options.

    `devices` are the GPUs that it has claimed, where others run beside it on a machine with several.
    """

    folder: Path
    sweep: Path | None
    parallel: bool
    choices: dict[str, str]
    devices: list[int] | None = None


@dataclass(frozen=True)
class Parts:
    """What a job trains: all that its config names, built."""

    fabric: Fabric
    store: Store | None
    data: Dataset
    batch_size: int
    backbone: Backbone
    model: FineTuneModel
    phases: tuple[Phase, ...]


def build_parts(config: dict[str, Any], place: Place, store: Store | None) -> Parts:
    """Build all of it, images and weights included. Raises InputError."""
    keep_freed_memory()
    fabric = build_fabric(config["fabric"] | ({"devices": place.devices} if place.devices else {}))
    set_threads(config["threads"], fabric.device, in_sweep=place.sweep is not None, ranks=fabric.world_size)
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
    phases = phases_of(config, len(model.trained_groups))
    return Parts(fabric, store, data, options.batch_size, backbone, model, phases)


def with_devices(place: Place, node: dict[str, Any]) -> Place:
    """The place with the GPUs that this job takes, where jobs run side by side on a machine with several.

    Raises InputError where the machine has not as many devices.
    """
    gpus = 0 if node.get("accelerator") == "cpu" else torch.cuda.device_count()
    count, there = count_devices(node["devices"]), gpus or os.cpu_count() or 1
    if count > there:
        what = "GPUs" if gpus else "cores, and no GPU that it may use"
        raise InputError(f"fabric.devices={count} is refused: this machine has {there} {what}. Choose fewer.")
    if place.parallel and gpus > 1:
        return replace(place, devices=claim_gpus(count))
    return place


def build_fabric(node: dict[str, Any]) -> Fabric:
    """Lightning Fabric, for one device or, within `tvf.ranks`, for this process's one of several."""
    more: dict[str, Any] = {}
    if count_devices(node["devices"]) > 1:
        more["strategy"] = Ranks()
        node = {key: value for key, value in node.items() if key != "strategy"}
    try:
        fabric = build(node, "fabric", **more)
        fabric.launch()
        return fabric
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"fabric cannot be set up: {error}. fabric=cpu with its defaults runs everywhere.") from error


def phases_of(config: dict[str, Any], groups: int) -> tuple[Phase, ...]:
    """The phases of a job that trains so many groups. Raises InputError if they do not add up to its epochs."""
    stopping = build(config["early_stopping"], "early_stopping")
    return build(config["recipe"], "recipe")(config["epochs"], groups, stopping)


class Stages:
    """Begins the phases of a job: sets the model up, then freezes it and builds for each phase what it trains with."""

    def __init__(self, config: dict[str, Any], place: Place, parts: Parts, tag: str) -> None:
        self._config, self._place, self._parts, self._tag = config, place, parts, tag
        self._feeds: list[Feed] = []
        self._index: int | None = None  # of the phase whose feed is the last
        self._module: Any = parts.fabric.setup_module(parts.model)
        if (
            parts.model.frozen_bn == "recalibrate"
        ):  # all that is frozen at the start, before anything takes a copy of it
            parts.model.unfreeze(parts.phases[0].groups)
            recalibrate(parts.fabric, self._module, parts.data.train, parts.batch_size, parts.store)
        optimizer, data = build(config["optimizer"], "optimizer"), parts.data
        weights = balanced(data.train.labels, data.classes) if config["data"].get("class_weights") else None
        average = build(config["average"], "average")
        self.ways = Ways(
            parts.batch_size,
            build(config["loss"], "loss", class_weights=weights),
            build(config["mix"], "mix"),
            getattr(optimizer, "clip_norm", None),
            average(parts.model) if average else None,
        )
        self._optimizer = optimizer

    def start(self, index: int, before: Optimizer | None) -> Stage:
        """Freeze the model as the phase does, and build its feed, optimizer and schedule. See `tvf.fit.fit`."""
        parts, phase = self._parts, self._parts.phases[index]
        parts.model.unfreeze(phase.groups)
        if len(parts.phases) > 1:
            names = ", ".join(["head", *(group.name for group in parts.model.unfrozen_groups)])
            limit, plural = "at most " if phase.stopping.patience else "", "" if phase.epochs == 1 else "s"
            numbers = (index + 1, len(parts.phases), limit, phase.epochs, plural)
            log.info("%s phase %d/%d: %s%d epoch%s of %s", self._tag, *numbers, names)
        self._index, feed = index, self._open(index)
        head, groups = parts.model.head_parameters(), parts.model.unfrozen_parameters()
        optimizer = self._optimizer(head, groups, phase.lr, phase.backbone_lr)
        if before is not None:
            carry_state(before, optimizer)
        count = sum(1 for _ in batches(torch.arange(len(parts.data.train)).numpy(), parts.batch_size))
        schedule = start(build(self._config["scheduler"], "scheduler"), optimizer, phase.epochs, count)
        wrapped: Any = parts.fabric.setup_optimizers(optimizer)
        return Stage(feed, wrapped, schedule)

    def feed_of(self, index: int) -> Feed:
        """The feed of a phase, for the weights that the model has now."""
        if index != self._index:  # whose prefix is another, or has moved since
            self._parts.model.unfreeze(self._parts.phases[index].groups)
            self._index = index
            self._open(index)
        return self._feeds[-1]

    def _open(self, index: int) -> Feed:
        parts = self._parts
        feed = open_feed(
            *(parts.fabric, self._module, parts.data, build(self._config["augment"], "augment")),
            epochs=epochs_of(parts.phases, index),
            store=parts.store,
            sharing=list(self._sharing(index)),
            mixed=self.ways.mix is not None,
            show=not self._place.parallel,
            tag=self._tag,
        )
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
        few = [f"{views} views for {epochs} epochs"] if isinstance(views, int) and views < epochs else []
        return list(dict.fromkeys([*few, *(each for feed in self._feeds for each in feed.approximations)]))

    def _sharing(self, index: int) -> Iterator[Sharing]:
        """How jobs that pass through the same frozen layers in these epochs freeze the backbone, and how many do."""
        backbone, own = self._parts.backbone, set(epochs_of(self._parts.phases, index))
        jobs = sharing_jobs(self._place.sweep, self._config) if self._place.sweep else []
        with as_frozen(self._parts.model):
            for node, jobs_alike in _alike(jobs):
                counts: list[int] = []
                try:
                    other = build(node, "model", backbone=backbone)
                    for job in jobs_alike:
                        phases = phases_of(job, len(other.trained_groups))
                        at_once = (i for i in range(len(phases)) if own & {*epochs_of(phases, i)})
                        counts += {phases[i].groups for i in at_once}
                except InputError:  # the other job's matter
                    continue
                for groups in dict.fromkeys(counts):
                    yield Sharing(_freezing(other, groups), counts.count(groups))


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
