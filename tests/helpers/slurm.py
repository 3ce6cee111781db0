"""A real SLURM cluster on this machine, on loopback alone: two nodes of one core, and one apart."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
# Nodes n1 and n2 are in the partitions low and high, which preempts low. The folder `hidden` cannot
# be seen on n3, the only node of blind.
CONFIG = """\
ClusterName=tvf
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=DEFAULT CPUs=1 RealMemory=4000
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}]
NodeName=n3 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[3]}
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1
PartitionName=high Nodes=n[1-2] PriorityTier=10
PartitionName=blind Nodes=n3
"""


@dataclass
class Cluster:
    """The folder of a running cluster, and its processes by name."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What makes SLURM's commands talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; return what it prints."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def start(self, name: str, *command: str) -> None:
        """Start a process that ends with the cluster, or with this process."""
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def start_node(self, name: str) -> None:
        """Start a node; n3 does not see the folder `hidden`."""
        command = ["slurmd", "-D", "-N", name]
        if name == "n3":
            hide = f"mount -t tmpfs tmpfs {self.folder}/hidden && exec slurmd -D -N n3"
            command = ["unshare", "--mount", "sh", "-c", hide]
        self.start(name, *command)

    def kill_node(self, name: str, job: int) -> None:
        """Kill a node: its slurmd, and its job with process `job`."""
        self.processes[name].kill()
        self.processes[name].wait()
        process: psutil.Process | None = psutil.Process(job)
        while process and process.pid > 1:
            parent, last = process.parent(), process.name() == "slurmstepd"
            process.kill()
            process = None if last else parent

    def stop(self) -> None:
        """Cancel all jobs, and end all processes."""
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--full", "--state=RUNNING", "--user=root")
            self.run("scancel", "--user=root")
            wait_for(lambda: not self.run("squeue", "-h"), 10)
        for process in reversed([*self.processes.values()]):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait until `condition` is true, at most `seconds`; AssertionError after that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="tvf-slurm-"))
    cluster = Cluster(folder)
    (folder / "state").mkdir()
    (folder / "hidden").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, ports=_free_ports(4)))
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    files = [f"--{name}={folder}/munge.{end}" for name, end in names.items()]
    seed = f"--seed-file={folder}/munge.seed"
    try:
        cluster.start("munged", "munged", "--force", "--foreground", *files, seed)
        wait_for((folder / "munge.socket").exists, 10)
        cluster.start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2", "n3"):
            cluster.start_node(node)
        wait_for(lambda: _answers(cluster) == ["idle"] * 3, 20)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(cluster: Cluster) -> list[str]:
    """The states of the nodes; none while the controller does not answer."""
    with suppress(subprocess.CalledProcessError):
        return cluster.run("sinfo", "-h", "-N", "-o", "%T", "-p", "low,blind").split()
    return []


def _free_ports(count: int) -> list[int]:
    """Ports in a row that are free at the moment."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        ports = [*range(first, first + count)]
        if all(_is_free(port) for port in ports):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
