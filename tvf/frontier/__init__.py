"""The cut between frozen and trained layers, and the inputs of the layers after it."""

from tvf.frontier.inputs import EpochInputs, InputPipeline
from tvf.frontier.plan import CacheOptions, SiblingJobs, open_pipeline
from tvf.frontier.residency import RESIDENT, Residency
from tvf.frontier.trace import preserve_state

__all__ = [
    "CacheOptions",
    "EpochInputs",
    "InputPipeline",
    "RESIDENT",
    "Residency",
    "SiblingJobs",
    "open_pipeline",
    "preserve_state",
]
