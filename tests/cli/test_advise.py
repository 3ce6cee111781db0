"""`tvf advise` as a command."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helpers.configs import plain_config
from helpers.folders import write_images
from tvf.cli.advise import _command
from tvf.cli.main import tvf as command


def _run(*words: str) -> Result:
    return CliRunner().invoke(command, ["advise", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m"], "-m must be left out"),
        (["model.pct_unfreeze=0.5"], "model.pct_unfreeze=0.5 must be left out"),
        (["seed=1,2"], "seed=1,2 must have a single value"),
        (["model=transfer"], "model=transfer trains none of the groups"),
        (["epochs=0"], "epochs"),
    ],
)
def test_what_cannot_be_advised_on_is_a_message(words: list[str], said: str) -> None:
    done = _run(*words)
    assert done.exit_code == 1 and said in str(done.exception) + done.output
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize(
    ("name", "word", "near"),
    [
        ("advise", "--jsn", "--json"),
        ("advise", "--config-dri=x", "--config-dir"),
        ("wandb-sweep", "--hlp", "--help"),
    ],
)
def test_a_typo_of_an_option_is_named_with_what_comes_close(
    name: str, word: str, near: str
) -> None:
    done = CliRunner().invoke(command, [name, word])
    assert done.exit_code == 2 and "No such option" in done.output
    assert word.partition("=")[0] in done.output and near in done.output


@pytest.mark.slow
def test_advice_ends_with_the_command_that_settles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_images(tmp_path / "my photos")
    overrides = [
        "data=image_folder",
        f"data.root='{root}'",
        "data.image_size=32",
        "data.interpolation=bilinear",
        "backbone=resnet18",
        "backbone.weights=null",
        "store.mode=off",
    ]
    done = _run("--json", *overrides)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    words = shlex.split(found["command"])
    assert words[:4] == ["tvf", "train", "-m", "hydra/sweeper=race"]
    fractions = ",".join(f"{each:g}" for each in found["promising"])
    assert f"model.pct_unfreeze={fractions}" in words
    assert words[-len(overrides) :] == overrides
    assert sum(found["seconds"].values()) == pytest.approx(found["total_seconds"])


def test_the_command_has_a_probe_where_that_leads() -> None:
    config = plain_config("model=lora")
    advice: Any = SimpleNamespace(promising=[0.0, 0.25], probe_leads=True)
    command = _command(["model=lora", "seed=3"], config, None, advice)
    assert "model.pct_unfreeze=0,0.25 model=lora,probe data.folds=5" in command
    assert command.endswith(" seed=3")
    config["model"]["frozen_bn"] = "batch"
    assert "probe" not in _command(["model=lora"], config, None, advice)
    advice.probe_leads = False
    assert _command(["model=lora"], config, None, advice).endswith(" model=lora")
