"""A copy of a sweep where machines that share no disk can find it: a bucket, or a folder."""

from tvf.mirror.client import Mirror, job_lease
from tvf.mirror.stores import Unreachable, check_apart, check_mirror, is_mirror

__all__ = ["Mirror", "Unreachable", "check_apart", "check_mirror", "is_mirror", "job_lease"]
