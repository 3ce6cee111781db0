"""Jobs of several processes: ranks compute what one process would, and none is left behind."""

import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import batch_norm

from helpers import ROOT, forks
from helpers.devices import fabric_on
from tvf.distributed import collectives
from tvf.distributed.collectives import gather, global_batchnorm, reduce_gradients, share_of
from tvf.distributed.ranks import start_ranks

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux forks and signals")
SETUP = f"""
import os, signal, sys, threading, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import psutil, torch
from helpers import rank_jobs
from tvf.distributed import ranks
from tvf.distributed.ranks import start_ranks
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
out = sys.argv[1]
"""


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_divide_a_batch_evenly(count: int, world: int) -> None:
    shares = [share_of(np.arange(count), rank, world) for rank in range(world)]
    assert np.concatenate(shares).tolist() == list(range(count))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_one_rank_changes_nothing() -> None:
    fabric = fabric_on("cpu")
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = gradient = torch.ones(2)
    reduce_gradients(fabric, [parameter])
    assert parameter.grad is gradient
    assert gather(fabric, gradient) is gradient
    with global_batchnorm(fabric):
        normalised = batch_norm(torch.randn(2, 1), None, None, training=True)
        assert normalised.abs().allclose(torch.ones(2, 1), atol=0.1)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_of_one_rank_are_torchs(
    shape: tuple[int, ...], affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, gradients, running statistics and memory format; second derivatives raise."""
    monkeypatch.setattr(collectives, "_gather_equal", lambda tensor: tensor[None])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    inputs = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    found = []
    for context in (
        torch.enable_grad(),
        global_batchnorm(cast(Any, SimpleNamespace(world_size=2))),
    ):
        kind: Any = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
        layer, leaf = kind(3, affine=affine).double(), inputs.clone().requires_grad_()
        with context:
            result = layer(leaf)
        result.square().mul(torch.arange(result.numel()).view(shape)).sum().backward()
        assert result.stride() == leaf.stride()
        gradients = [leaf.grad, *(parameter.grad for parameter in layer.parameters())]
        found.append([result, *gradients, *layer.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@linux
@pytest.mark.slow
def test_ranks_compute_what_one_process_computes(tmp_path: Path) -> None:
    process = forks.python(
        SETUP
        + """
before = {**os.environ}
with start_ranks(2, "helpers.rank_jobs:compare_all", {"out": out}):
    rank_jobs.compare_all(out)
assert os.environ == before
assert not torch.distributed.is_initialized()
assert not psutil.Process().children()

try:  # another job of the same process
    with start_ranks(2, "helpers.rank_jobs:communicate", {"out": out + "/second"}):
        rank_jobs.communicate(out + "/second")
except RuntimeError as error:
    print("raised", error)
assert os.environ == before
assert not torch.distributed.is_initialized()
assert not psutil.Process().children()

try:
    with start_ranks(3, "nobody:calls", {}):
        print("never")
except RuntimeError as error:
    print("raised", error)
try:
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with start_ranks(2, "helpers.rank_jobs:sleep", {"out": out}):
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
assert not psutil.Process().children()
""",
        str(tmp_path),
        cwd=tmp_path,
    )
    (tmp_path / "second").mkdir()
    printed = process.communicate(timeout=300)[0]
    assert process.wait() == 0, printed
    lines = [line for line in printed.splitlines() if line.startswith(("raised", "int"))]
    assert len(lines) >= 3, printed
    *noise, killed, failed, interrupted = lines
    assert not noise
    assert (
        killed
        == "raised rank 1 of the job was killed by SIGKILL, as the system does when memory runs out"
    )
    assert failed in {f"raised rank {rank} of the job exited with code 1" for rank in (1, 2)}
    assert "ModuleNotFoundError: No module named 'nobody'" in printed
    assert interrupted == "interrupted"
    assert "Initializing" not in printed
    assert "Warning" not in printed

    of_ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert of_ranks[0] == of_ranks[1]
    for case, distances in of_ranks[0].items():
        # The gradients of torch's own BatchNorm are more than 1e-5 from float64 here; ours are not.
        within = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2}[case.split()[2]]
        within = 1e-10 if case.startswith("lite0 1") else within  # 4 values per channel, 50 layers
        for kind, distance in distances.items():
            assert distance < (1e-5 if within > 1e-2 and kind == "buffers" else within), (
                case,
                kind,
            )

    results = [torch.load(tmp_path / "second" / f"rank{rank}.pt") for rank in (0, 1)]
    for result in results:
        assert result["gathered"] == [[0, 0, 0, 1], [1, 1], [0, 0], []]
        assert result["integers"] == [0, 0, 1]
        assert (result["sum"], result["broadcast"]) == (3, {"from": 0})
        assert result["wrapped"] == "ModuleList"
        assert result["gradients"] == [2, 1, 2]
        assert result["unused"] is None
        assert result["norm"] == pytest.approx(6)
        assert torch.equal(*result["weights"])
        assert result["single"].startswith("Expected more than 1 value per channel")


@linux
@pytest.mark.slow
def test_no_rank_outlives_rank_0_and_rank_0_does_not_wait_for_a_dead_one(tmp_path: Path) -> None:
    """In one job rank 0 is killed, in another rank 1 while rank 0 sleeps."""
    code = f"""{SETUP}
ranks.PATIENCE = 0.5
with start_ranks(2, "helpers.rank_jobs:sleep", {{"out": out}}):
    time.sleep(120)
"""
    folders = [tmp_path / name for name in ("killed", "unaware")]
    for folder in folders:
        folder.mkdir()
    killed, unaware = (forks.python(code, str(folder), cwd=folder) for folder in folders)
    first, second = (_rank(folder) for folder in folders)

    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)  # returns when the last process that writes there has ended
    assert not psutil.wait_procs([first], timeout=60)[1]

    second.send_signal(signal.SIGTERM)  # is for rank 0 alone
    time.sleep(0.2)
    assert second.is_running() and unaware.poll() is None
    second.send_signal(signal.SIGKILL)
    printed = unaware.communicate(timeout=60)[0]
    assert unaware.wait() == 1
    assert "rank 1 of the job was killed by SIGKILL" in printed and "Ending the job." in printed


def _rank(folder: Path) -> psutil.Process:
    """The rank that runs `rank_jobs.sleep`, once it has started to."""
    deadline = time.monotonic() + 120
    while not (folder / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(int((folder / "pid").read_text()))


def test_a_single_rank_starts_no_process() -> None:
    before = psutil.Process().children()
    with start_ranks(1, "nobody:calls", {}):
        assert psutil.Process().children() == before
