"""Trains jobs that differ only in their heads one after another, on what they have in common.

For a job that only trains a head, everything else takes longer than training: building the network,
tracing it, reading images and weights, opening the store. A process that trains many such jobs does
that once for all with the same frozen network and images, which stay in a GPU's memory if they fit.
What a job computes stays the same, bit for bit: the head's initial weights, torch's random states
and the scale of float16's losses are those that it would have alone.
"""

import gc
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tvf.config import (
    OWN_MODELS,
    Config,
    build_part,
    build_phases,
    is_probe,
    known_fraction,
    own_checkpoint,
    starts_at_random,
)
from tvf.distributed import DeviceMemoryError, reset_peak_memory
from tvf.errors import InputError
from tvf.job.kept import copy_head, load_head
from tvf.job.parts import build_network
from tvf.job.resources import JobContext, open_resources
from tvf.job.setup import (
    Frozen,
    Job,
    assemble,
    build_alike,
    build_frozen,
)
from tvf.models import FineTuneModel, HeadFile

# What may differ between jobs that share the rest: how heads train, and what is recorded.
# The seed comes first: see `_is_pretrained`.
OWN = ("seed", "name", "project", "stop_after", "early_stopping", "loss", "optimizer", "scheduler")
OWN += ("average", "checkpoint", "tracker", "report")
TVFS = ("model", "backbone", "data", "augment", "store", "tracker")  # must be tvf's own code


def shared_setup(config: Config) -> str | None:
    """What jobs must have in common to share it; None for a job that does not only train a head.

    Such a job has one device, and does not mix images. Probes start differently. Asks no device:
    the processes that train them are forked by the one that calls this.
    """
    own = all(_is_ours(config[part].get("_target_")) for part in TVFS)
    if not own or config["model"]["_target_"] not in OWN_MODELS:
        return None
    alone = config["fabric"].get("devices") == 1
    stored = config["store"].get("mode") != "off" and config["refit_epochs"] is None
    if is_probe(config["model"]) or not (alone and stored) or known_fraction(config["model"]) != 0:
        return None
    try:
        if len(build_phases(config, 0)) > 1 or build_part(config, "mix") is not None:
            return None
    except InputError:  # for the job to report
        return None
    own = OWN if _is_pretrained(config) else OWN[1:]
    return json.dumps({k: v for k, v in config.items() if k not in own}, sort_keys=True)


def _is_pretrained(config: Config) -> bool:
    """Whether the frozen layers have the weights of a library: others may be drawn by the seed."""
    given = config["model"].get("init_from") or own_checkpoint(config)
    return not (given or starts_at_random(config))


def _is_ours(target: object) -> bool:
    return str(target).startswith("tvf.")


@dataclass(frozen=True)
class _Head:
    """The weights of a new head, by name, and torch's random states after they were drawn."""

    weights: dict[str, Tensor]
    random: Tensor
    random_on_gpu: Tensor | None

    def load(self, model: FineTuneModel) -> None:
        """Give the model this head, and torch these states."""
        load_head(model, self.weights)
        torch.set_rng_state(self.random)
        if self.random_on_gpu is not None:
            torch.cuda.set_rng_state(self.random_on_gpu)


