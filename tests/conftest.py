"""What several tests share: small images on disk, and the shell's entry called in-process."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from hydra._internal.hydra import Hydra
from hypothesis import settings

import tvf.cli.launch  # noqa: F401  registers the resolvers that conf/ calls
from helpers import Outcome
from helpers.composing import remember_configs
from helpers.folders import write_images
from tvf import cli

# A loaded machine is slow, not wrong.
settings.register_profile("tvf", deadline=None)
settings.load_profile("tvf")
numbers = count()


def pytest_collection_finish() -> None:
    """Keep what has been imported by now out of garbage collection, which then takes less time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_surroundings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No W&B login, whatever the machine has, no debug flag, and an empty store.

    Nothing waits for the disk: files need not outlast a power cut. The store's folder is made by
    tests that write to it; a folder for every test would take more time than most tests.
    """
    own = tmp_path_factory.getbasetemp() / f"own{next(numbers)}"
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv(
        "WANDB_SERVICE", raising=False
    )  # another test's W&B process, which it leaves in the environment
    monkeypatch.setenv("NETRC", str(own / "netrc"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # cli.train() sets it for good
    monkeypatch.delenv("TVF_DEBUG", raising=False)
    monkeypatch.setenv("TVF_STORE", str(own / "store"))


@pytest.fixture(scope="session", autouse=True)
def conf_merged_once() -> Iterator[None]:
    """Hydra reads and merges every YAML again for each config; conf/ stays as it is meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        remember_configs(patch.setattr)
        yield


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """`shell("epochs=1")` is `python train.py epochs=1` from an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Hydra composes each config twice, first only to read hydra.mode, which nothing here sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
    threads = torch.get_num_threads()

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code, handlers = 0, {*logging.getLogger().handlers}
        try:
            cli.train()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
            if isinstance(exit.code, str):
                print(exit.code, file=sys.stderr)
        finally:
            torch.set_num_threads(threads)
            for handler in {
                *logging.getLogger().handlers
            } - handlers:  # Hydra's, on streams that pytest closes
                logging.getLogger().removeHandler(handler)
                handler.close()
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A folder of images: two classes that differ in colour, 24 images each, of unequal shapes."""
    return write_images(tmp_path / "images")
