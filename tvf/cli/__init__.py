"""The shell commands."""

from tvf.cli.main import main
from tvf.cli.train import train

__all__ = [
    "main",
    "train",
]
