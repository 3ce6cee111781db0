"""The command `tvf`: its help, its usage errors, and how it passes arguments on."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from helpers import ROOT
from tvf import __version__, cli
from tvf.report import FORMATS

COMMANDS = [
    ["advise"],
    ["resume"],
    ["confirm"],
    ["status"],
    ["report"],
    ["dashboard"],
    ["wandb-sweep"],
    ["groups"],
    ["store"],
    ["store", "info"],
    ["store", "clear"],
]
Tvf = Callable[..., str]


@pytest.fixture
def tvf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tvf:
    """`tvf("groups")` calls `tvf groups` in this process and returns what it prints to stdout."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tvf", *arguments])
        cli.main()
        return capsys.readouterr().out

    return run


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_tvf_without_a_command_shows_what_to_type_first(tvf: Tvf) -> None:
    shown = tvf()
    assert "Start here:" in shown and "tvf train -m" in shown
    assert shown == tvf("--help") == tvf("-h")
    for name, *rest in (["train"], *COMMANDS):
        assert rest or re.search(rf"^  {name}  +[A-Z].*\.$", shown, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_a_summary_arguments_options_and_two_examples(
    tvf: Tvf, command: list[str]
) -> None:
    shown = tvf(*command, "--help")
    usage, summary = shown.split("\n\n")[:2]
    assert usage.startswith(f"Usage: tvf {' '.join(command)} [OPTIONS]")
    assert re.fullmatch(r"  [A-Z].*\.", summary)
    examples = shown.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 2 and all("tvf " + command[0] in example for example in examples)
    assert "-h, --help" in shown


def test_the_version_is_the_packages(tvf: Tvf) -> None:
    assert tvf("--version") == f"tvf, version {__version__}\n"


def test_python_dash_m_tvf_is_the_installed_command() -> None:
    version, wrong = _python("-m", "tvf", "--version"), _python("-m", "tvf", "trian")
    assert (version.returncode, version.stdout) == (0, f"tvf, version {__version__}\n")
    assert wrong.returncode == 2 and "Usage: tvf [OPTIONS]" in wrong.stderr
    (script,) = entry_points(group="console_scripts", name="tvf")
    assert script.load() is cli.main


def test_help_and_version_load_only_click() -> None:
    code = (
        "import sys; from tvf.cli import main; sys.argv = ['tvf', *sys.argv[1:]]; main();"
        "print('LOADED', *sys.modules)"
    )
    for arguments in (["--help"], ["--version"], ["report", "--help"], ["store", "--help"]):
        done = _python("-c", code, *arguments)
        loaded = {*done.stdout.partition("LOADED ")[2].split()}
        assert "click" in loaded
        assert not loaded & {"hydra", "omegaconf", "torch", "rich", "joblib", "numpy"}


def test_an_unknown_command_is_a_usage_error(tvf: Tvf, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        tvf("trian")
    assert error.value.code == 2
    assert "No such command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["resume", "confirm", "status", "report", "dashboard"])
def test_a_missing_folder_is_a_usage_error(
    tvf: Tvf, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit) as error:
        tvf(command)
    assert error.value.code == 2
    shown = capsys.readouterr().err
    assert f"Usage: tvf {command} [OPTIONS] DIR" in shown and "Missing argument 'DIR" in shown


def test_train_passes_its_arguments_to_hydra_untouched(
    tvf: Tvf, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[list[str]] = []
    monkeypatch.setattr("tvf.cli.launch._call_hydra", lambda: received.append(sys.argv[1:]))
    for arguments in (
        ["-m", "seed=1,2", "--config-dir", str(ROOT), "epochs=1"],
        ["--help"],
        ["-h"],
        ["--version"],
        ["--cfg", "job", "--resolve"],
        ["~tracker", "+a.b=[1,2]", "c='x y'", "-cd", str(ROOT)],
        [],
    ):
        tvf("train", *arguments)
        assert received.pop() == arguments


@pytest.mark.slow
def test_train_help_is_that_of_hydra(tvf: Tvf) -> None:
    shown = tvf("train", "--help")
    assert "model: bitfit, finetune, lora, norm, probe, transfer" in shown
    assert "A sweep:   python train.py -m" in shown


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--cfg", "job"]], ids=" ".join)
def test_a_reader_that_ends_early_causes_no_error_message(arguments: list[str]) -> None:
    """As in `tvf --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tvf", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert done.stderr == "" and done.returncode == 1


@pytest.mark.slow
def test_report_offers_every_format(tvf: Tvf) -> None:
    assert f"[{'|'.join(FORMATS)}]" in tvf("report", "--help")


def test_groups_lists_what_each_fraction_trains(tvf: Tvf, tmp_path: Path) -> None:
    stages = tvf("groups", "backbone=resnet18", "backbone.weights=null", "backbone.grouping=stages")
    assert "| 0.25 | layer4 | 8,393,728 |" in stages
    assert "| 0.5 | layer4, layer3 | 10,493,440 |" in stages
    assert "| 1 | layer4, layer3, layer2, layer1+bn1+conv1 | 11,176,512 |" in stages
    by_parameters = tvf("groups", "model.unit=params")
    assert "| 0.75 | conv_head+bn2, blocks.6, blocks.5 | 2,670,240 |" in by_parameters
    assert "| 0.5 | conv_head+bn2, blocks.6, blocks.5, blocks.4 | 73,664 |" in tvf(
        "groups", "model=lora", "model.rank=4"
    )
    assert "| 1 | layer4, layer3, layer2, layer1, bn1 | 9,600 |" in tvf(
        "groups", "backbone=resnet18", "backbone.weights=null", "model=norm"
    )
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "mine.yaml").write_text("_target_: helpers.small_backbone\n")
    mine = tvf("groups", "--config-dir", str(tmp_path), "backbone=mine")
    assert "| 0.5 | bn2, conv2 | 312 |" in mine
    with pytest.raises(SystemExit, match="must be one of layers, stages"):
        tvf("groups", "backbone=resnet18", "backbone.grouping=six")
    with pytest.raises(SystemExit, match="error: --config-dir .*/nowhere is not a folder"):
        tvf("groups", "--config-dir", str(tmp_path / "nowhere"))


def test_groups_counts_for_models_of_the_users_own(tvf: Tvf, tmp_path: Path) -> None:
    targets = {
        "backbone/mine": "helpers.small_backbone",
        "model/made": "made_model.make",
        "model/adapted": "tvf.models.LoraModel\nrank: 1\npct_unfreeze: 0.5",
    }
    for name, target in targets.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(f"_target_: {target}\n")
    (tmp_path / "made_model.py").write_text("def make(backbone):\n    return backbone.module\n")
    groups = ("groups", "--config-dir", str(tmp_path), "backbone=mine")
    made, adapted = tvf(*groups, "model=made"), tvf(*groups, "model=adapted")
    assert "groups that train, besides the head | parameters |" in made
    assert "| 0.5 | bn2, conv2 | 312 |" in made
    assert "groups that train, besides the head | parameters, at most |" in adapted
    assert "| 0.5 | conv2 | " in adapted
    (tmp_path / "model" / "made.yaml").write_text("pct_unfreeze: 0.5\n")
    with pytest.raises(SystemExit, match="error: model has no _target_"):
        tvf(*groups, "model=made")


@pytest.mark.slow
def test_a_wandb_sweep_passes_its_config_dir_to_every_job(tvf: Tvf, tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "mine.yaml").write_text("_target_: helpers.small_backbone\n")
    shown = tvf("wandb-sweep", "--config-dir", str(tmp_path), "backbone=mine", "seed=1,2")
    command = yaml.safe_load(shown)["command"]
    train = command.index("train")
    assert command[train + 1 : train + 4] == ["--config-dir", str(tmp_path), "backbone=mine"]
