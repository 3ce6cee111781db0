"""Sweeps against a real W&B server on the loopback interface, which is killed and restarted.

The server is openwandb, in its own virtual environment. It does not store a run's group and exit
code, so a proxy in front of it reads them from the requests.
"""

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from PIL import Image

from helpers import IMPORTABLE, SMALL, forks
from tvf.records.rows import read_sweep
from tvf.report.comparison import compare
from tvf.report.formats import report_data

pytestmark = pytest.mark.slow

KEY = "local0000000000000000000000000000000000000000"
BASIC = "hydra/launcher=basic"  # starts faster, for sweeps whose launcher is not under test
QUICK = ("data.limit=100", "data.image_size=32", "data.batch_size=16", "project=loopback")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """openwandb behind a proxy that records each run's group, job type and exit code.

    While it is killed, connections fail.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self.groups: dict[str, str] = {}
        self.job_types: dict[str, str] = {}
        self.exit_codes: dict[str, int] = {}
        self._program, self._folder, self._port = program, folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def start(self) -> None:
        arguments = [
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--data-dir",
            str(self._folder),
        ]
        with (self._folder.parent / "server.log").open("a") as log:
            self._process = subprocess.Popen([self._program, *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.1)

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._proxy.shutdown()
        self._proxy.server_close()

    def runs(self) -> dict[str, dict[str, Any]]:
        """Read each run from the server's database: name, state, config and metrics by step.

        Each metric is the list of all values received for the step.
        """
        database = sqlite3.connect(self._folder / "openwandb.db")
        found = {}
        for run, name, state, config in database.execute(
            "select run_id, display_name, state, config_json from runs"
        ):
            steps: dict[int, dict[str, list[float]]] = {}
            rows = database.execute("select step, key, value from metrics where run_id = ?", [run])
            for step, key, value in rows:
                steps.setdefault(step, {}).setdefault(key, []).append(value)
            values = {
                key: node["value"] for key, node in json.loads(config).items() if "value" in node
            }
            found[run] = {"name": name, "state": state, "config": values, "steps": steps}
        database.close()
        return found

    def shown(self, run: str) -> tuple[dict[str, list[dict[str, Any]]], list[int]]:
        """Return the tables of a sweep's summary, as rows by name, and its images' widths."""
        deadline = time.monotonic() + 60
        while len(files := self._media(run)) < 4:  # stored after the upload is answered
            assert time.monotonic() < deadline, files
            time.sleep(0.1)
        tables, widths = {}, []
        for name, path in files:
            if name.endswith(".table.json"):
                table = json.loads(Path(path).read_text())
                rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
                tables[Path(name).name.partition("_")[0]] = rows
            elif name.endswith(".png"):
                with Image.open(path) as picture:
                    widths.append(picture.width)
        return tables, widths

    def _media(self, run: str) -> list[tuple[str, str]]:
        database = sqlite3.connect(self._folder / "openwandb.db")
        query = "select name, path from files where run_id = ? and name like 'media/%'"
        files = database.execute(query, [run]).fetchall()
        database.close()
        return files

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                upstream = http.client.HTTPConnection("127.0.0.1", server._port, timeout=60)
                try:
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    answer = upstream.getresponse()
                    content = answer.read()
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    upstream.close()
                if body.startswith(b"{"):
                    server._note(self.path, json.loads(body))
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in (
                        "transfer-encoding",
                        "content-length",
                        "connection",
                        "date",
                        "server",
                    ):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _note(self, path: str, sent: dict[str, Any]) -> None:
        variables = sent.get("variables") or {}
        if variables.get("groupName"):
            self.groups[variables["name"]] = variables["groupName"]
        if variables.get("jobType"):
            self.job_types[variables["name"]] = variables["jobType"]
        if path.endswith("/file_stream") and sent.get("complete"):
            self.exit_codes[path.split("/")[-2]] = sent["exitcode"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The openwandb command, installed once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "openwandb"
    with FileLock(f"{folder}.lock"):
        if not (folder / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
            pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
            subprocess.run([*pip, "install", "--quiet", "openwandb==0.5.25"], check=True)
            (folder / "installed").touch()
    return folder / "bin" / "openwandb"


@pytest.fixture
def server(program: Path, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(program, tmp_path / "server")
    server.start()
    yield server
    server.close()


def start(server: Server, *arguments: str, cwd: Path) -> forks.Process:
    return forks.train(
        *arguments,
        *QUICK,
        cwd=cwd,
        WANDB_BASE_URL=server.url,
        WANDB_API_KEY=KEY,
        TVF_STORE=str(cwd / "store"),
        PYTHONPATH=IMPORTABLE,
    )


def sync(server: Server, output: str, cwd: Path) -> None:
    """Run the command that the end of `output` suggests."""
    found = re.search(r"(wandb sync .*)", output)
    assert found, output
    done = subprocess.run(
        f"{sys.executable} -m {found[1]}",
        shell=True,
        cwd=cwd,
        env=os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def recorded(job: Path) -> tuple[str, dict[str, Any]]:
    """Return the id of a job's run and, from its files, what the server should have."""
    status = json.loads((job / "status.json").read_text())
    steps = {}
    for row in map(json.loads, (job / "metrics.jsonl").read_text().splitlines()):
        steps[row["epoch"]] = {key: [value] for key, value in row.items() if value is not None}
    config = json.loads((job / "config.json").read_text())
    if status["state"] == "done":
        summary = json.loads((job / "summary.json").read_text())
        tested = {
            key: [summary[key]] for key in ("test_loss", "test_acc", "test_macro_f1", "test_auroc")
        }
        steps[config["epochs"] + 1] = tested | {"epoch": [summary["best_epoch"]]}
    return status["wandb_run_id"], {"name": status["name"], "config": config, "steps": steps}


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and len(path.read_text().splitlines()) >= lines):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_arrived(server: Server, jobs: list[Path], once: bool = True) -> list[str]:
    """Check that the server's database matches the record of `jobs`.

    Without `once`, a step may have arrived twice with equal values. Returns the ids of the runs
    that compare a sweep's jobs.
    """
    everything = server.runs()
    summaries = [run for run, held in everything.items() if held["name"] == "sweep-summary"]
    runs = {run: held for run, held in everything.items() if run not in summaries}
    expected = dict(map(recorded, jobs))
    assert runs.keys() == expected.keys()
    for run, job in expected.items():
        got = runs[run]
        if not once:  # openwandb appends lines that replace earlier ones
            got["steps"] = {
                number: {key: list(set(values)) for key, values in step.items()}
                for number, step in got["steps"].items()
            }
        assert (got["name"], got["config"]["config"], got["steps"]) == (
            job["name"],
            job["config"],
            job["steps"],
        )
        assert got["config"]["pct_unfreeze"] == job["config"]["model"]["pct_unfreeze"]
        assert got["config"]["seed"] == job["config"]["seed"]
        assert got["state"] == "finished"  # openwandb's state for every run that has ended
    return summaries


