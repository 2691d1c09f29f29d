"""Ray cluster of a sweep: one that is there, or one on this machine alone."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from bayes_rl.errors import ConfigError

PATIENCE = 20.0
"""Longest wait for the answer of an address, in seconds."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables of Ray.

Ray reports no usage, writes no log files of trials, prints no table of its own, and leaves Ctrl+C to the command. Fits
have the priority of the command (Ray's default is 15 steps lower), and see the GPUs of the machine even if they need
none (Ray would hide them)."""


def missing_packages() -> list[str]:
    """Return the packages of the extra `cluster` that are not installed."""
    return [name for name in ("ray", "optuna") if find_spec(name) is None]


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray within this block.

    Args:
        address: `auto`, or `HOST:PORT` of a cluster; None starts Ray on this machine and stops it after the block.

    Raises:
        ConfigError: if no cluster answers.
    """
    os.environ.update(ENVIRONMENT)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        # By default Ray reserves a third of the memory for objects. The objects of a sweep are a few kilobytes.
        ray.init(address="local", include_dashboard=False, object_store_memory=2**27, **quiet)
    else:
        _check_address(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
            line = " ".join(str(error).split())
            raise ConfigError("address", address, f"is no Ray cluster that this machine is part of: {line}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `ConfigError` unless a Ray cluster answers within `PATIENCE` seconds."""
    way_out = "start it by `ray start --head`, or drop --address to use this machine"
    if address == "auto":
        from ray._private.services import find_gcs_addresses

        found = [os.environ["RAY_ADDRESS"]] if os.environ.get("RAY_ADDRESS") else sorted(find_gcs_addresses())
        if not found:
            raise ConfigError("address", address, f"finds no Ray on this machine; {way_out}")
        address = found[0]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("address", address, "is neither auto nor HOST:PORT; nearest: 'auto'")
    problem = f"does not answer within {PATIENCE:.0f} s; {way_out}"
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise ConfigError("address", address, f"does not answer: {error.strerror or error}; {way_out}") from None
    answers: list[Any] = []

    def ask() -> None:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray._raylet import GcsClient

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray start` and `ray.init` do
        with suppress(Exception):  # of a program that is no Ray, or of a cluster with another token
            answers.append(GcsClient(address=address))

    # The client waits longer for a port at which another program listens.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not answers:
        raise ConfigError("address", address, problem)
