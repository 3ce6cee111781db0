"""A phase that trains the head alone, computed once for all jobs that begin with the same one.

What the head is after it follows from seed, data, backbone and the head's rates, whatever trains later. So the first
job keeps the state of its training at the phase's end in the store, and others go on from there as from a checkpoint.
"""

import json
import logging
from contextlib import suppress
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

from tvf.config import resolve_target, result_config
from tvf.files import BEST_WEIGHTS
from tvf.job.checkpoint import Checkpoints
from tvf.job.setup import Job, JobContext
from tvf.metrics import metric_of
from tvf.models import FineTuneModel, save_weights
from tvf.store import (
    FingerprintError,
    Store,
    StoreError,
    fingerprint,
    fingerprint_layers,
    numeric_environment,
)
from tvf.training import (
    STATE_KEYS,
    STEPS,
    EpochResult,
    best_epoch,
    ema,
    loop,
    loss,
    optimizer,
    phases,
    schedules,
    state,
    step,
)

log = logging.getLogger(__name__)

# What trains a head, beside the network: code of the user's counts by its file, as everywhere in the store.
CODE = ("augment", "mix", "loss", "optimizer", "scheduler", "average")
LOOP = (ema, loop, loss, optimizer, phases, schedules, state, step)
# What the head phase does not depend on: it goes by the phase itself.
LATER = ("name", "epochs", "recipe", "early_stopping")
LATER_WITHIN = {
    "model": ("pct_unfreeze", "unit", "direction", "train"),
    "optimizer": ("backbone_lr", "layer_decay"),
}


class HeadPhase:
    """The context of a job's first phase in the store; as a context it is held by who trains it, until `keep`."""

    def __init__(self, store: Store, key: str, model: FineTuneModel) -> None:
        folder = store.entry("head", [key], {"about": "phase, trained alone"}).folder
        self.key, self.model = key, model
        self._kept = Checkpoints(folder, of=key)
        self._lock = FileLock(folder / "trains.lock")

    def __enter__(self) -> "HeadPhase":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def hold(self, state: dict[str, Any]) -> None:
        """This job goes on from `state`: if that is within the phase, it is to `keep` it, unless another trains it."""
        if state["phase"] == 0:
            with suppress(Timeout):
                self._lock.acquire(timeout=0)

    @property
    def holds(self) -> bool:
        """Whether this job is to `keep` the phase."""
        return self._lock.is_locked

    def take(self, context: JobContext, metric: str, tag: str = "") -> dict[str, Any] | None:
        """The state at the phase's end, if another job has trained it or does so now; None if this one is to.

        The weights of its best epoch are put into this job's folder.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            log.info("%s waits for the phase of the head alone, which another job trains.", tag)
            self._lock.acquire()
        state = self._kept.load()
        if state is None or not STATE_KEYS | {"spent", "weights"} <= state.keys():
            return None
        self._lock.release()
        whole = self.model.state_dict()
        own = {name: value for name, value in whole.items() if name in _trained_later(self.model)}
        best = best_epoch([EpochResult(**row) for row in state["history"]], metric)
        assert best is not None, "the phase has one epoch at least"
        before = {name: value.clone() for name, value in whole.items()}
        self.model.load_state_dict(whole | state.pop("weights"))
        save_weights(self.model, context.folder / BEST_WEIGHTS, best.epoch)
        self.model.load_state_dict(before)
        state["spent"] |= {"prefix_images": 0, "continued_images": 0}
        for part, rest in (("model", own), ("best", own), ("average", before)):
            state[part] = None if state[part] is None else rest | state[part]
        return state

    def keep(self, state: dict[str, Any], context: JobContext) -> None:
        """Keep the state at the phase's end for other jobs, if this one has trained it."""
        if not self.holds:
            return
        later = _trained_later(self.model)
        parts = {part: state[part] for part in ("model", "best", "average")}
        parts["weights"] = load_file(context.folder / BEST_WEIGHTS)
        names = {name for name, _ in self.model.named_buffers()} | _head(self.model) | {STEPS}
        small = {part: values and _only(values, names - later) for part, values in parts.items()}
        self._kept.save(state | small)
        self._lock.release()


def head_phase(config: dict[str, Any], context: JobContext, parts: Job) -> HeadPhase | None:
    """The head phase that a job begins with, for others to share; None where there is none, or no context for it."""
    first = parts.phases[0]
    if parts.store is None or len(parts.phases) == 1 or first.groups or parts.fabric.world_size > 1:
        return None
    data, model = parts.data, parts.model
    rest = {key: value for key, value in result_config(config).items() if key not in LATER}
    for node, keys in LATER_WITHIN.items():
        rest[node] = {key: value for key, value in rest[node].items() if key not in keys}
    rates = [first.lr, first.epochs, first.stopping.patience, first.stopping.min_delta]
    nodes = {name: config[name] for name in CODE} | {
        "algorithm": config["optimizer"].get("algorithm", {})
    }
    try:
        code = [
            *LOOP,
            *(resolve_target(node, name) for name, node in nodes.items() if "_target_" in node),
        ]
        images = [[s.fingerprint or s.images, s.labels] for s in (data.train, data.val)]
        network = [fingerprint_layers(model.module, without=model.head), dict(model.state_dict())]
        around = [numeric_environment(parts.fabric, model), torch.get_num_threads()]
        key = fingerprint(
            [
                json.dumps(rest, sort_keys=True),
                rates,
                metric_of(config),
                images,
                network,
                around,
                code,
            ]
        )
        return HeadPhase(parts.store, key, model)
    except (FingerprintError, StoreError) as error:
        log.warning("store: the phase of the head alone is not kept for other jobs: %s.", error)
        return None


def _head(model: FineTuneModel) -> set[str]:
    return {
        f"module.{model.head}.{name}"
        for name, _ in model.module.get_submodule(model.head).named_parameters()
    }


def _trained_later(model: FineTuneModel) -> set[str]:
    return {f"module.{name}" for group in model.trained_groups for name in group.parameters}


def _only(values: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name in names}
