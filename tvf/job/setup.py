"""Builds everything that a job trains with from its config of plain, validated values.

Code below `build_job` does not see the config.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from tvf.config import (
    NAME_WORDS,
    OWN_MODELS,
    Config,
    build_part,
    build_phases,
    flatten,
    head_phase_config,
    is_lora,
    is_probe,
    is_transfer,
    name_value,
    own_checkpoint,
    resolve_target,
    selection_name,
    starts_at_random,
)
from tvf.data import Augmentation, DataSource, DataSplits, Split, require_plain_variant
from tvf.errors import InputError
from tvf.frontier import Residency
from tvf.job.origin import check_checkpoint_origin, check_origin
from tvf.job.phases import CostMeter, JobPhases, Sibling
from tvf.job.recalibration import recalibrate
from tvf.job.resources import JobContext, build_fabric, job_facts, open_resources
from tvf.metrics import metric_of
from tvf.models import (
    Backbone,
    FineTuneModel,
    HeadFile,
    LoraModel,
    ProbeModel,
    check_network,
    load_checkpoint,
    load_initial_weights,
    needs_batches,
    preserve_freezing,
)
from tvf.records import sibling_configs
from tvf.store import (
    FingerprintError,
    Store,
    fingerprint,
    fingerprint_layers,
    numeric_environment,
)
from tvf.training import (
    DiscriminativeOptimizer,
    LoopOptions,
    Phase,
    StartingPoint,
    StepOptions,
    balanced_weights,
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
    seen = _load_checkpoint(config, backbone, data, tag)
    seen = np.union1d(seen, _load_initial_weights(config, model, facts["backbone"], data, tag))

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
    steps = _build_steps(config, source.batch_size, model, data)
    job_phases = JobPhases(
        phases=phases,
        fabric=fabric,
        model=model,
        module=module,
        data=data,
        augment=_build_augmentation(config, data.train),
        optimizer=_build_optimizer(config, fabric, model),
        scheduler=build_part(config, "scheduler"),
        batch_size=source.batch_size,
        residency=Residency(
            fabric.device, config["fabric"].get("resident", "auto"), context.sharing
        ),
        store=store,
        siblings=_build_siblings(config, context, backbone, model),
        mixed=steps.mix is not None,
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
    steps = _build_steps(config, frozen.source.batch_size, model, data)
    phases = replace(
        shared,
        phases=build_phases(config, 0),
        optimizer=_build_optimizer(config, shared.fabric, model),
        scheduler=build_part(config, "scheduler"),
        tag=tag,
        shared=pipeline,
        _pipelines=[],
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
        yield build_job(config, context, store, loaded)


def build_network(
    config: Config, source: DataSource, data: DataSplits, *, known: bool = False
) -> tuple[Backbone, FineTuneModel]:
    """Draw the network of a job; `known` ones that differ only in weights need no check."""
    torch.manual_seed(config["seed"])  # the new head's weights, and dropout
    backbone = build_part(config, "backbone", num_classes=len(data.classes))
    if not known:
        check_network(backbone, source.image_size, len(data.classes))
    reads = {"image_size": source.image_size} if is_probe(config["model"]) else {}
    model = build_part(config, "model", backbone=backbone, **reads)
    if isinstance(model, LoraModel):
        model.leave_out_unused(backbone, source.image_size)
    batchwise = needs_batches(model.train()) or config["model"].get("frozen_bn") == "recalibrate"
    if batchwise and min(source.batch_size, len(data.train)) == 1:
        raise InputError(
            "BatchNorm layers cannot train on single images: raise data.batch_size (or data.limit)."
        )
    if config["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return backbone, model


def _build_augmentation(config: Config, train: Split) -> Augmentation:
    augment = build_part(config, "augment")
    few = np.arange(min(len(train), 32))
    require_plain_variant(augment, train.pixels(few), train.places[few])
    return augment


def _build_optimizer(config: Config, fabric: Fabric, model: FineTuneModel) -> Any:
    """The optimizer's factory. Assumes that the model has the weights that training starts from."""
    optimizer = build_part(config, "optimizer")
    if not isinstance(optimizer, DiscriminativeOptimizer):
        return optimizer
    changed = config["optimizer"].get("clip_norm") is not None or optimizer.l2_sp is not None
    if changed and fabric.strategy.precision.precision == "16-mixed":
        # Fused kernels would unscale the gradients themselves, after they have been changed.
        optimizer = replace(optimizer, fused=False)
    if optimizer.l2_sp is None:
        return optimizer
    groups = map(model.parameters_of, model.trained_groups)
    return StartingPoint(optimizer, [parameter for group in groups for parameter in group])