class _Said(logging.Handler):
    """What is logged in its context: in setting up a job, for the logs of those that share it."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._records.append(record)

    def repeat(self, tag: str, for_tag: str) -> None:
        """Write it to the log of another job, whose tag is `for_tag` instead of `tag`.

        With the times at which it was said.
        """
        files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
        for record in map(copy, self._records):
            if isinstance(record.args, tuple):
                record.args = tuple(
                    for_tag if isinstance(each, str) and each == tag else each
                    for each in record.args
                )
            for file in files:
                file.handle(record)


class SharedSetups:
    """Builds jobs, and keeps what the next one can share. A context, which closes the store."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._setup: tuple[str | None, list[int] | None] | None = None
        self._frozen: Frozen | None = None
        self._scale: dict[str, Any] = {}  # of losses in float16, before training
        self._said = _Said()
        self._heads: dict[int, _Head] = {}  # by seed
        self._arithmetic: Any = None  # what the last job has set for this process
        self._broken = False

    def __enter__(self) -> "SharedSetups":
        return self

    def __exit__(self, *error: Any) -> None:
        self.forget()

    def forget(self) -> None:
        """Let the next job build everything anew."""
        self._resources.close()
        self._setup, self._frozen, self._said = None, None, _Said()
        self._heads.clear()
        if torch.cuda.is_initialized():
            gc.collect()  # networks and their traces refer to each other
            with suppress(RuntimeError):  # of an error that came before
                torch.cuda.empty_cache()

    def accepts(self, config: Config) -> bool:
        """Whether this process can train a job as one of its own would.

        Not after an error that CUDA does not recover from, and not once another fabric, or
        `deterministic`, has set how a GPU computes: cuBLAS reads that when it is first used.
        """
        if self._broken:
            return False
        return self._arithmetic in (None, _arithmetic(config)) or not torch.cuda.is_initialized()

    @contextmanager
    def open_job(self, config: Config, context: JobContext) -> Iterator[Job]:
        """The job, like `tvf.job.setup.open_job`, for jobs that have a `shared_setup`.

        The seconds of setting up what they share count for each of them, as if it had been alone:
        costs are compared.
        """
        shared = shared_setup(config)
        setup = shared, context.devices
        if shared is None or setup != self._setup or not self._can_share(config):
            self.forget()
        self._arithmetic = _arithmetic(config)
        try:
            first = self._frozen is None
            if self._frozen is None:
                with self._said:
                    store = self._resources.enter_context(open_resources(config, context))
                    frozen = build_frozen(config, context, store)
                if shared is None or not _trains_head_alone(frozen):
                    try:
                        yield assemble(config, context, frozen)
                    finally:
                        frozen.phases.release_graphs()
                    return
                with self._said:
                    self._frozen = self._share(frozen, config["seed"])
                self._setup = setup
            job, fabric = build_alike(config, context, self._frozen), self._frozen.phases.fabric
            if not first:
                self._said.repeat(self._frozen.phases.tag, job.phases.tag)
                if fabric.device.type == "cuda":
                    gc.collect()  # the last job's graphs hold memory
                    reset_peak_memory(fabric.device)
            self._heads[config["seed"]].load(job.phases.model)
            if job.steps.average:  # which was copied from the last job's head
                job.steps.average.reset()
            fabric.strategy.precision.load_state_dict(self._scale)
            try:
                yield job
            finally:
                job.phases.release_graphs()
        except BaseException as error:
            diverged = isinstance(error, InputError) and not isinstance(error, DeviceMemoryError)
            if self._frozen is None or not diverged:
                self.forget()
            self._broken = self._broken or _is_broken()
            raise

    def _share(self, frozen: Frozen, seed: int) -> Frozen:
        """Set up the rest of what jobs share, and keep this one's head."""
        fabric = frozen.phases.fabric
        self._heads[seed] = _draw(frozen.phases.model, fabric.device)
        self._scale = fabric.strategy.precision.state_dict()
        frozen.phases.model.settled = True
        frozen.phases.pipeline_of(0).keep_in_memory()
        seconds = time.perf_counter() - frozen.start
        return replace(frozen, head_file=HeadFile(), setup_seconds=seconds)

    def _can_share(self, config: Config) -> bool:
        """Whether the store still has what the last job read from it, and the head is known."""
        assert self._frozen is not None
        return self._frozen.phases.pipeline_of(0).covers_all and self._knows_head(config)

    def _knows_head(self, config: Config) -> bool:
        """Draw the head of a job with this seed, as it would be in a process of its own.

        Returns False if the rest of the network would differ too.
        """
        assert self._frozen is not None
        if config["seed"] in self._heads:
            return True
        source, shared = self._frozen.source, self._frozen.phases
        _, model = build_network(config, source, shared.data, known=True)
        drawn = _draw(model, shared.fabric.device)
        before, now = shared.model.state_dict(), model.state_dict()
        rest = before.keys() - drawn.weights.keys()
        if not all(torch.equal(before[name], now[name].to(before[name])) for name in rest):
            return False
        self._heads[config["seed"]] = drawn
        return True


def _arithmetic(config: Config) -> tuple[Any, bool]:
    """What decides how a process computes, see `build_fabric`."""
    return config["fabric"], config.get("deterministic", False)


def _draw(model: FineTuneModel, device: torch.device) -> _Head:
    """The head that has just been drawn for this model, which trains on `device`."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return _Head(copy_head(model), torch.get_rng_state(), on_gpu)


def _is_broken() -> bool:
    """Whether an error of CUDA has made the GPU unusable for this process."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _trains_head_alone(frozen: Frozen) -> bool:
    """Whether only the head's weights change in training: nothing else has to be restored."""
    model = frozen.phases.model
    return not model.trained_groups and model.frozen_bn != "batch"
