"""What several tests share: small images on disk, a small network, and the shell's entry called in this process."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from tvf import cli
from tvf.backbones import Backbone
from tvf.freezing import group_by_modules

# A loaded machine is slow, not wrong.
settings.register_profile("tvf", deadline=None)
settings.load_profile("tvf")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is logged in to W&B, whatever the machine's owner is, no debug flag is set, and the store is empty."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # another test's W&B process, which it leaves in the environment
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # cli.train() sets it for good
    monkeypatch.delenv("TVF_DEBUG", raising=False)
    monkeypatch.setenv("TVF_STORE", str(tmp_path / "store"))


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """`shell("epochs=1")` is `python train.py epochs=1` from an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
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
            for handler in {*logging.getLogger().handlers} - handlers:  # Hydra's, on streams that pytest closes
                logging.getLogger().removeHandler(handler)
                handler.close()
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A folder of images: two classes that differ in colour, 24 images each, of unequal shapes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cats", "dogs")):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 128, (40 + i, 48, 3), dtype=np.uint8)
            pixels[..., number] += 100
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


class SmallNet(nn.Module):
    """Convolution, BatchNorm, twice, then a head: enough for freezing to have something to freeze."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.bn1(self.conv1(images)).relu()
        return self.head(self.bn2(self.conv2(hidden)).relu().mean((2, 3)))


def small_backbone(num_classes: int = 3) -> Backbone:
    """Four groups: bn2, conv2, bn1, conv1. The same weights at each call."""
    torch.manual_seed(0)
    module = SmallNet(num_classes)
    return Backbone("small", module, "head", group_by_modules(module, [["bn2"], ["conv2"], ["bn1"], ["conv1"]]))
