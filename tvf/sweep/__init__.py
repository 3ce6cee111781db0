"""A sweep: checked whole before its first job, told as a table after its last."""

from tvf.sweep.callback import SweepCallback, finish, workers
from tvf.sweep.results import where

__all__ = ["SweepCallback", "finish", "where", "workers"]
