"""The process that keeps a sweep's mirror, started by the command that launches the sweep.

Jobs and that command talk to it through a socket, a line of JSON each way. Stores' libraries have
threads, with which jobs could not be forked, and an upload should not hold up a training step. A
job is claimed while its connection is open, so a job that is killed gives up its claim as well. The
process ends, after a last upload, when the launching command has ended and its jobs have.
"""

import json
import select
import shutil
import signal
import socketserver
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tvf.errors import InputError
from tvf.mirror import timing
from tvf.mirror.claims import Busy, Claim, Clock, MirroredJob, Taken
from tvf.mirror.snapshot import Changing
from tvf.mirror.stores import Store, Unreachable, open_store
from tvf.owners import is_temporary

AT_ONCE = 8  # jobs that are compared with the mirror
MANIFEST = "sweep.json"
NOT_SENT = (OSError, Unreachable, Changing)


class Agent:
    """The mirror of the sweep in `folder`, for all jobs of a command."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder, self._clock = store, folder, Clock(store)
        self._jobs: dict[str, MirroredJob] = {}
        self._locks = defaultdict[str, threading.Lock](threading.Lock)
        self._guard = threading.Lock()
        self._down = False
        self.ended = threading.Event()

    def claim(self, name: str, certain: bool, connection: "Connection") -> None:
        """Hold a job while its connection is open, and upload what it writes."""
        with self._alone(name) as job:
            try:
                self._settle(job, job.acquire(certain=certain))
            except Busy as busy:
                connection.say(_held_by("busy", busy.claim))
                return
            except Taken as taken:
                connection.say(_held_by("busy", taken.claim))
                return
            except NOT_SENT as error:
                self._is_down(error)
                job.abandon()  # or what could not be fetched would be overwritten
            connection.say({"state": "held"})
            try:
                while not connection.ends_within(timing.INTERVAL):
                    self._keep(job)
                self._keep(job)
                if job.held:
                    job.release()
            except Taken as taken:
                connection.say(_held_by("taken", taken.claim))
            except NOT_SENT as error:
                self._is_down(error)

    def _settle(self, job: MirroredJob, before: Claim | None, attempts: int = 3) -> None:
        """Let mirror and folder agree; a job whose files cannot be fetched trains from scratch."""
        for left in reversed(range(attempts)):
            try:
                job.settle(before)
                return
            except NOT_SENT:
                if not left:
                    raise
                time.sleep(1)

    def _keep(self, job: MirroredJob) -> None:
        """Upload what a job has written, and claim it if that could not be done before."""
        try:
            if not job.held and not self._claim_late(job):
                return
            job.push()
        except NOT_SENT as error:
            self._is_down(error)
        else:
            self._is_up()

    def _claim_late(self, job: MirroredJob) -> bool:
        """Claim a job that trains already, unless the mirror has other files of it."""
        before = job.latest()
        if job.is_held(before) or (before is not None and job.is_newer(before)):
            return False
        with suppress(Busy):
            job.acquire()
        return job.held

    def beat(self) -> None:
        """Show that the holder of the claims lives, until the agent ends."""
        while not self.ended.wait(timing.HEARTBEAT):
            for job in [*self._jobs.values()]:
                try:
                    job.beat()
                except (Taken, *NOT_SENT):
                    pass  # the job's own thread will meet them
                except Exception:  # of a library: the other jobs' claims go on
                    traceback.print_exc()

    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        """Fetch what is newer in the mirror and upload what is newer here, job by job.

        Returns the jobs that others train, with their claims' holders, and why others could not be
        compared.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(names, pool.map(self._compare_one, names), strict=True))
        return {
            "elsewhere": {name: owner for name, owner in found.items() if isinstance(owner, dict)},
            "failed": {name: reason for name, reason in found.items() if isinstance(reason, str)},
        }

    def _compare_one(self, name: str) -> dict[str, Any] | str | None:
        with self._alone(name) as job:
            try:
                latest = job.latest()
                if job.is_held(latest):
                    assert latest is not None
                    return asdict(latest.owner)
                if latest is not None and job.is_newer(latest):
                    job.pull(latest)
                elif (job.folder / "status.json").exists() and not job.agrees(latest):
                    job.settle(job.acquire())
                    job.release()
            except (Busy, Taken) as other:
                return asdict(other.claim.owner)
            except NOT_SENT as error:
                return str(error)
        return None

    def read_manifest(self) -> dict[str, Any] | None:
        """The sweep's manifest in the mirror; None if there is none. Raises Unreachable."""
        try:
            content = json.loads(self._store.read(MANIFEST))
        except FileNotFoundError:
            return None
        except ValueError:
            raise Unreachable(f"{MANIFEST} there is not a sweep's") from None
        return content if isinstance(content, dict) else {}

    def write_manifest(self, content: dict[str, Any], first: bool) -> bool:
        """Write the manifest; return whether that was done. If `first`, only where is none."""
        encoded = (json.dumps(content, indent=2) + "\n").encode()
        if first:
            return self._store.create(MANIFEST, encoded)
        self._store.write(MANIFEST, encoded)
        return True

    def send_reports(self) -> None:
        """Upload the files that lie in the sweep's folder itself. Raises Unreachable."""
        for path in self._folder.iterdir():
            hidden = path.name.startswith(".") or is_temporary(path.name)
            if path.is_file() and not hidden and path.name != MANIFEST:
                with open(path, "rb") as file:
                    self._store.upload(path.name, file)

    @contextmanager
    def _alone(self, name: str) -> Iterator[MirroredJob]:
        """A job, for one thread at a time."""
        with self._guard:
            lock = self._locks[name]
        with lock:
            job = MirroredJob(self._store, self._clock, name, self._folder / name)
            self._jobs[name] = job
            try:
                yield job
            finally:
                del self._jobs[name]

    def _is_down(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            print(f"mirror: {error}. Training continues; uploads are retried.", file=sys.stderr)

    def _is_up(self) -> None:
        if self._down:
            self._down = False
            print("mirror: reachable again.", file=sys.stderr)


class Connection(socketserver.StreamRequestHandler):
    """One job's, or the launching command's, line to the agent."""

    def handle(self) -> None:
        """Answer requests until the other side ends."""
        for line in self.rfile:
            request = json.loads(line)
            if "claim" in request:
                self._agent.claim(request["claim"], request["certain"], self)
                return
            self.say(self._answer(**request))

    def _answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        agent = self._agent
        actions: dict[str, Callable[..., Any]] = {
            "compare": agent.compare,
            "read_manifest": agent.read_manifest,
            "write_manifest": agent.write_manifest,
            "send_reports": agent.send_reports,
        }
        try:
            return {"answer": actions[do](**arguments)}
        except NOT_SENT as error:
            return {"error": str(error)}

    @property
    def _agent(self) -> Agent:
        assert isinstance(self.server, Server)
        return self.server.agent

    def say(self, message: dict[str, Any]) -> None:
        """Send a line; one that has ended does not hear it."""
        with suppress(OSError):
            self.wfile.write(json.dumps(message).encode() + b"\n")

    def ends_within(self, seconds: float) -> bool:
        """Wait so long, or until the other side has ended; return whether it has."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        return bool(readable)  # a job says nothing after its claim


class Server(socketserver.ThreadingUnixStreamServer):
    """Waits for its connections to end when it is closed."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, address: str, agent: Agent) -> None:
        super().__init__(address, Connection)
        self.agent = agent


def serve(url: str, folder: str, address: str) -> None:
    """Keep the mirror at `url` for the sweep in `folder`, until standard input ends.

    Says on standard output, in a line of JSON, that it listens at `address`, or what is wrong.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the command's end is what ends the agent
        signal.signal(number, signal.SIG_IGN)
    try:
        server = Server(address, Agent(open_store(url), Path(folder)))
    except (InputError, Unreachable) as error:
        print(json.dumps({"error": str(error), "input": isinstance(error, InputError)}), flush=True)
        return
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True),
        threading.Thread(target=server.agent.beat, daemon=True),
    ]
    for thread in threads:
        thread.start()
    print(json.dumps({}), flush=True)
    sys.stdin.read()
    server.shutdown()
    server.server_close()  # waits for the connections, which upload what jobs have left
    server.agent.ended.set()


def _held_by(state: str, claim: Claim) -> dict[str, Any]:
    return {"state": state, "owner": asdict(claim.owner), "token": claim.token}


def main() -> None:
    """Run `serve` with the arguments of this process, which `tvf.mirror.Mirror` gives."""
    url, folder, address, *seconds = sys.argv[1:]
    timing.HEARTBEAT, timing.EXPIRY, timing.INTERVAL = map(float, seconds)
    try:
        serve(url, folder, address)
    finally:
        shutil.rmtree(Path(address).parent, ignore_errors=True)
