"""Builds everything that a job trains with from its config of plain, validated values.

Code below `build_job` does not see the config.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from tvf.config import (
    NAME_WORDS,
    Config,
    build_part,
    build_phases,
    flatten,
    head_phase_config,
    is_transfer,
    name_value,
    resolve_target,
    selection_name,
    starts_at_random,
)
from tvf.data import DataSource, DataSplits
from tvf.frontier import Residency
from tvf.job.parts import (
    build_augmentation,
    build_network,
    build_optimizer,
    build_siblings,
    build_steps,
    load_own_checkpoint,
    start_from_weights,
)
from tvf.job.phases import CostMeter, JobPhases
from tvf.job.recalibration import recalibrate
from tvf.job.resources import JobContext, build_fabric, job_facts, open_resources
from tvf.metrics import metric_of
from tvf.models import (
    Backbone,
    FineTuneModel,
    HeadFile,
    ProbeModel,
)
from tvf.store import (
    FingerprintError,
    Store,
    fingerprint,
    fingerprint_layers,
    numeric_environment,
)
from tvf.training import (
    LoopOptions,
    StepOptions,
    end_phases,
    require_both_classes,
    training_modules,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Everything that a job trains with, and the facts for its summary.

    `head_phase` is the fingerprint of its first phase, if that trains only the head and other jobs
    can share it. `from_ridge` says that its head starts from ridge regression. `trained_on` are the
    ids of the images that its weights have seen, those of its origin included. `head_file` writes
    the weights of jobs that only train a head of one network.
    """

    name: str
    epochs: int
    facts: dict[str, Any]
    backbone: Backbone
    phases: JobPhases
    steps: StepOptions
    loop: LoopOptions
    costs: CostMeter
    head_phase: str | None
    from_ridge: bool
    trained_on: np.ndarray
    head_file: HeadFile | None = None

    @property
    def brief(self) -> bool:
        """Whether it trains only a head, on what another job has set up: in few seconds."""
        return self.head_file is not None


@dataclass(frozen=True)
class Frozen:
    """What a job trains with, of which jobs have most in common that only train a head.

    `seen` are the ids of the images that its initial weights were trained on, `start` is the time
    from which on its seconds count. `setup_seconds` is what setting it up took, which counts for
    every job that shares it, as if it had been alone.
    """

    source: DataSource
    backbone: Backbone
    phases: JobPhases
    seen: np.ndarray
    steps: StepOptions
    start: float
    setup_seconds: float = 0.0
    head_file: HeadFile | None = None


def build_job(
    config: Config, context: JobContext, store: Store | None, loaded: DataSplits | None = None
) -> Job:
    """Build every part of a job, images and weights included. Raises InputError.

    `loaded` are its images, if another job of the process has read them.
    """
    return assemble(config, context, build_frozen(config, context, store, loaded))


def build_frozen(
    config: Config, context: JobContext, store: Store | None, loaded: DataSplits | None = None
) -> Frozen:
    """Build what takes longest of a job: its network, images and phases. Raises InputError."""
    fabric = build_fabric(config, context)
    source = build_part(config, "data")
    data: DataSplits = loaded or source.load(progress=not context.parallel, store=store)
    if config["refit_epochs"] is None:
        require_both_classes(metric_of(config), data.val.labels)
    else:
        data = data.join_val()
    backbone, model = build_network(config, source, data)
    facts, tag = _name(config, context, model)
    if starts_at_random(config):
        log.warning("%s the backbone's weights are random: frozen layers have learnt nothing.", tag)
    seen = load_own_checkpoint(config, backbone, data, tag)
    seen = np.union1d(seen, start_from_weights(config, model, facts["backbone"], data, tag))

    import_module("scipy.stats")  # here, so that it counts as no job's seconds
    start = time.perf_counter()
    module: Any = fabric.setup_module(model)
    phases = build_phases(config, len(model.trained_groups))
    if config["refit_epochs"] is not None:
        phases = end_phases(phases, config["refit_epochs"])
    if config["model"].get("frozen_bn") == "recalibrate":
        # Covers all layers that are frozen at the start, and runs before the model is copied.
        model.unfreeze(phases[0].groups)
        with model.without_adapters():  # which add nothing yet
            recalibrate(fabric, module, data.train, source.batch_size, store)
    steps = build_steps(config, source.batch_size, model, data)
    job_phases = JobPhases(
        phases=phases,
        fabric=fabric,
        model=model,
        module=module,
        data=data,
        augment=build_augmentation(config, data.train),
        optimizer=build_optimizer(config, fabric, model),
        scheduler=build_part(config, "scheduler"),
        batch_size=source.batch_size,
        residency=Residency(
            fabric.device, config["fabric"].get("resident", "auto"), context.sharing
        ),
        store=store,
        siblings=build_siblings(config, context, backbone, model),
        mixed=steps.mix is not None,
        compile=_graph_mode(config),
        show_progress=not context.parallel,
        tag=tag,
    )
    return Frozen(source, backbone, job_phases, seen, steps, start)


