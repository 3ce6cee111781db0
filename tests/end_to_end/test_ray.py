"""Sweeps on a real Ray cluster of this machine, and what happens to their jobs there."""

import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from helpers import IMPORTABLE, forks
from helpers.jobs import metrics, records, statuses
from helpers.ray_cluster import HEAD, PORT, RayCluster, missing_for_a_cluster, ray_cluster
from helpers.slurm import wait_for
from tvf.records import read_race, read_trials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
]

QUICK = (
    "data.limit=40",
    "data.image_size=32",
    "data.batch_size=8",
    "tracker=none",
    "backbone._target_=user_backbone.make",
)
ON_RAY = (
    "hydra/launcher=ray",
    f"hydra.launcher.address={HEAD}:{PORT}",
    "hydra.launcher.num_gpus=0",
)
# In --config-dir. It trains slowly until a file says otherwise, so that there is time to disturb
# its job, and says where it is; one fraction fails until another file is there.
BACKBONE = """
import os, time
from helpers import small_backbone

def make(num_classes, pct=None):
    print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"))
    backbone = small_backbone(num_classes)

    def linger(module, inputs):
        if not module.training or len(inputs[0]) <= 2:
            return
        if pct == 1.0 and not os.path.exists("mended"):
            raise RuntimeError("it broke")
        if not os.path.exists("hurry"):
            time.sleep(0.5)

    backbone.module.register_forward_pre_hook(linger)
    return backbone
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    if missing := missing_for_a_cluster():
        pytest.skip(missing)
    with ray_cluster() as started:
        yield started


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """The folder in which commands are started, with a folder of the user's own code."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "user_backbone.py").write_text(BACKBONE)
    return tmp_path


def launch(cluster: RayCluster, start: Path, *arguments: str) -> forks.Process:
    common = ("train", "-m", "--config-dir", "own", *QUICK)
    return cluster.tvf(*common, *arguments, cwd=start)


def ended(process: forks.Process, code: int = 0) -> str:
    """What a command printed that ends with `code`."""
    output, _ = process.communicate(timeout=150)
    assert process.returncode == code, output
    return output


def epochs(sweep: Path, fraction: float) -> int:
    """How many epochs of this fraction are recorded."""
    return sum(len(metrics(path.parent)) for path in sweep.glob(f"*-{fraction}-*/metrics.jsonl"))


def jobs_on(cluster: RayCluster, node: int) -> list[psutil.Process]:
    """The processes that train on a node, and those that fork them."""
    return [each for each in cluster.processes(node) if "job_server" in " ".join(each.cmdline())]


def test_ctrl_c_interrupts_jobs_of_which_one_has_failed(cluster: RayCluster, start: Path) -> None:
    fractions = "model.pct_unfreeze=1.0,0.75,0.5,0.25"
    own = "backbone.pct=${model.pct_unfreeze}"
    process = launch(cluster, start, fractions, f"+{own}", "epochs=9", *ON_RAY, "hydra.sweep.dir=s")
    sweep = start / "s"

    def training() -> set[float]:
        found = statuses(sweep)
        return {each for each in found if found[each]["state"] == "running" and epochs(sweep, each)}

    def two_train_and_one_has_failed() -> bool:
        return statuses(sweep).get(1.0, {}).get("state") == "failed" and len(training()) == 2

    wait_for(two_train_and_one_has_failed)
    trained = training()  # Ray chooses the order of the jobs
    assert not jobs_on(cluster, 0)
    process.send_signal(signal.SIGINT)
    output = ended(process, code=1)
    found = {fraction: status["error"] for fraction, status in statuses(sweep).items()}
    assert found.pop(1.0) == "RuntimeError: it broke"
    assert {each for each in found if found[each] == "interrupted"} == trained, output
    assert all(error in (None, "interrupted") for error in found.values())
    assert f"fine-tuning-1.0: failed on {cluster.address(1)}" in output or (
        f"fine-tuning-1.0: failed on {cluster.address(2)}" in output
    )
    wait_for(lambda: not jobs_on(cluster, 1) and not jobs_on(cluster, 2), 10)


def test_sigterm_to_the_command_lets_its_job_keep_a_checkpoint(
    cluster: RayCluster, start: Path
) -> None:
    sweep = start / "s"
    options = ("model.pct_unfreeze=0.5", "epochs=3", *ON_RAY, "hydra.sweep.dir=s")
    process = launch(cluster, start, *options)
    wait_for(lambda: epochs(sweep, 0.5))
    time.sleep(1)  # into the next epoch, which takes longer
    process.send_signal(signal.SIGTERM)
    ended(process, code=1)
    (log,) = sweep.glob("*/job.log")
    assert "its checkpoint is kept" in log.read_text()
    assert statuses(sweep)[0.5]["error"] == "interrupted"
    assert not [*sweep.glob(".terminated-*")]
    wait_for(lambda: not jobs_on(cluster, 1) and not jobs_on(cluster, 2), 10)


