"""What hydra/launcher=ray asks of a cluster, and what it says before a cluster is asked."""

import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tvf.errors import InputError
from tvf.sweep import ray_cluster
from tvf.sweep.ray_options import RayOptions, needs_of
from tvf.sweep.ray_worker import look_around
from tvf.sweep.remote import read_options

CPUS = {"CPU": 4.0, "memory": 8e9}
GPUS = {"CPU": 8.0, "GPU": 2.0, "memory": 16e9}


def needs(nodes: list[dict[str, float]], fabric: dict[str, Any], **options: Any) -> dict[str, Any]:
    return needs_of({"fabric": fabric}, RayOptions(**options), nodes)


@pytest.mark.parametrize(
    "option",
    [
        {"num_cpus": 0},
        {"num_cpus": 1.5},
        {"num_gpus": -1},
        {"memory": "8G"},
        {"max_retries": True},
        {"store": "mine"},
        {"address": 6379},
        {"nodes": 3},
    ],
)
def test_options_that_break_a_rule_are_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(InputError, match=rf"^hydra\.launcher\.{name}"):
        read_options(RayOptions, option)


def test_a_job_needs_the_gpus_that_it_trains_on() -> None:
    auto = {"accelerator": "auto", "devices": 1}
    assert needs([CPUS], auto)["num_gpus"] == 0
    assert needs([CPUS, GPUS], auto)["num_gpus"] == 1
    assert needs([CPUS, GPUS], auto | {"accelerator": "cpu"})["num_gpus"] == 0
    assert needs([GPUS], auto | {"devices": [0, 1]})["num_gpus"] == 2
    assert needs([GPUS], auto | {"jobs_per_gpu": 2})["num_gpus"] == 0.5
    assert needs([GPUS], auto, num_gpus=0.25)["num_gpus"] == 0.25
    assert needs([GPUS], auto, num_gpus=0)["num_gpus"] == 0


@pytest.mark.parametrize("option", [{"num_cpus": 9}, {"num_gpus": 3}, {"memory": 2e10}])
def test_more_than_any_node_has_is_an_error(option: dict[str, float]) -> None:
    (name,) = option
    with pytest.raises(InputError, match=f"{name}=.*Nodes have: num_cpus=4, num_gpus=0, .*8, num"):
        needs([CPUS, GPUS], {}, **option)
    with pytest.raises(InputError):  # a node with both is needed
        needs([CPUS | {"CPU": 16.0}, GPUS], {}, num_cpus=9, num_gpus=1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'tvf\[ray\]'"):
        ray_cluster._connect("auto", "")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_is_no_ray_is_an_error_at_once(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 0.1)

    def serve(server: socket.socket) -> None:
        for _ in range(2):
            connection, _ = server.accept()
            connection.sendall(said)
            connections.append(connection)

    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        place = f"127.0.0.1:{server.getsockname()[1]}"
        for address in (place, f"ray://{place}"):
            with pytest.raises(InputError, match=f"address={address}: no Ray cluster answers"):
                ray_cluster._check_address(address)
        thread.join(10)
    for connection in connections:
        connection.close()


def test_ray_of_another_version_is_named_in_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the words of Ray 2.54's health check, asked about a cluster of 2.60."""
    said = "cluster has Ray version 2.60.0 but local Ray version is 2.54.0"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho 'RuntimeError: Ray version mismatch: {said}' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError, match=f"address=auto: Ray version mismatch: {said}. Install"):
        ray_cluster._check_address("auto")


def test_what_a_node_cannot_see_is_named(tmp_path: Path) -> None:
    from tvf import __version__

    probe = tmp_path / "probe"
    assert "sweep's folder" in str(look_around(probe, [], __version__))
    probe.touch()
    assert look_around(probe, [str(tmp_path)], __version__) is None
    assert "/no/folder" in str(look_around(probe, ["/no/folder"], __version__))
    assert "not 0.0.1" in str(look_around(probe, [], "0.0.1"))


@pytest.mark.parametrize(
    ("fabric", "nodes", "options", "message"),
    [
        ({"accelerator": "cuda"}, [CPUS], {}, "fabric.accelerator=cuda needs a GPU"),
        ({"accelerator": "gpu"}, [GPUS], {"num_gpus": 0}, "fabric.accelerator=gpu needs a GPU"),
        ({"accelerator": "cpu", "devices": 4}, [CPUS], {}, "fabric.devices=4 must be at most 1"),
        ({"devices": [0, 1]}, [GPUS], {"num_gpus": 1}, "fabric.devices=2 must be at most 1"),
        ({"devices": "auto"}, [CPUS], {}, "fabric.devices=auto must be"),
    ],
)
def test_devices_that_a_job_would_not_have_are_an_error(
    fabric: dict[str, Any], nodes: list[dict[str, float]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        needs(nodes, fabric, **options)
    assert needs([CPUS], {"accelerator": "cpu", "devices": 4}, num_cpus=4)["num_cpus"] == 4