def build_alike(config: Config, context: JobContext, frozen: Frozen) -> Job:
    """Build a job that differs from that of `frozen` only in how it trains its head.

    The phases share their input pipeline; the head's weights are the caller's to set.
    """
    shared = frozen.phases
    pipeline = shared.pipeline_of(0)
    start = time.perf_counter() - frozen.setup_seconds
    model, data = shared.model, shared.data
    tag = _name(config, context, model)[1]
    steps = build_steps(config, frozen.source.batch_size, model, data)
    phases = replace(
        shared,
        phases=build_phases(config, 0),
        optimizer=build_optimizer(config, shared.fabric, model),
        scheduler=build_part(config, "scheduler"),
        tag=tag,
        shared=pipeline,
        _pipelines=[],
        used_graphs=False,
        _graphs=[],
        _current=None,
    )
    alike = replace(frozen, phases=phases, steps=steps, start=start)
    return assemble(config, context, alike)


def assemble(config: Config, context: JobContext, frozen: Frozen) -> Job:
    """The job that trains with these parts."""
    phases, train = frozen.phases, frozen.phases.data.train
    facts, tag = _name(config, context, phases.model)
    log.info("%s %s", tag, _describe_images(frozen.backbone, frozen.source))
    return Job(
        name=config["name"],
        epochs=config["epochs"],
        facts=facts,
        backbone=frozen.backbone,
        phases=phases,
        steps=frozen.steps,
        loop=LoopOptions(metric_of(config), config["stop_after"], not context.parallel),
        costs=CostMeter(phases, frozen.start),
        head_phase=_head_phase_fingerprint(config, phases),
        from_ridge=isinstance(phases.model, ProbeModel) and not config["model"].get("init_from"),
        trained_on=np.union1d(train.pool.pixels.digests[train.places], frozen.seen),
        head_file=frozen.head_file,
    )


def _graph_mode(config: Config) -> str:
    """How steps are recorded on a GPU. What is repeated exactly must not depend on times."""
    mode = config["fabric"].get("compile", "auto")
    return "off" if mode == "auto" and config.get("deterministic", False) else mode


def _name(config: Config, context: JobContext, model: FineTuneModel) -> tuple[dict[str, Any], str]:
    """The facts of a job, and the tag of its log lines."""
    facts = job_facts(config, context)
    if facts["pct_unfreeze"] is None:
        facts["pct_unfreeze"] = model.pct_unfreeze
    return facts, _tag(config, context, facts)


@contextmanager
def open_job(
    config: Config, context: JobContext, loaded: DataSplits | None = None
) -> Iterator[Job]:
    """The job, with its store open and its other ranks running, until the context ends."""
    with open_resources(config, context) as store:
        job = build_job(config, context, store, loaded)
        try:
            yield job
        finally:
            job.phases.release_graphs()


def _describe_images(backbone: Backbone, source: DataSource) -> str:
    """How images are read, and where that differs from what the weights were made for."""
    size, how = source.image_size, getattr(source, "interpolation", None)
    now = f"{size}×{size} pixels" + (f", {how}" if how else "")
    differing = []
    if backbone.image_size not in (None, size):
        differing.append(f"{backbone.image_size}×{backbone.image_size} pixels")
    if how and backbone.interpolation not in (None, how):
        differing.append(str(backbone.interpolation))
    mean, std = ("/".join(f"{x:g}" for x in values) for values in (backbone.mean, backbone.std))
    said = f"reads images of {now}, mean {mean}, std {std}"
    return said + (f"; the network was made for {', '.join(differing)}." if differing else ".")


def _head_phase_fingerprint(config: Config, phases: JobPhases) -> str | None:
    """The fingerprint of a first phase that trains only the head; None if it cannot be shared."""
    first, store = phases.phases[0], phases.store
    if store is None or len(phases.phases) == 1 or first.groups or phases.fabric.world_size > 1:
        return None
    data, model = phases.data, phases.model
    # A user's own code counts by its file, as everywhere in the store.
    targets = {k: v for k, v in head_phase_config(config).items() if k.endswith("._target_")}
    options = json.dumps(head_phase_config(config), sort_keys=True)
    stopping = first.stopping
    schedule = [first.lr, first.epochs, first.length, stopping.patience, stopping.min_delta]
    images = [[split.fingerprint, split.labels] for split in (data.train, data.val)]
    if data.train.weights is not None:
        images.append([data.train.weights])
    environment = [
        numeric_environment(phases.fabric, model.module.parameters()),
        torch.get_num_threads(),
    ]
    try:
        code = [resolve_target({"_target_": path}, name) for name, path in targets.items()]
        with model.without_adapters():  # which add nothing yet
            layers = fingerprint_layers(model.module, without=model.heads)
        network = [layers, model.plain_state_dict()]
        return fingerprint(
            [options, schedule, images, network, environment, training_modules(), code]
        )
    except FingerprintError as error:
        log.warning("store: not caching the phase that trains only the head: %s.", error)
        return None


def _tag(config: Config, context: JobContext, facts: dict[str, Any]) -> str:
    """The prefix of a job's log lines: [finetune pct=0.5 lp_ft].

    In a sweep with the options that its name has: [finetune pct=0.5 train=100 fold=0].
    """
    words = [facts["model"]]
    if not is_transfer(config["model"]):
        words.append(selection_name(config["model"]) or f"pct={facts['pct_unfreeze']:g}")
    recipe = context.choices.get("recipe")
    if recipe not in (None, "direct"):
        words.append(recipe)
    given = f"-{config['name']}-" if context.sweep else ""
    options = flatten(config)
    for key, word in NAME_WORDS.items():
        value = name_value(options.get(key))
        if f"-{word}{value}-" in given:
            words.append(f"{word}={value}")
    return f"[{' '.join(words)}]"
