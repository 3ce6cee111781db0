"""A real Ray cluster on this machine: each node has a network namespace of its own.

Nothing listens outside of these. Commands join the head's namespace, so they are on its node.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers import IMPORTABLE, forks

HEAD = "10.77.0.1"
PORT = 6379
RAY = (sys.executable, "-m", "ray.scripts.scripts")
SURROUNDINGS = {
    "PYTHONPATH": IMPORTABLE,
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "120",  # this machine may be busy
}
ENTER = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).setns(os.open(sys.argv.pop(1), os.O_RDONLY), 0x40000000):
    raise OSError(ctypes.get_errno(), "setns")
sys.path.insert(0, os.getcwd())
from tvf.cli import main
sys.argv[0] = "tvf"
main()
"""


@dataclass
class RayCluster:
    """A head without CPUs, and workers 1 and 2 with one each.

    Each has files of its own where Ray keeps its. Worker 2 has what Ray takes for a GPU, and cannot
    see the folder `hidden`. `name` begins the
    names of the namespaces.
    """

    name: str
    folder: Path

    @property
    def hidden(self) -> Path:
        """A folder that exists on the head and on worker 1."""
        return self.folder / "hidden"

    def address(self, node: int) -> str:
        """The address of a node; the head is node 0."""
        return f"10.77.0.{10 + node}" if node else HEAD

    def tvf(self, *arguments: str, cwd: Path) -> forks.Process:
        """`tvf ARGUMENTS` on the head's node."""
        namespace = f"/run/netns/{self.name}0"
        return forks.python(ENTER, namespace, *arguments, cwd=cwd, **SURROUNDINGS)

    def processes(self, node: int) -> list[psutil.Process]:
        """What runs on a node."""
        listed = subprocess.run(
            ["ip", "netns", "pids", f"{self.name}{node}"], capture_output=True, text=True
        )
        found = []
        for pid in listed.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill_node(self, node: int) -> None:
        """End all processes of a node at once."""
        for process in self.processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def start_nodes(self, *nodes: int) -> None:
        """Start nodes, and wait until they have joined."""
        started = [self._start(node) for node in nodes]
        for process in started:
            output, _ = process.communicate(timeout=90)
            assert process.returncode == 0, output

    def _start(self, node: int) -> subprocess.Popen[str]:
        options = [f"--node-ip-address={self.address(node)}", "--disable-usage-stats"]
        if node == 0:
            temporary = f"--temp-dir={self.folder}/ray"
            options += ["--head", f"--port={PORT}", "--num-cpus=0", temporary]
            options += ["--include-dashboard=false"]
        else:
            options += [f"--address={HEAD}:{PORT}", "--num-cpus=1", f"--num-gpus={node - 1}"]
        command = [*RAY, "start", *options, f"--object-store-memory={100 * 2**20}"]
        if node:  # `ip netns exec` gives a mount namespace of its own
            own = [f"{self.folder}/ray", *([str(self.hidden)] if node == 2 else [])]
            mount = " && ".join(f"mount -t tmpfs tmpfs {folder}" for folder in own)
            command = ["sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        return subprocess.Popen(
            ["ip", "netns", "exec", f"{self.name}{node}", *command],
            env=os.environ | SURROUNDINGS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Start a cluster, and stop it at the end, whatever happens."""
    # The path is short because Ray's sockets are in it.
    folder = Path(tempfile.mkdtemp(prefix="tvf-ray-", dir="/tmp"))
    cluster = RayCluster(f"tvf{os.getpid()}n", folder)
    cluster.hidden.mkdir()
    try:
        _connect_namespaces(cluster)
        cluster.start_nodes(0)
        cluster.start_nodes(1, 2)
        yield cluster
    finally:
        for node in (2, 1, 0):
            cluster.kill_node(node)
        deadline = time.monotonic() + 10
        while any(cluster.processes(node) for node in range(3)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for node in range(3):
            subprocess.run(["ip", "netns", "del", f"{cluster.name}{node}"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _connect_namespaces(cluster: RayCluster) -> None:
    """Make the nodes' namespaces; those of workers are connected to a bridge in the head's."""
    head = f"{cluster.name}0"
    _ip("netns", "add", head)
    _ip("-n", head, "link", "set", "lo", "up")
    _ip("-n", head, "link", "add", "bridge", "type", "bridge")
    _ip("-n", head, "addr", "add", f"{HEAD}/24", "dev", "bridge")
    _ip("-n", head, "link", "set", "bridge", "up")
    for node in (1, 2):
        own = f"{cluster.name}{node}"
        _ip("netns", "add", own)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", own)
        _ip("-n", head, "link", "add", f"node{node}", *peer)
        _ip("-n", head, "link", "set", f"node{node}", "master", "bridge", "up")
        _ip("-n", own, "addr", "add", f"{cluster.address(node)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", own, "link", "set", device, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def missing_for_a_cluster() -> str | None:
    """What this machine lacks for such a cluster; None if nothing."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    probe = f"tvf{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True)
    if made.returncode:
        return "no network namespace can be made here"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None