def _build_steps(
    config: Config, batch_size: int, model: FineTuneModel, data: DataSplits
) -> StepOptions:
    weights = None
    if config["data"].get("class_weights"):
        weights = balanced_weights(data.train.labels, data.classes, data.train.weights)
    average = build_part(config, "average")
    loss = build_part(config, "loss", class_weights=weights)
    if data.train.weights is not None and "weights" not in signature(loss.sum).parameters:
        raise InputError(
            f"loss._target_={config['loss']['_target_']!r} cannot weight images: its method sum "
            "must take weights, as tvf.training.CrossEntropyLoss has it, or set "
            "data.weight_column=null."
        )
    return StepOptions(
        batch_size=batch_size,
        seed=config["seed"],
        loss=loss,
        mix=build_part(config, "mix"),
        clip_norm=config["optimizer"].get("clip_norm"),
        average=average(model) if average else None,
    )


def _build_siblings(
    config: Config, context: JobContext, backbone: Backbone, model: FineTuneModel
) -> list[Sibling]:
    """The unfinished jobs of the sweep whose images pass through the same frozen layers."""
    configs = sibling_configs(context.sweep, config) if context.sweep else []
    by_model: dict[str, list[Config]] = {}
    probed = is_probe(config["model"])  # whose network is not that of other models
    for other in configs:
        # A user's own class might do anything to the backbone that it is built over.
        if other["model"]["_target_"] in OWN_MODELS and is_probe(other["model"]) == probed:
            by_model.setdefault(json.dumps(other["model"], sort_keys=True), []).append(other)
    siblings = []
    with preserve_freezing(model):
        for alike in by_model.values():
            try:
                node = alike[0]["model"]
                extra = {"adapt": False} if is_lora(node) else {}
                other = model
                if not probed:
                    other = build_part({"model": node}, "model", backbone=backbone, **extra)
                siblings.append(Sibling(other, _phases_of(alike, len(other.trained_groups))))
            except InputError:  # for the other job to report
                continue
    return siblings


def _phases_of(configs: Sequence[Config], groups: int) -> list[tuple[Phase, ...]]:
    """The phases of each of these jobs, which train `groups` groups."""
    built: dict[str, tuple[Phase, ...]] = {}  # a sweep of many jobs has few schedules
    phases = []
    for config in configs:
        schedule = {key: config[key] for key in ("epochs", "recipe", "early_stopping")}
        key = json.dumps(schedule, sort_keys=True)
        if key not in built:
            built[key] = build_phases(schedule, groups)
        phases.append(built[key])
    return phases


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


def _load_checkpoint(config: Config, backbone: Backbone, data: DataSplits, tag: str) -> np.ndarray:
    """Load the weights of `backbone.checkpoint`; return the ids of images they were trained on."""
    if (checkpoint := own_checkpoint(config)) is None:
        return np.empty(0, "S32")
    seen = check_checkpoint_origin(checkpoint, data)
    log.info("%s %s.", tag, load_checkpoint(backbone.module, backbone.heads, checkpoint))
    return seen


def _load_initial_weights(
    config: Config, model: FineTuneModel, backbone: str, data: DataSplits, tag: str
) -> np.ndarray:
    """Load the weights of `model.init_from`; return the ids of the images they were trained on."""
    if (init_from := config["model"].get("init_from")) is None:
        return np.empty(0, "S32")
    seen = check_origin(init_from, backbone, data, config)
    weights = load_initial_weights(model, init_from, *(f"module.{h}" for h in model.heads))
    log.info("%s starts from the weights in %s.", tag, weights)
    return seen


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