def test_a_sweep_arrives_completely_and_its_failed_jobs_as_failed(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "breaking.py").write_text(
        """
from helpers import small_backbone
def make(num_classes, pct):
    backbone = small_backbone(num_classes)
    if pct == 0.25:
        def end(module, inputs):
            if module.training and len(inputs[0]) > 2:  # two images check the network
                raise RuntimeError("it broke")
        backbone.module.register_forward_pre_hook(end)
    return backbone
"""
    )
    process = start(
        server,
        "-m",
        "model.pct_unfreeze=0,0.25",
        "seed=1,2",
        "epochs=2",
        "hydra.sweep.dir=sweep",
        BASIC,
        "backbone._target_=breaking.make",
        "+backbone.pct=${model.pct_unfreeze}",
        cwd=tmp_path,
    )
    output, _ = process.communicate()
    assert process.returncode == 1, output
    jobs = [path.parent for path in sorted(tmp_path.glob("sweep/*/status.json"))]
    assert len(jobs) == 4
    for job in jobs:
        if "0.25" in job.name:
            (job / "metrics.jsonl").touch()
    (summary,) = assert_arrived(server, jobs)
    runs = {recorded(job)[0]: job for job in jobs}
    assert server.groups == dict.fromkeys([*runs, summary], "sweep")
    assert server.exit_codes == {run: int("0.25" in job.name) for run, job in runs.items()} | {
        summary: 0
    }
    assert server.job_types == {summary: "sweep-summary"}
    tables, _ = server.shown(summary)
    assert [row["state"] for row in tables["jobs"]] == ["done", "done", "failed", "failed"]


