"""What a worker of a Ray cluster does for hydra/launcher=ray: looks around, and runs jobs."""

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvf.records import is_running
from tvf.sweep.job_server import JobServer

RETRY_SECONDS = 5.0  # between attempts at a job that a process elsewhere still holds
OF_THE_COMMAND = ("TVF_", "WANDB_", "PYTHONPATH")  # variables that are not the node's own

_server: JobServer | None = None  # of this process


def train_job(
    command: Sequence[str],
    folder: Path,
    backbone: str,
    start: str,
    environment: Mapping[str, str],
    terminated: Path,
) -> str:
    """Run a job's `command` in the folder `start`, and return this node's address.

    Returns when the job, in `folder`, has ended, or been trained by another process that held it.
    If that was on a node that has died, the job is free once its lease has expired. If the file
    `terminated` exists when Ray interrupts the task, the job keeps a checkpoint first.
    """
    import ray

    global _server
    if threading.current_thread() is threading.main_thread():
        # Ray interrupts tasks by it, but a Ray that was started in the background ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    variables = {key: environment[key] for key in environment if key.startswith(OF_THE_COMMAND)}
    # The node knows best where its programs, libraries and temporary files are.
    environment = {**environment, **os.environ, **variables}
    while True:
        if _server is None or not _server.is_alive():
            _server = JobServer(start, environment)
        _server.run(command, backbone, environment, gently=terminated.exists)
        if not is_running(folder):
            return ray.util.get_node_ip_address()
        time.sleep(RETRY_SECONDS)


def look_around(probe: Path, folders: Sequence[str], version: str) -> str | None:
    """Return why this node cannot run jobs; None if it can.

    `probe` is a file in the sweep's folder, `folders` must exist, `version` is that of tvf.
    """
    from tvf import __version__

    if not probe.is_file():
        return f"the sweep's folder {probe.parent} cannot be seen there"
    if not os.access(probe.parent, os.W_OK):
        return f"the sweep's folder {probe.parent} cannot be written there"
    for folder in folders:
        if not os.path.isdir(folder):
            return f"{folder} cannot be seen there"
    return None if __version__ == version else f"it has tvf {__version__}, not {version}"
