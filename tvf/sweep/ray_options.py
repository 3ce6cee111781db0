"""The options of hydra/launcher=ray, checked, and what they mean for a job."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvf.config import Config
from tvf.errors import InputError, require_choice, require_count, require_number
from tvf.sweep.remote import NODE, check_devices

RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # what nodes call them


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """The options of conf/hydra/launcher/ray.yaml, which says when to choose them."""

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    memory: float | None = None
    max_retries: int = 5
    store: str = "node"

    def __post_init__(self) -> None:
        if self.address is not None and not isinstance(self.address, str):
            raise InputError(f"{NODE}.address={self.address!r} must be auto or HOST:PORT.")
        require_number(f"{NODE}.num_cpus", self.num_cpus, 0, above=True)
        if self.num_gpus is not None:
            require_number(f"{NODE}.num_gpus", self.num_gpus, 0)
        if self.memory is not None:
            require_number(f"{NODE}.memory", self.memory, 0, above=True)
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name) or 0
            if value > 1 and value != int(value):
                raise InputError(f"{NODE}.{name}={value} must be a whole number, or below 1.")
        require_count(f"{NODE}.max_retries", self.max_retries, 0)
        require_choice(f"{NODE}.store", self.store, ("node", "shared"))


def needs_of(
    config: Config, options: RayOptions, nodes: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What the job with this config needs of its node, as arguments of a Ray task.

    `nodes` are the resources of each. Raises InputError if none has it: Ray would wait for ever.
    """
    gpus = options.num_gpus
    if gpus is None:
        gpus = _gpus(config["fabric"]) if any(node.get("GPU") for node in nodes) else 0
    check_devices(config, f"{NODE}.num_gpus and num_cpus", options.num_cpus, gpus)
    needs = {"num_cpus": options.num_cpus, "num_gpus": gpus, "memory": options.memory}
    if any(has(node, needs) for node in nodes):
        return needs
    asked = ", ".join(f"{name}={value:g}" for name, value in needs.items() if value)
    have = {
        ", ".join(f"{name}={node.get(key, 0):g}" for name, key in RESOURCES.items())
        for node in nodes
    }
    raise InputError(
        f"{NODE}: no node of the Ray cluster has what a job needs ({asked}), and a job runs on one "
        f"node. Nodes have: {'; '.join(sorted(have))}."
    )


def has(node: Mapping[str, float], needs: Mapping[str, Any]) -> bool:
    """Whether a node with these resources can run a job with these needs."""
    return all((needs[name] or 0) <= node.get(key, 0) for name, key in RESOURCES.items())


def _gpus(fabric: Config) -> float:
    """The GPUs of a job on a cluster that has some; jobs check their own `fabric` for mistakes."""
    if fabric.get("accelerator") == "cpu":
        return 0
    devices, sharing = fabric.get("devices", 1), fabric.get("jobs_per_gpu", 1)
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1:
        return 1
    return 1 / sharing if count == 1 and isinstance(sharing, int) and sharing > 1 else count
