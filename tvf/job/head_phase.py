"""A first phase that trains only the head, computed once for all jobs that share it.

The head after this phase depends on seed, data, backbone and the head's learning rate, but not on
what trains later. So the first job saves its training state at the end of the phase in the store,
and other jobs resume from there as from a checkpoint.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tvf.job.checkpoint import Checkpoints
from tvf.lease import Lease, LeaseBusy, LeaseLost
from tvf.models import FineTuneModel, is_below, save_weights
from tvf.store import Store, StoreError
from tvf.training import STATE_KEYS, STEPS, EpochResult, best_epoch

log = logging.getLogger(__name__)


class HeadPhase:
    """The store entry of a job's first phase.

    The job that trains the phase holds its lease until `keep`, or until the end of the context.
    """

    def __init__(self, store: Store, fingerprint: str, model: FineTuneModel) -> None:
        about = {"about": "phase, trained alone"}
        folder = store.entry("head", [fingerprint], about).folder
        self.fingerprint, self.model = fingerprint, model
        self._kept = Checkpoints(folder, configuration=fingerprint)
        self._lease = Lease(folder / "trains.lease")

    def __enter__(self) -> "HeadPhase":
        return self

    def __exit__(self, *error: object) -> None:
        self._lease.release()

    def hold(self, state: dict[str, Any]) -> None:
        """Take the lease if this job resumes within the phase and no other job is training it."""
        if state["phase"] == 0:
            with suppress(LeaseBusy):
                self._lease.acquire(timeout=0)

    @property
    def holds(self) -> bool:
        """Whether this job trains the phase and will `keep` it."""
        return self._lease.held

    def take(self, best_weights: Path, metric: str, tag: str = "") -> dict[str, Any] | None:
        """The state at the end of the phase; None if this job has to train it.

        Waits if another job is training it. Writes the weights of the phase's best epoch to
        `best_weights`.
        """
        try:
            self._lease.acquire(timeout=0)
        except LeaseBusy as busy:
            message = "%s waits for another job to finish the head phase: %s."
            log.info(message, tag, busy.holder)
            self._lease.acquire()
        state = self._kept.load()
        if state is None or not STATE_KEYS | {"spent", "weights"} <= state.keys():
            return None
        self._lease.release()
        whole = self.model.state_dict()
        best = best_epoch([EpochResult(**row) for row in state["history"]], metric)
        assert best is not None, "a phase has at least one epoch"
        before = {name: value.clone() for name, value in whole.items()}
        self.model.load_state_dict(whole | state.pop("weights"))
        save_weights(self.model, best_weights, best.epoch)
        self.model.load_state_dict(before)
        state["spent"] |= {"prefix_images": 0, "continued_images": 0}
        # The kept state lacks the layers that train later; they get their initial values.
        later = _only(self.model.state_dict(), self.model.trained_names())
        for part, rest in (("model", later), ("best", later), ("average", before)):
            state[part] = None if state[part] is None else rest | state[part]
        return state

    def keep(self, state: dict[str, Any], best_weights: Path) -> None:
        """Save the state at the end of the phase for other jobs, if this job has trained it."""
        if not self.holds:
            return
        try:
            self._lease.check()
        except LeaseLost as lost:
            log.warning("store: not caching the head phase: %s.", lost)
            return
        parts = {part: state[part] for part in ("model", "best", "average")}
        parts["weights"] = load_file(best_weights)
        names = {name for name, _ in self.model.named_buffers()} | _head(self.model)
        names = (names | {STEPS}) - self.model.trained_names()
        small = {part: values and _only(values, names) for part, values in parts.items()}
        self._kept.save(state | small)
        self._lease.release()


def open_head_phase(
    fingerprint: str | None, store: Store | None, model: FineTuneModel
) -> HeadPhase | None:
    """The head phase with this fingerprint; None if there is none or it cannot be stored."""
    if fingerprint is None or store is None:
        return None
    try:
        return HeadPhase(store, fingerprint, model)
    except StoreError as error:
        log.warning("store: not caching the phase that trains only the head: %s.", error)
        return None


def _head(model: FineTuneModel) -> set[str]:
    names = (name for name, _ in model.module.named_parameters())
    return {f"module.{name}" for name in names if is_below(name, model.heads)}


def _only(values: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name in names}
