"""Runs a sweep's jobs on a Ray cluster: hydra/launcher=ray.

Each job is a task, which runs the job's command in a process of its own. The sweep's folder, the
working directory and --config-dir are expected on every node by the same paths. If a node dies, Ray
starts its tasks elsewhere, and their jobs resume from their last checkpoints.
"""

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from tvf import __version__
from tvf.errors import InputError
from tvf.records import STOPPED, is_done, mark_failed, read_status
from tvf.sweep.launchers import require_ray
from tvf.sweep.processes import GRACE_SECONDS, interruptible, seconds_to_checkpoint
from tvf.sweep.ray_options import RayOptions, has, needs_of
from tvf.sweep.ray_worker import look_around, train_job
from tvf.sweep.remote import (
    NODE,
    RemoteJob,
    job_return,
    read_options,
    remote_environment,
    sweep_folder,
)

log = logging.getLogger(__name__)

CLIENT = "ray://"  # addresses for machines that are not in the cluster themselves
POLL_SECONDS = 0.5  # at most until an interrupt is seen
CONNECT_SECONDS = 9.0  # to find out whether a Ray cluster answers
ANSWER_SECONDS = 5.0  # for the first bytes of its answer
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # HTTP/2's first frame from either side, empty
CLIENT_SECONDS = 60.0  # the same for such an address, where Ray starts a process for each client
CHECK_SECONDS = 120.0  # for the nodes to start a worker and look at the sweep's folder


def launch_on_ray(
    jobs: Sequence[RemoteJob], config: DictConfig, options: Mapping[str, Any]
) -> list[JobReturn]:
    """Train the jobs that are not done on a Ray cluster, and wait for all of them to end.

    `config` is the sweep's, `options` are the launcher's. Raises InputError before the first job
    starts if the cluster cannot run them.
    """
    asked = read_options(RayOptions, options)
    waiting = {job.folder: job for job in jobs if not is_done(job.folder, job.config)}
    if waiting:
        own = asked.store == "node" and asked.address is not None  # there is but one node
        environment = remote_environment(node_store=own)
        ray = _connect(asked.address, environment["PYTHONPATH"])
        nodes = [node for node in ray.nodes() if node["Alive"]]
        resources = [node["Resources"] for node in nodes]
        needs = {folder: needs_of(job.config, asked, resources) for folder, job in waiting.items()}
        able = {
            node["NodeID"]: node["NodeManagerAddress"]
            for node in nodes
            if any(has(node["Resources"], each) for each in needs.values())
        }
        sweep = sweep_folder(config)
        _check_nodes(ray, able, sweep, _folders(config))
        terminated = sweep / f".terminated-{secrets.token_hex(8)}"
        common = (environment, terminated)
        tasks = {
            _submit(ray, job, needs[folder], asked.max_retries, common): job
            for folder, job in waiting.items()
        }
        _wait(ray, tasks, terminated)
    return [job_return(job) for job in jobs]


def _connect(address: str | None, python_path: str) -> Any:
    """Return the module ray, connected to the cluster at `address`; None starts one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # So that it listens on loopback only, with a token, as other users of this machine could
        # run code otherwise. On Linux, Ray would replace 127.0.0.1 by a public address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    require_ray()
    import ray

    if ray.is_initialized():  # for an earlier batch of this sweep
        return ray
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "error",
        "runtime_env": {"env_vars": {"PYTHONPATH": python_path}},
    }
    if address is None:
        log.info("Starting Ray on this machine.")
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        _check_address(address)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", **settings)
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreachable(str(address), _last_line(error)) from None
    signal.signal(signal.SIGTERM, terminate)  # Ray sets its own
    return ray


def _check_address(address: str) -> None:
    """Raise InputError unless a Ray of this version answers there within CONNECT_SECONDS."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    try:
        if host and port.isdecimal():
            _require_grpc(host, int(port))
    except (OSError, OverflowError) as error:
        raise _unreachable(address, f"no Ray cluster answers there ({error})") from None
    # Ray itself would try for two minutes, and then end its process.
    check, seconds = ["-m", "ray.scripts.scripts", "health-check", "--address"], CONNECT_SECONDS
    if address.startswith(CLIENT):
        check = ["-c", "import ray, sys; ray.init(sys.argv[1], logging_level='error')"]
        seconds = CLIENT_SECONDS
    command = [sys.executable, *check, address]
    try:
        checked = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, "no Ray cluster answers there") from error
    if checked.returncode:
        raise _unreachable(address, _last_line(checked.stderr))


def _require_grpc(host: str, port: int) -> None:
    """Raise OSError unless a server of Ray's protocol, gRPC over HTTP/2, answers soon."""
    with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":  # it says nothing without a handshake
            return
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
        if connection.recv(len(SETTINGS))[3:4] != SETTINGS[3:4]:
            raise OSError("what answers is no Ray")


