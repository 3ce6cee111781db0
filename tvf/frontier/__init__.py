"""The cut between frozen and trained layers, and the inputs of the layers after it."""

from tvf.frontier.inputs import EpochInputs, InputPipeline
from tvf.frontier.plan import CacheOptions, SiblingJobs, open_pipeline

__all__ = [
    "CacheOptions",
    "EpochInputs",
    "InputPipeline",
    "SiblingJobs",
    "open_pipeline",
]
