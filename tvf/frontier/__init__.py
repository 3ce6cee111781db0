"""The cut between frozen and trained layers, and the inputs of what lies behind it."""

from tvf.frontier.inputs import EpochInputs, InputPipeline
from tvf.frontier.plan import SiblingJobs, open_pipeline

__all__ = [
    "EpochInputs",
    "InputPipeline",
    "SiblingJobs",
    "open_pipeline",
]
