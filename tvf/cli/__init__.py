"""The shell commands: `tvf` is `main`, `python train.py` is `train`."""

from tvf.cli.main import main, train

__all__ = [
    "main",
    "train",
]
