"""Hugging Face's hub with and without a network."""

import socket

import pytest
from huggingface_hub import constants

from tvf.hub import cache_alone_if_offline


def no_network(*arguments: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def test_without_a_network_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("tvf.hub.getproxies", dict)
    before = constants.is_offline_mode()
    with cache_alone_if_offline():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode() is before


def test_with_a_network_or_behind_a_proxy_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = constants.is_offline_mode()
    monkeypatch.setattr("tvf.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [])
    with cache_alone_if_offline():
        assert constants.is_offline_mode() is before
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("tvf.hub.getproxies", lambda: {"https": "http://proxy.invalid:3128"})
    with cache_alone_if_offline():
        assert constants.is_offline_mode() is before
