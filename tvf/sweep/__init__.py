"""A sweep: checked whole before its first job, told as a table after its last."""

from tvf.sweep.callback import SweepCallback, finish, interrupt, launched, workers
from tvf.sweep.results import how_to_go_on, show, where

__all__ = ["SweepCallback", "finish", "how_to_go_on", "interrupt", "launched", "show", "where", "workers"]
