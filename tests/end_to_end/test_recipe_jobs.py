"""Jobs of several phases from the shell: neither cache nor kill changes them; what they share."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import IMPORTABLE, SMALL, Outcome, forks
from helpers.jobs import epochs_done, metrics, summary

Shell = Callable[..., Outcome]
QUICK = (
    "epochs=4",
    "data.limit=64",
    "data.image_size=32",
    "data.batch_size=16",
    "tracker=none",
    "threads=1",
)
BACK = "recipe.phases=[{share: 0.5}, {share: 0.5, fraction: 0}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [["recipe=lp_ft"], ["recipe=phases", BACK], ["mix=mixup"]], ids=lambda r: r[-1][:20]
)
def test_with_and_without_a_store_the_epochs_of_all_phases_are_equal_bit_for_bit(
    shell: Shell, tmp_path: Path, recipe: list[str]
) -> None:
    """Even if a phase freezes what an earlier one trained: the cache is keyed by weight content."""
    for name, mode in (("off", "off"), ("cold", "on"), ("warm", "on")):
        outcome = shell(
            *QUICK,
            *recipe,
            "model.pct_unfreeze=0.25",
            f"store.mode={mode}",
            f"hydra.run.dir={name}",
        )
        assert outcome.code == 0, outcome.out + outcome.err
        if recipe == ["mix=mixup"] and mode == "on":
            assert (
                "store: train not cached: mixup/cutmix images change every epoch; val, test cached"
                in outcome.out
            )
    off, warm = metrics(tmp_path / "off"), summary(tmp_path / "warm")
    assert {row["phase"] for row in off} == {*range(1, 1 + max(int(row["phase"]) for row in off))}
    for name in ("cold", "warm"):
        assert metrics(tmp_path / name) == off, name
        assert summary(tmp_path / name)["test_loss"] == summary(tmp_path / "off")["test_loss"]
    assert warm["prefix_images"] == 0


@pytest.mark.slow
def test_jobs_with_the_same_head_phase_train_it_once(tmp_path: Path) -> None:
    """Two fractions at once; tests/job/test_head_phase.py covers which jobs may share."""
    grid = ("model.pct_unfreeze=0.25,0.5", "recipe=lp_ft", "average=ema")
    common = ("-m", *QUICK, *grid, SMALL)
    surroundings: dict[str, str] = {"TVF_STORE": str(tmp_path / "store"), "PYTHONPATH": IMPORTABLE}
    outputs = {}
    for mode, launcher in (("on", "local"), ("off", "basic")):
        more = (
            f"store.mode={mode}",
            f"hydra/launcher={launcher}",
            f"hydra.sweep.dir={tmp_path / mode}",
        )
        process = forks.train(*common, *more, cwd=tmp_path, terminal=None, **surroundings)
        outputs[mode], _ = process.communicate()
        assert process.returncode == 0, outputs[mode]
    shared = "takes epochs 1 to 2 from another job."
    assert outputs["on"].count(shared) == 1 and outputs["off"].count(shared) == 0
    on, off = (
        sorted(str(metrics(path.parent)) for path in (tmp_path / mode).glob("*/metrics.jsonl"))
        for mode in outputs
    )
    assert on == off and len({*on}) == 2
    for path in (tmp_path / "on").glob("*/summary.json"):
        # A shared head phase counts in both jobs, waiting for it in neither.
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        of_epochs = sum(json.loads(line)["epoch_seconds"] for line in lines)
        assert of_epochs <= summary(path.parent)["train_seconds"] < of_epochs + 30


@pytest.mark.slow
def test_a_job_killed_in_every_phase_ends_like_one_that_was_not(tmp_path: Path) -> None:
    arguments = (
        *QUICK,
        "recipe=lp_ft",
        "average=ema",
        "model.pct_unfreeze=0.25",
        "scheduler=warmup_cosine",
    )

    def start(name: str) -> forks.Process:
        # A store of its own, without the head phase of the other job.
        store = str(tmp_path / f"{name}-store")
        return forks.train(
            *arguments, f"hydra.run.dir={tmp_path / name}", cwd=tmp_path, TVF_STORE=store
        )

    whole = start("whole")
    assert whole.communicate() and whole.returncode == 0
    for epochs in (1, 3):
        killed = start("killed")
        while killed.poll() is None and epochs_done(tmp_path / "killed") < epochs:
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    again = start("killed")
    output, _ = again.communicate()
    assert again.returncode == 0 and "resumes after epoch" in output
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "killed")["test_loss"] == summary(tmp_path / "whole")["test_loss"]


@pytest.mark.slow
def test_lp_ft_without_head_epochs_is_direct_and_the_log_says_what_each_phase_trains(
    shell: Shell, tmp_path: Path
) -> None:
    common = (*QUICK, "model.pct_unfreeze=0.25")
    for name, more in (("direct", ()), ("lp_ft", ("recipe=lp_ft", "recipe.head_epochs=0"))):
        assert shell(*common, *more, f"hydra.run.dir={name}").code == 0
    assert metrics(tmp_path / "lp_ft") == metrics(tmp_path / "direct")
    outcome = shell(*common, "recipe=gradual", "early_stopping.patience=1", "hydra.run.dir=gradual")
    assert "[finetune pct=0.25 gradual] phase 1/3: at most 1 epoch of head\n" in outcome.out
    assert (
        "[finetune pct=0.25 gradual] phase 3/3: at most 2 epochs of head, conv_head+bn2, blocks.6\n"
        in outcome.out
    )
    phases = [row["phase"] for row in metrics(tmp_path / "gradual")]
    assert phases[:3] == [1, 2, 3] and summary(tmp_path / "gradual")["best_phase"] in phases


WRONG = [
    (
        ["recipe=lp_ft", "recipe.head_epochs=4"],
        "recipe.head_epochs=4 must be below epochs=4",
    ),
    (["recipe=phases", "recipe.phases=[{epochs: 3}]"], "recipe.phases have 3 epochs"),
    (["recipe=gradual", "recipe.epochs_each=4"], "recipe.epochs_each=4 must be below epochs=4"),
    (["early_stopping.patience=0"], "early_stopping.patience=0 must be"),
    (["mix=mixup", "mix.alpha=-0.2"], "mix.alpha=-0.2 must be"),
    (["loss.label_smoothing=1"], "loss.label_smoothing=1 must be"),
    (["average=ema", "average.decay=1"], "average.decay=1 must be"),
    (["scheduler=warmup_cosine", "scheduler.warmup=1"], "scheduler.warmup=1 must be"),
    (["data.class_weights=equal"], "data.class_weights=equal must be one of balanced"),
    (["optimizer.layer_decay=2"], "optimizer.layer_decay=2 must be"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_wrong_value_stops_a_sweep_before_any_job(
    shell: Shell, tmp_path: Path, wrong: list[str], message: str
) -> None:
    outcome = shell("-m", *QUICK, "model.pct_unfreeze=0.25,0.5", *wrong, "hydra.sweep.dir=sweep")
    assert (
        outcome.code == 1 and f"error: {message}" in outcome.err and "Traceback" not in outcome.err
    )
    assert not list(tmp_path.glob("sweep/*/status.json"))