def _unreachable(address: str, problem: str) -> InputError:
    remedy = "Leave the address out to start Ray on this machine, or see docs/clusters.md."
    if "version" in problem:
        remedy = "Install the cluster's version here, or the other way round."
    return InputError(f"{NODE}.address={address}: {problem.removesuffix('.')}. {remedy}")


def _folders(config: DictConfig) -> list[str]:
    """The folders besides the sweep's in which jobs may find code, configs and data."""
    sources = config.hydra.runtime.config_sources
    return [os.getcwd(), *(each.path for each in sources if each.provider == "command-line")]


def _check_nodes(ray: Any, nodes: Mapping[str, str], sweep: Path, folders: Sequence[str]) -> None:
    """Raise InputError unless each of `nodes` (addresses by id) can run the sweep's jobs.

    A task on each looks: it needs this tvf, the `folders`, and to write to the sweep's folder.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    sweep.mkdir(parents=True, exist_ok=True)
    probe = sweep / f".seen-{secrets.token_hex(8)}"
    probe.touch()
    look = ray.remote(num_cpus=0, max_retries=0)(look_around)
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    try:
        looks = [
            look.options(scheduling_strategy=node).remote(probe, folders, __version__)
            for node in there
        ]
        for address, task in zip(nodes.values(), looks, strict=True):
            try:
                problem = ray.get(task, timeout=CHECK_SECONDS)
            except ray.exceptions.RayError as error:
                problem = _last_line(error)
            if problem:
                raise InputError(
                    f"hydra/launcher=ray: the node {address} cannot run the jobs: {problem}. Every "
                    "node needs tvf, and the folders of the sweep, of the command and of "
                    "--config-dir by the same paths."
                )
    finally:
        probe.unlink()


def _submit(
    ray: Any,
    job: RemoteJob,
    needs: Mapping[str, Any],
    retries: int,
    common: tuple[dict[str, str], Path],
) -> Any:
    """Submit a job's task, and return what Ray calls it.

    `common` are the last arguments of `train_job`, which are the same for all jobs.
    """
    # Ray would end a worker after a task with a GPU, to free its memory: jobs' processes do end.
    train = ray.remote(max_calls=0)(train_job)
    backbone = str(job.config["backbone"].get("_target_"))
    return train.options(name=job.config["name"], max_retries=retries, **needs).remote(
        job.command, job.folder, backbone, os.getcwd(), *common
    )


def _wait(ray: Any, tasks: Mapping[Any, RemoteJob], terminated: Path) -> None:
    """Wait for all tasks to end; on Ctrl-C or SIGTERM, interrupt them first.

    The file `terminated` tells workers that it was SIGTERM: Ray only interrupts.
    """
    running = [*tasks]
    with _noted_interrupts() as interrupts:
        while running and not interrupts:
            ended, running = ray.wait(running, timeout=POLL_SECONDS)
            for task in ended:
                _note_end(ray, task, tasks[task])
    if running:
        patience = GRACE_SECONDS + 3
        try:
            if signal.SIGTERM in interrupts:
                with suppress(OSError):  # the disk may be full
                    terminated.touch()
                patience += seconds_to_checkpoint()
            _cancel(ray, running, patience)
        finally:
            terminated.unlink(missing_ok=True)
        raise KeyboardInterrupt


def _cancel(ray: Any, tasks: Sequence[Any], patience: float) -> None:
    """Interrupt tasks, wait at most `patience` seconds for their end, then kill their workers."""
    with interruptible():  # without `stop_jobs`, which looks for children of this process
        for force in (False, True):  # a second Ctrl-C shortens the wait
            with suppress(KeyboardInterrupt):
                for task in tasks:
                    ray.cancel(task, force=force)
                ray.wait(tasks, num_returns=len(tasks), timeout=patience)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """In the context, SIGINT and SIGTERM are only noted in the list.

    Ray's own code, which may run when they arrive, could lose an exception.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _note_end(ray: Any, task: Any, job: RemoteJob) -> None:
    """Log how a job ended, and record it if its task was lost."""
    name = job.config["name"]
    try:
        node = ray.get(task)
        log.info("%s: %s on %s.", name, read_status(job.folder).get("state"), node)
    except ray.exceptions.RayError as error:
        log.error("%s: %s", name, _last_line(error))
        # It was lost, which is not the job's fault, unless it took too much memory.
        own = isinstance(error, ray.exceptions.OutOfMemoryError)
        with suppress(OSError):  # the disk may be full
            mark_failed(job.folder, name, _last_line(error) if own else STOPPED[1])


def _last_line(error: object) -> str:
    """The last line of what Ray says, which comes after traces, without the exception's name."""
    line = str(error).strip().rpartition("\n")[2]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", line).removesuffix(".")
