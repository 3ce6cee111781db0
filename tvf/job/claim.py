"""A job's claim on its folder: only one process trains it, on whatever machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tvf.errors import InputError
from tvf.job.resources import JobContext
from tvf.lease import EXPIRY, Holder, Lease, LeaseBusy, LeaseLost
from tvf.mirror import job_lease
from tvf.records import LEASE

log = logging.getLogger(__name__)

DYING = 1.0  # seconds that a process of this machine may take to end after it was killed


@contextmanager
def claim_job(context: JobContext, name: str) -> Iterator[Lease | None]:
    """Claim the job's folder; yield its lease, or None if another process of the sweep trains it.

    Also ends the context, with a message, if its code raises LeaseLost. For a single job raises
    InputError instead in both cases.
    """
    lease = job_lease(context.folder / LEASE, context.sweep)
    try:
        _acquire(lease, name)
    except LeaseBusy as busy:
        if context.sweep is None:
            raise InputError(
                f"another process is training in {context.folder}: {busy.holder}. Choose another "
                "hydra.run.dir."
            ) from None
        log.info("%s: another process is training this job: %s.", name, busy.holder)
        yield None
        return
    try:
        yield lease
    except LeaseLost as lost:
        explanation = _explain(lost.holder)
        if context.sweep is None:
            raise InputError(f"{explanation} Its results will be in {context.folder}.") from None
        log.error("%s: %s", name, explanation)
    finally:
        lease.release()


def _acquire(lease: Lease, name: str) -> None:
    try:
        lease.acquire(DYING)
    except LeaseBusy as busy:
        if busy.holder.lives():
            raise
        message = "%s: claimed by %s: waiting up to %.0f s for a sign of life."
        log.info(message, name, busy.holder, EXPIRY)
        lease.acquire(0, certain=True)


def _explain(holder: Holder | None) -> str:
    return (
        f"{holder or 'another process'} has taken over this job, because this process was stopped "
        f"for more than {EXPIRY:.0f} s: it writes nothing more."
    )
