"""Hugging Face's hub on a machine without a network."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def cache_alone_if_offline() -> Iterator[None]:
    """In this context the hub's libraries use their cache alone if the hub cannot be found.

    Otherwise they try again for half a minute. Behind a proxy nothing is checked.
    """
    constants = sys.modules.get("huggingface_hub.constants")
    with ExitStack() as stack:
        if constants is not None and not getproxies() and not _has_address(constants.ENDPOINT):
            for module in (constants, sys.modules.get("datasets.config")):
                if module is not None:
                    stack.enter_context(patch.object(module, "HF_HUB_OFFLINE", True))
        yield


def _has_address(url: str) -> bool:
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return False
    return True
