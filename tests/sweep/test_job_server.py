"""The process that forks commands for a worker of a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers import IMPORTABLE
from tvf.sweep.job_server import JobServer

WORKER = """
import os, sys, time
from tvf.sweep.job_server import JobServer
server = JobServer(os.getcwd(), os.environ)
print(server._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_server_runs_commands_until_it_is_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment = {**os.environ, "PYTHONPATH": IMPORTABLE}
    server = JobServer(str(tmp_path), environment)
    tvf = [sys.executable, "-m", "tvf"]
    shown = [*tvf, "store", "info"]
    for name in ("one", "two"):  # each with its own environment
        own = environment | {"TVF_STORE": str(tmp_path / name)}
        assert server.run(shown, "", own) == 0
        assert f"{tmp_path / name} does not exist" in capfd.readouterr().err
    assert server.run([*tvf, "status", "nowhere"], "", environment) == 1
    assert server.run([*tvf, "nonsense"], "", environment) == 2
    assert server.is_alive()
    os.kill(server._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended with code -9"):
        server.run(shown, "", environment)
    assert not server.is_alive()
    for stream in (server._process.stdin, server._process.stdout):
        assert stream
        stream.close()


@pytest.mark.slow
def test_a_server_ends_with_its_worker(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": IMPORTABLE},
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stdout
        server = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
    deadline = time.monotonic() + 60  # while it imports torch, it does not notice
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
