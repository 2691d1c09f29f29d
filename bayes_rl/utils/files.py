"""Atomic writes, JSON with a checksum, and a lock for the one writer of a directory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from bayes_rl.errors import ConfigError, check

try:
    import fcntl
except ImportError:  # not a Unix: no locks
    fcntl = None  # type: ignore[assignment]


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk."""


TEMPORARY = ".tmp"
"""Ending of a file that is being written. A file with it that is found later was left by a killed process."""


MOST = 1 << 20
"""Size in bytes of the largest checksummed JSON that is read."""


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to disk: only then does a renamed file survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_temporary(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a new file beside `path`, flush it to disk, and return its path, for `os.replace`.

    An error leaves no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file atomically: readers, also after a kill, find the whole old file or the whole new file."""
    os.replace(write_temporary(path, write), path)
    sync_directory(path.parent)


def remove_temporaries(directory: Path) -> None:
    """Delete the temporary files of killed processes below a directory that this process alone writes to."""
    for path in directory.rglob(f"*{TEMPORARY}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def check_disk(directory: Path, size: int, key: str, value: object) -> None:
    """Raise `ConfigError` unless files of `size` bytes in total fit on the disk of `directory`.

    Files that lie below `directory` already count as part of `size`.
    """
    parent = next(p for p in [directory, *directory.absolute().parents] if p.exists())
    held = sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())
    need, free = size - held, shutil.disk_usage(parent).free
    check(need < free, key, value, f"needs {need >> 20} MiB of disk, {free >> 20} MiB are free")


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_checksummed_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a `checksum` of its other entries, atomically."""
    sealed = content | {"checksum": hashlib.sha256(_canonical(content)).hexdigest()}
    write_atomic(path, lambda file: file.write(_canonical(sealed)))


def read_checksummed_json(path: Path) -> dict[str, Any]:
    """Return the content that `write_checksummed_json` wrote, without its checksum.

    The bytes must be those that `write_checksummed_json` makes of the content, so that a change of any byte is
    noticed, even if the JSON still means the same. A checksum finds accidents, not attacks: an attacker can write one.

    Raises:
        ValueError: if a byte was changed, or if `write_checksummed_json` did not write the file.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(MOST + 1)
    try:
        content = json.loads(data.decode()) if len(data) <= MOST else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no manifest")
    checksum = content.pop("checksum", None)
    try:
        digest = hashlib.sha256(_canonical(content)).hexdigest()
        whole = _canonical(content | {"checksum": digest}) == data
    except (ValueError, RecursionError):  # a number that is not finite, or text that is no Unicode
        whole = False
    if not whole or not isinstance(checksum, str):
        raise ValueError(f"{path.name} was changed: its checksum is not that of its content")
    return content


class DirectoryLock:
    """Lock that keeps a second process from writing to a directory; the kernel releases it when the process ends.

    Args:
        directory: to write to. It is made if needed; its file `lock` is never deleted.
        key: the option that chose the directory, for the error.

    Raises:
        ConfigError: if another fit holds the lock.
    """

    def __init__(self, directory: Path, key: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = open(directory / "lock", "ab")  # noqa: SIM115, open for as long as it is locked
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            self._refuse(directory, key)
        except OSError:
            pass  # a file system without locks

    def _refuse(self, directory: Path, key: str) -> NoReturn:
        problem = "is being written by another fit; wait for it or stop it"
        raise ConfigError(key, os.path.relpath(directory), problem) from None

    def release(self) -> None:
        """Release the lock; a second call has no effect."""
        self._file.close()