def test_a_server_that_is_killed_and_restarted_misses_nothing(
    server: Server, tmp_path: Path
) -> None:
    process = start(
        server, "model.pct_unfreeze=1.0", "epochs=16", "hydra.run.dir=job", cwd=tmp_path
    )
    wait_for(tmp_path / "job" / "metrics.jsonl", 3)
    server.kill()
    wait_for(tmp_path / "job" / "metrics.jsonl", 8)
    server.start()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_arrived(server, [tmp_path / "job"])


def test_a_server_that_stays_down_costs_its_timeout_and_no_data(
    server: Server, tmp_path: Path
) -> None:
    process = start(
        server,
        "model.pct_unfreeze=1.0",
        "epochs=10",
        "hydra.run.dir=job",
        "tracker.timeout=5",
        cwd=tmp_path,
    )
    wait_for(tmp_path / "job" / "metrics.jsonl", 3)
    server.kill()
    wait_for(tmp_path / "job" / "summary.json", 1)
    trained = time.monotonic()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert time.monotonic() - trained < 5 + 5  # plus the time that a process takes to end
    assert json.loads((tmp_path / "job" / "status.json").read_text())["wandb_mode"] == "unsynced"
    server.start()
    sync(server, output, tmp_path)
    assert_arrived(server, [tmp_path / "job"], once=False)


def test_an_offline_sweep_arrives_when_synced(server: Server, tmp_path: Path) -> None:
    process = start(
        server,
        "-m",
        "model.pct_unfreeze=0,0.5",
        "seed=1,2",
        "epochs=2",
        "hydra.sweep.dir=sweep",
        BASIC,
        SMALL,
        "tracker.mode=offline",
        cwd=tmp_path,
    )
    output, _ = process.communicate()
    assert process.returncode == 0 and server.runs() == {}, output
    sync(server, output, tmp_path)
    (summary,) = assert_arrived(
        server, [path.parent for path in tmp_path.glob("sweep/*/status.json")]
    )
    tables, widths = server.shown(summary)
    (comparison,) = report_data([], compare(read_sweep(tmp_path / "sweep")))["comparisons"]
    assert server.runs()[summary]["config"]["recommendations"] == [comparison["recommendation"]]
    for name in ("configurations", "differences"):
        assert [row | {"data": ""} for row in tables[name]] == tables[name]
        for row, expected in zip(tables[name], comparison[name], strict=True):
            assert row.items() <= {**expected, "data": ""}.items()
    assert (
        len(tables["configurations"]) == 2
        and len(tables["differences"]) == 1
        and len(tables["jobs"]) == 4
    )
    assert len(widths) == 1 and widths[0] > 1500


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_job_that_is_killed_and_resumed_is_one_run(
    server: Server, tmp_path: Path, mode: str
) -> None:
    arguments = ("model.pct_unfreeze=1.0", "epochs=12", "hydra.run.dir=job", f"tracker.mode={mode}")
    process = start(server, *arguments, cwd=tmp_path)
    wait_for(tmp_path / "job" / "metrics.jsonl", 3)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=60)  # W&B's service process may still be sending
    process = start(server, *arguments, cwd=tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0 and "resumes after epoch" in output, output
    if mode == "offline":
        sync(server, output, tmp_path)
    assert_arrived(server, [tmp_path / "job"], once=mode == "online")
