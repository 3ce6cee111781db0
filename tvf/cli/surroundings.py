"""What a command finds around it: places in the environment, and a home for the libraries."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tvf.config import absolute_place
from tvf.files import NO_HOME

PLACES = ("TVF_STORE", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE")


@contextmanager
def settled_surroundings() -> Iterator[None]:
    """Make PLACES absolute, since a job may have another working directory, and provide a home.

    Libraries (W&B, Matplotlib) fail or complain for a user without a home folder: they get a
    temporary one. The store is not kept there.
    """
    for variable in PLACES:
        if place := os.environ.get(variable):
            os.environ[variable] = absolute_place("store.dir", place, os.getcwd())
    if os.path.isabs(os.path.expanduser("~")):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tvf-home-", ignore_cleanup_errors=True) as home:
        os.environ |= {"HOME": home, NO_HOME: "1"}
        try:
            yield
        finally:
            del os.environ["HOME"], os.environ[NO_HOME]
