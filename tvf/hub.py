"""Hugging Face's hub on a machine without a network."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def cache_alone_if_offline() -> Iterator[None]:
    """In this context the hub's libraries use their cache alone if the hub's name has no address.

    Otherwise they try again for half a minute. Behind a proxy nothing is checked.
    """
    constants = sys.modules.get("huggingface_hub.constants")
    offline = constants is not None and not getproxies() and not _has_address(constants.ENDPOINT)
    names = ("huggingface_hub.constants", "datasets.config") if offline else ()
    modules = [sys.modules[name] for name in names if name in sys.modules]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, "HF_HUB_OFFLINE", value)  # noqa: B010


def _has_address(url: str) -> bool:
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:  # which one says little: a laptop without a network has "try again"
        return False
    return True
