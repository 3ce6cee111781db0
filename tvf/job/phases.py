"""Sets up the phases of a job: frozen layers, input pipeline, optimizer and schedule."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch.optim import Optimizer

from tvf.data import Augmentation, DataSplits, split_batches
from tvf.frontier import CacheOptions, InputPipeline, Residency, SiblingJobs, open_pipeline
from tvf.models import FineTuneModel, preserve_freezing
from tvf.store import Store
from tvf.training import PassGraph, Phase, PhaseSetup, carry_optimizer_state, make_schedule

log = logging.getLogger(__name__)

COSTS = ("train_seconds", "prefix_seconds", "prefix_images", "continued_images")


@dataclass(frozen=True)
class Sibling:
    """Jobs of the sweep that share frozen layers with this one and select the same layers.

    `model` is their model, sharing this job's backbone; `phases` has the phases of each job.
    """

    model: FineTuneModel
    phases: Sequence[tuple[Phase, ...]]


@dataclass
class JobPhases:
    """The phases of a job, and everything that they share. See `PhaseBuilder` in tvf.training.

    `module` is `model` as Fabric set it up; `optimizer` and `scheduler` are factories. `mixed`:
    training images are mixed with each other. `compile` is the mode of PassGraph, for a GPU.
    """

    phases: tuple[Phase, ...]
    fabric: Fabric
    model: FineTuneModel
    module: Any
    data: DataSplits
    augment: Augmentation
    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., Any]
    batch_size: int
    residency: Residency | None = None
    store: Store | None = None
    siblings: Sequence[Sibling] = ()
    mixed: bool = False
    compile: str = "off"
    show_progress: bool = False
    tag: str = ""
    shared: InputPipeline | None = None  # of the first phase, if another job has opened it
    used_graphs: bool = False  # whether training steps were CUDA graphs
    _pipelines: list[InputPipeline] = field(default_factory=list)
    _graphs: list[PassGraph] = field(default_factory=list)
    _current: int | None = None  # the phase whose pipeline is the last

    def start(self, index: int, previous: Optimizer | None) -> PhaseSetup:
        """Freeze the model for phase `index`, and build its pipeline, optimizer and schedule.

        The momenta and steps of the `previous` optimizer are carried over.
        """
        phase = self.phases[index]
        self.model.unfreeze(phase.groups)
        if len(self.phases) > 1:
            self._log_phase(index)
        pipeline = self.pipeline_of(index) if previous is None else self._open(index)
        head, groups = self.model.head_parameters(), self.model.unfrozen_parameters()
        optimizer = self.optimizer(head, groups, phase.lr, phase.backbone_lr)
        if previous is not None:
            carry_optimizer_state(previous, optimizer)
        batches = len(list(split_batches(np.arange(len(self.data.train)), self.batch_size)))
        schedule = make_schedule(self.scheduler, optimizer, phase.epochs, batches)
        wrapped: Any = self.fabric.setup_optimizers(optimizer)
        return PhaseSetup(pipeline, wrapped, schedule, self._record(wrapped), self._record(None))

    def pipeline_of(self, index: int) -> InputPipeline:
        """The pipeline of a phase, for the weights that the model has now."""
        if index != self._current:  # its prefix differs, or has been trained since
            self.model.unfreeze(self.phases[index].groups)
            self._open(index)
        return self._pipelines[-1]

    def pixels(self) -> InputPipeline:
        """Pixels for the full network, whatever is frozen."""
        return InputPipeline(self.fabric, self.module, self.data, self.augment, self.residency)

    def prefix_costs(self) -> dict[str, float]:
        """Seconds in the prefix, and the images that went through it, in all phases."""
        pipelines = self._pipelines
        return {
            "prefix_seconds": sum(pipeline.prefix_seconds for pipeline in pipelines),
            "prefix_images": sum(pipeline.prefix_images for pipeline in pipelines),
            "continued_images": sum(pipeline.continued_images for pipeline in pipelines),
        }

    @property
    def prefix_kept(self) -> bool:
        """Whether the store keeps the output of all prefixes, for other jobs too."""
        used = [each for each in self._pipelines if each.prefix_seconds or each.covers_all]
        return bool(used) and all(pipeline.prefix_kept for pipeline in used)

    def release_graphs(self) -> None:
        """Give up the CUDA graphs of a phase that is over, and their memory."""
        self.used_graphs |= any(graph.optimizer and graph.was_used for graph in self._graphs)
        for graph in self._graphs:
            graph.close()
        self._graphs.clear()

    @property
    def approximations(self) -> list[str]:
        """Everything that makes a phase inexact."""
        views, epochs = self.augment.views, sum(phase.epochs for phase in self.phases)
        few = isinstance(views, int) and views < epochs
        found = [f"{views} views for {epochs} epochs"] if few else []
        for pipeline in self._pipelines:
            found += pipeline.approximations
        return list(dict.fromkeys(found))

    def _record(self, optimizer: Optimizer | None) -> PassGraph | None:
        """What may record a phase's training or, without optimizer, validation."""
        apart = self.residency is not None and self.residency.is_apart
        if self.compile == "off" or not apart or self.fabric.world_size > 1:
            return None
        self._graphs.append(
            PassGraph(
                self.fabric, self.model, optimizer, self.batch_size, self.compile, tag=self.tag
            )
        )
        return self._graphs[-1]

    def _log_phase(self, index: int) -> None:
        phase = self.phases[index]
        names = ", ".join(["head", *(group.name for group in self.model.unfrozen_groups)])
        epochs = f"{phase.epochs} epoch{'' if phase.epochs == 1 else 's'}"
        limit = "at most " if phase.stopping.patience else ""
        number = f"{index + 1}/{len(self.phases)}"
        log.info("%s phase %s: %s%s of %s", self.tag, number, limit, epochs, names)

    def _open(self, index: int) -> InputPipeline:
        self._current = index
        if index == 0 and self.shared is not None:
            self.shared.restart_costs()
            self._pipelines.append(self.shared)
            return self.shared
        options = CacheOptions(
            epochs=epochs_of(self.phases, index),
            store=self.store,
            siblings=list(self._siblings_during(index)),
            mixed=self.mixed,
            show_progress=self.show_progress,
        )
        self.release_graphs()
        for earlier in self._pipelines:
            earlier.release()
        self._pipelines.append(open_pipeline(self.pixels(), options, self.tag))
        return self._pipelines[-1]

    def _siblings_during(self, index: int) -> Iterator[SiblingJobs]:
        """The ways in which siblings freeze the backbone during a phase, and how many use each."""
        epochs = set(epochs_of(self.phases, index))
        with preserve_freezing(self.model):
            for sibling in self.siblings:
                counts: list[int] = []
                for phases in sibling.phases:
                    at_once = [i for i in range(len(phases)) if epochs & {*epochs_of(phases, i)}]
                    counts += {phases[i].groups for i in at_once}
                for groups in dict.fromkeys(counts):
                    yield SiblingJobs(_freezing(sibling.model, groups), counts.count(groups))


class CostMeter:
    """The seconds and images that a job has used, including earlier attempts."""

    def __init__(self, phases: JobPhases, start: float) -> None:
        self._phases, self._start = phases, start
        self._earlier: dict[str, float] = dict.fromkeys(COSTS, 0)

    def add_earlier(self, costs: dict[str, float]) -> None:
        """Add the costs of an earlier attempt, or of another job on behalf of this one."""
        self._earlier = costs

    def restart(self) -> None:
        """Discard the seconds so far, spent waiting: `add_earlier` adds the real cost."""
        self._start = time.perf_counter()

    def total(self) -> dict[str, float]:
        """All COSTS so far."""
        seconds = time.perf_counter() - self._start
        now = {"train_seconds": seconds, **self._phases.prefix_costs()}
        return {key: self._earlier[key] + now[key] for key in COSTS}


def epochs_of(phases: Sequence[Phase], index: int) -> range:
    """The epochs of a phase, from 1, if none before it ends early."""
    before = sum(phase.epochs for phase in phases[:index])
    return range(before + 1, before + phases[index].epochs + 1)


def _freezing(model: FineTuneModel, groups: int) -> Callable[[], None]:
    def freeze() -> None:
        model.unfreeze(groups)
        model.train()

    return freeze
