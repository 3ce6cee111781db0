"""The resources of a running job: its tracker's run, devices and ranks, store, and Fabric."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from tvf.config import Config, build_part, known_fraction, target_node, trained_label
from tvf.data import DataSource
from tvf.distributed import (
    RankStrategy,
    claim_gpus,
    claim_shared_gpu,
    count_devices,
    memory_errors,
    require_devices,
    reset_peak_memory,
    set_arithmetic,
    set_threads,
    start_ranks,
)
from tvf.errors import InputError
from tvf.memory import keep_freed_memory
from tvf.models import import_timm
from tvf.records import JobRecord, Run, tracker_group
from tvf.store import Store

TIMM_BACKBONES = (
    "tvf.models.efficientnet_lite0",
    "tvf.models.efficientnet_lite1",
    "tvf.models.efficientnet_lite2",
    "tvf.models.timm_backbone",
)


@dataclass(frozen=True)
class JobContext:
    """Where a job runs: its folder, the sweep's folder, and whether other jobs run in parallel.

    `choices` are the names of the chosen config options, by group. `workers` is the number of jobs
    that run at once, `sharing` how many of them share a GPU. `devices` are the GPUs that the job
    has claimed, if jobs run in parallel on a machine with several.
    """

    folder: Path
    sweep: Path | None
    parallel: bool
    choices: dict[str, str]
    devices: list[int] | None = None
    workers: int = 1
    sharing: int = 1


def job_facts(config: Config, context: JobContext) -> dict[str, Any]:
    """What identifies a job. The fraction is None if it takes the network to know it."""
    return {
        "model": context.choices["model"],
        "backbone": config["backbone"].get("name", context.choices["backbone"]),
        "data": context.choices["data"],
        "seed": config["seed"],
        "pct_unfreeze": known_fraction(config["model"]),
    }


@contextmanager
def open_run(config: Config, context: JobContext, record: JobRecord) -> Iterator[Run]:
    """Open the tracker's run of this job and note it in the job's record."""
    tracker = build_part(config, "tracker")
    group = tracker_group(context.sweep) if context.sweep else None
    trained = {"trained": trained_label(config["model"])}
    values = job_facts(config, context) | trained | {"config": config}
    with ExitStack() as at_the_end:
        with tracker.start(context.folder, config["name"], group, values, record.run_id) as run:
            record.tracked(run)
            # What could not be sent is known only once the run has finished, even if the job fails.
            at_the_end.callback(record.tracked, run)
            yield run


@contextmanager
def open_resources(config: Config, context: JobContext) -> Iterator[Store | None]:
    """The job's store, with the job's other ranks running, until the context ends."""
    with build_part(config, "store").open() as store, _other_ranks(config, context):
        yield store


def claim_devices(config: Config, context: JobContext) -> JobContext:
    """Add how many jobs share a GPU, and this job's own GPUs if the machine has several.

    A list in fabric.devices names them: then all jobs share these. With fabric.jobs_per_gpu=auto,
    waits while the GPUs that it would share are busy. Raises InputError if the machine has too few
    devices.
    """
    gpus = 0 if config["fabric"].get("accelerator") == "cpu" else torch.cuda.device_count()
    devices = config["fabric"]["devices"]
    require_devices(config["fabric"].get("accelerator", "auto"), devices, gpus)
    count, named = count_devices(devices), devices if isinstance(devices, list) else None
    if not context.parallel or not gpus:
        return context
    sharing = -(-context.workers // (1 if named else gpus)) if count == 1 else 1
    own = None
    if sharing > 1 and config["fabric"].get("jobs_per_gpu") == "auto":
        own = claim_shared_gpu(sharing, config["name"], named)
    elif not named:
        own = claim_gpus(count, sharing)
    return replace(context, devices=own if gpus > 1 and not named else None, sharing=sharing)


def build_fabric(config: Config, context: JobContext) -> Fabric:
    """Lightning Fabric for this process's device.

    Also sets up the threads and memory of the process.
    """
    keep_freed_memory()
    node = target_node(config, "fabric")
    if context.devices:
        node["devices"] = context.devices
    if count_devices(node["devices"]) > 1:
        supplied: dict[str, Any] = {"strategy": RankStrategy()}
        node.pop("strategy", None)
    else:
        # Where SLURM is installed, Fabric would warn, or look for the tasks of a job.
        supplied = {} if node.get("plugins") else {"plugins": [LightningEnvironment()]}
    try:
        fabric = build_part({"fabric": node}, "fabric", **supplied)
        fabric.launch()
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"fabric cannot be set up: {error}. fabric=cpu with its defaults works everywhere."
        ) from error
    set_arithmetic(
        fabric.device,
        tf32=config["fabric"].get("tf32", False),
        deterministic=config.get("deterministic", False),
    )
    set_threads(
        config["threads"],
        fabric.device,
        in_sweep=context.sweep is not None,
        ranks=fabric.world_size,
        jobs=context.workers,
    )
    reset_peak_memory(fabric.device)
    return fabric


def explain_memory(config: Config, context: JobContext) -> AbstractContextManager[None]:
    """A context that turns a lack of device memory into an InputError that says what to lower."""
    fabric = config["fabric"]
    remedies = [f"lower data.batch_size={config['data'].get('batch_size')}"]
    if "mixed" not in str(fabric.get("precision")):
        remedies.append("set fabric.precision=bf16-mixed")
    if context.sharing > 1:
        remedies.append(f"let fewer jobs than {context.sharing} share a GPU (fabric.jobs_per_gpu)")
    if fabric.get("compile", "auto") != "off":
        remedies.append("set fabric.compile=off")
    if fabric.get("resident", "auto") != "off":
        remedies.append("set fabric.resident=off")
    return memory_errors(remedies)


@cache
def import_libraries(backbone: str) -> None:
    """Import the libraries that jobs with this backbone, a `_target_`, otherwise load later.

    Called in a process that forks jobs, so that only its first job waits for imports.
    """
    import_module("scipy.stats")
    if backbone in TIMM_BACKBONES:
        import_timm()
    # What is imported stays: without it, the garbage of each job is collected sooner and faster.
    gc.collect()
    gc.freeze()


def open_offline(config: Config) -> DataSource:
    """The data source of a job, which must not download anything for a comparison."""
    data = config["data"]
    offline = {**data, "download": False} if "download" in data else data
    return build_part({**config, "data": offline}, "data")


def _other_ranks(config: Config, context: JobContext) -> AbstractContextManager[None]:
    """A context in which the other ranks of a job on several devices train along."""
    count = count_devices(config["fabric"]["devices"])
    if count == 1:
        return nullcontext()
    arguments = {
        "config": dict(config),
        "folder": str(context.folder),
        "sweep": str(context.sweep) if context.sweep else None,
        "choices": context.choices,
        "devices": context.devices,
        "workers": context.workers,
    }
    return start_ranks(count, "tvf.job.run:follow_job", arguments)
