"""Commands in surroundings that lack something: a home folder, a user's name."""

import getpass
import os
import pwd
from pathlib import Path
from typing import Any, NoReturn

import pytest

from helpers import IMPORTABLE, SMALL, forks
from tvf.cli.surroundings import settled_surroundings
from tvf.distributed.devices import claim
from tvf.files import cache_folder
from tvf.report.html import _vega_script
from tvf.store import StoreOptions

HOMELESS = """
import os, pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
for name in ("HOME", "TVF_STORE", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
    os.environ.pop(name, None)
sys.argv[0] = "train.py"
from tvf.cli import train
train()
"""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know, in an empty environment: `docker run --user 12345`."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "TVF_STORE", "XDG_CACHE_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_without_a_home_a_job_goes_on_without_the_store(
    nobody: None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no home folder"):
        cache_folder()
    with StoreOptions().open() as store:
        assert store is None
    assert "no home folder): continuing without a store; choose another store.dir" in caplog.text
    with StoreOptions(dir=str(tmp_path / "store")).open() as store:
        assert store is not None
    assert "vegaEmbed" in _vega_script()


def test_libraries_get_a_temporary_home_and_the_store_is_not_kept_there(nobody: None) -> None:
    with settled_surroundings():
        home = Path(os.environ["HOME"])
        assert home.is_dir()
        with pytest.raises(FileNotFoundError):
            cache_folder()
    assert not home.exists() and "HOME" not in os.environ


def test_a_user_without_a_name_can_claim_devices(nobody: None, tmp_path: Path) -> None:
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    assert claim(["gpu"], folder=tmp_path) == [0]


def test_places_in_the_environment_are_those_of_the_commands_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TVF_STORE", "HF_HOME"):
        monkeypatch.setenv(name, "kept")
    monkeypatch.setenv("TORCH_HOME", "/torch")
    with settled_surroundings():
        assert {os.environ["TVF_STORE"], os.environ["HF_HOME"]} == {str(tmp_path / "kept")}
        assert os.environ["TORCH_HOME"] == "/torch"


def test_store_commands_without_a_home_say_what_to_name(
    nobody: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from tvf.cli import commands

    for command in (commands.store_info, commands.store_clear):
        with pytest.raises(SystemExit, match=r"no home folder. Name one: store.dir=DIR"):
            command(None)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["none", "wandb"])
def test_a_whole_job_of_an_unknown_user(tmp_path: Path, image_root: Path, tracker: str) -> None:
    command: list[Any] = ["data=image_folder", f"data.root={image_root}", "epochs=1", SMALL]
    command += ["data.image_size=32", f"tracker={tracker}", "hydra.run.dir=job"]
    process = forks.python(HOMELESS, *command, cwd=tmp_path, PYTHONPATH=IMPORTABLE)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "continuing without a store" in output and "Traceback" not in output
    assert (tmp_path / "job" / "summary.json").is_file() and not (tmp_path / "~").exists()
    assert bool([*tmp_path.glob("job/wandb/offline-run-*")]) == (tracker == "wandb")
