"""Where tests put mirrors: in a folder, and in a bucket of a server on loopback if there is one.

The packages for the latter, s3fs and moto, do not fit into the tests' own environment: TVF_TEST_S3
names a folder with them, made by `pip install --target FOLDER s3fs 'moto[server]'`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = "TVF_TEST_S3"
MISSING = f"{PACKAGES} names no folder with s3fs and moto"
BUCKET = "bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SERVER = f"""
import logging, sys
sys.path.insert(0, {os.environ.get(PACKAGES, "")!r})
import boto3
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%d" % server.get_host_and_port()
boto3.client("s3", endpoint_url=url).create_bucket(Bucket={BUCKET!r})
print(url, flush=True)
sys.stdin.read()
"""
# What lets the agent of a command find the packages. A minute passes in `expiry` seconds.
AGENT = """
import sys
import tvf.owners, tvf.mirror.client
from tvf.mirror import timing
name, packages, expiry = sys.argv.pop(1), {packages!r}, {expiry}
machine = f'''
import sys
import tvf.owners
sys.path.insert(0, {{packages!r}}) if {{packages!r}} else None
tvf.owners._machine = lambda: {{name!r}}.rjust(16, "0")
tvf.owners.socket.gethostname = lambda: {{name!r}}
'''
exec(machine)
sys.path.remove(packages) if packages else None
timing.HEARTBEAT, timing.EXPIRY, timing.INTERVAL = expiry / 6, expiry, 0.2
tvf.mirror.client.ENTRY = machine + tvf.mirror.client.ENTRY
from tvf.cli import main
main()
"""


def tvf_on_machine(expiry: float) -> str:
    """Code that runs `tvf ARGUMENTS` as if on the machine that its first argument names."""
    return AGENT.format(packages=os.environ.get(PACKAGES, ""), expiry=expiry)


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server on loopback; yields the environment of commands that are to find it."""
    packages, pipe = os.environ[PACKAGES], subprocess.PIPE
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment | KEYS, cwd=packages
    ) as server:
        assert server.stdin and server.stdout
        try:
            lines = iter(server.stdout.readline, "")
            url = next(line for line in lines if line.startswith("http")).strip()
            yield KEYS | {"AWS_ENDPOINT_URL": url}
        finally:
            server.stdin.close()
