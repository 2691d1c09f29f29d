"""Addresses at which no Ray cluster answers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from bayes_rl.errors import ConfigError
from bayes_rl.sweep import cluster
from bayes_rl.sweep.cluster import connected

pytest.importorskip("ray")


@contextlib.contextmanager
def listening() -> Iterator[str]:
    """Give the address of a program that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(address: str) -> str:
    """Return the error of an address."""
    with pytest.raises(ConfigError) as refused, connected(address):
        pass
    return str(refused.value)


def test_an_address_that_is_silent_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 2.0)
    with listening() as address:
        start = time.monotonic()
        line = refusal(address)
    assert line.startswith(f"--address: '{address}' does not answer within 2 s; start it by `ray start --head`")
    assert time.monotonic() - start < 12


def test_a_closed_port_is_refused() -> None:
    with listening() as address:
        pass
    assert f"--address: '{address}' does not answer: " in refusal(address)


@pytest.mark.parametrize("address", ["localhost", "localhost:x", ":6379", "localhost:99999"])
def test_a_word_that_is_no_address_is_refused(address: str) -> None:
    assert "is neither auto nor HOST:PORT; nearest: 'auto'" in refusal(address)


def test_no_cluster_on_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    assert "--address: 'auto' finds no Ray on this machine; start it by" in refusal("auto")


def test_usage_is_not_reported() -> None:
    assert cluster.ENVIRONMENT["RAY_USAGE_STATS_ENABLED"] == "0"