def test_jobs_have_the_gpus_that_ray_gives_them(cluster: RayCluster, start: Path) -> None:
    """Where a node has GPUs, each job is given one; all the same it is on one node."""
    (start / "hurry").touch()
    given = ("hydra.launcher.num_gpus=null", "model.pct_unfreeze=0.5", "epochs=1")
    common = (*ON_RAY[:2], *given, "hydra.sweep.dir=s")
    output = ended(launch(cluster, start, *common, "fabric.devices=2"), code=1)
    assert "no node of the Ray cluster has what a job needs (num_cpus=1, num_gpus=2)" in output
    output = ended(launch(cluster, start, *common))
    assert f"fine-tuning-0.5: done on {cluster.address(2)}" in output
    (log,) = (start / "s").glob("*/job.log")
    assert "GPU 0" in log.read_text()
    again = ended(launch(cluster, start, *common))
    assert "done on" not in again and statuses(start / "s")[0.5]["attempt"] == 1


def test_a_folder_that_a_node_cannot_see_is_an_error(cluster: RayCluster, start: Path) -> None:
    sweep = cluster.hidden / "s"
    common = ("model.pct_unfreeze=0.5", "epochs=1", f"hydra.sweep.dir={sweep}")
    output = ended(launch(cluster, start, *ON_RAY, *common), code=1)
    node = cluster.address(2)
    assert f"the node {node} cannot run the jobs: the sweep's folder {sweep} cannot be seen" in (
        output
    )
    assert not statuses(sweep)


def test_where_no_ray_answers(cluster: RayCluster, start: Path) -> None:
    address = f"hydra.launcher.address={HEAD}:{PORT + 1}"
    output = ended(launch(cluster, start, "hydra/launcher=ray", address, "seed=1,2"), code=1)
    assert f"error: {address}: no Ray cluster answers there" in output and "refused" in output


def test_a_race_on_ray_is_the_race_of_one_machine(cluster: RayCluster, start: Path) -> None:
    """The same jobs, and the same decisions."""
    (start / "hurry").touch()
    race = ("hydra/sweeper=race", "model.pct_unfreeze=0,0.5", "data.folds=2", "data.fold=0,1")
    output = ended(launch(cluster, start, *race, *ON_RAY, "hydra.sweep.dir=there"))
    assert "done on" in output and "The race is over" in output
    ended(launch(cluster, start, *race, "hydra/launcher=basic", "hydra.sweep.dir=here"))
    assert records(start / "there") == records(start / "here")
    assert read_race(start / "there") == read_race(start / "here") is not None


def test_jobs_of_a_node_that_dies_end_like_those_of_one_machine(
    cluster: RayCluster, start: Path
) -> None:
    """The last test, since a node is missing after it."""
    common = ("model.pct_unfreeze=0.5,0.25", "epochs=6")
    sweep = start / "there"
    process = launch(cluster, start, *common, *ON_RAY, "hydra.sweep.dir=there")
    wait_for(lambda: epochs(sweep, 0.5) > 1 and epochs(sweep, 0.25) > 1)  # one is in a checkpoint
    cluster.kill_node(1)
    (start / "hurry").touch()
    ended(process)
    ended(launch(cluster, start, *common, "hydra/launcher=basic", "hydra.sweep.dir=here"))
    assert records(sweep) == records(start / "here") and len(records(sweep)) == 2
    assert {status["attempt"] for status in statuses(sweep).values()} == {1, 2}
    resumed = [path for path in sweep.glob("*/job.log") if "resumes " in path.read_text()]
    assert len(resumed) == 1


def test_a_search_on_a_ray_of_this_machine(start: Path) -> None:
    """Ray is started once for all batches, listens on loopback alone, and ends with the sweep."""
    (start / "hurry").touch()
    process = forks.tvf(
        *("train", "-m", "--config-dir", "own", *QUICK, "epochs=1", "hydra.sweep.dir=s"),
        *("model.pct_unfreeze=0.25,0.5", "optimizer.lr=interval(1e-4,1e-2)"),
        *("hydra/launcher=ray", "hydra/sweeper=optuna"),
        *("hydra.sweeper.n_trials=4", "hydra.sweeper.batch_size=2"),
        cwd=start,
        PYTHONPATH=IMPORTABLE,
    )
    ours: list[psutil.Process] = []
    open_to: set[str] = set()

    def is_training() -> bool:
        ours[:] = psutil.Process(process.pid).children(recursive=True)
        return bool([*(start / "s").glob("*/status.json")]) or process.poll() is not None

    wait_for(is_training)
    pids = {each.pid for each in ours}
    for each in psutil.net_connections("tcp"):
        if each.pid in pids and each.status == psutil.CONN_LISTEN:
            open_to.add(each.laddr.ip)  # type: ignore[union-attr]
    output = ended(process)
    assert open_to and open_to <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert output.count("Starting Ray") == 1
    assert len([*(start / "s").glob("*/summary.json")]) == 4
    assert [trial["state"] for trial in read_trials(start / "s")] == ["complete"] * 4
    wait_for(lambda: not any(each.is_running() for each in ours), 20)
