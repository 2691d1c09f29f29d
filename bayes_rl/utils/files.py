"""Files that are whole or not there, JSON that tells when it was changed, and one writer to a directory."""

from __future__ import annotations

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
except ImportError:  # not a Unix: nothing locks
    fcntl = None  # type: ignore[assignment]


TEMPORARY = ".tmp"
"""Ending of a file that is being written; one that is found later is what a killed process left."""


MOST = 1 << 16
"""Bytes of the largest sealed JSON that is read."""


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to disk: a renamed file survives a power cut only then."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_temporary(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a new file beside `path` and bring it to disk; its name, for `os.replace`. Nothing is left on an error."""
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
    """Replace a file at one moment: whoever reads, or is killed, meets the old one or the new one, each whole."""
    os.replace(write_temporary(path, write), path)
    sync_directory(path.parent)


def remove_temporaries(directory: Path) -> None:
    """Delete what killed processes left half written below a directory that this process alone writes to."""
    for path in directory.rglob(f"*{TEMPORARY}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def check_disk(directory: Path, size: int, key: str, value: object) -> None:
    """Raise `ConfigError` unless files of `size` bytes in all, those below `directory` included, fit on its disk."""
    parent = next(p for p in [directory, *directory.absolute().parents] if p.exists())
    held = sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())
    need, free = size - held, shutil.disk_usage(parent).free
    check(need < free, key, value, f"needs {need >> 20} MiB of disk, {free >> 20} MiB are free")


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_checksummed_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a `checksum` of all the rest, whole or not at all."""
    sealed = content | {"checksum": hashlib.sha256(_canonical(content)).hexdigest()}
    write_atomic(path, lambda file: file.write(_canonical(sealed)))


def read_checksummed_json(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without its checksum.

    The bytes must be those that `write_sealed` makes of the content, so that a change of any of them is noticed, even
    where JSON would mean the same. Whoever wants to deceive can write a checksum too: it tells of accidents.

    Raises:
        ValueError: if a byte was changed, or it never was such a file.
        OSError: if it cannot be read.
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
        rest = _canonical(content)
        whole = _canonical(content | {"checksum": hashlib.sha256(rest).hexdigest()}) == data
    except (ValueError, RecursionError):  # not a number, or a text that no file can hold
        whole = False
    if not whole or not isinstance(checksum, str):
        raise ValueError(f"{path.name} was changed: its checksum is not that of its content")
    return content


class DirectoryLock:
    """Keeps a second process from writing to a directory; the kernel frees it, however the first one ends.

    Args:
        directory: to be written to; it is made, with a file `lock` that stays.
        key: the option that chose it, for the error.

    Raises:
        ConfigError: if another fit holds it.
    """

    def __init__(self, directory: Path, key: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = open(directory / "lock", "ab")  # noqa: SIM115, held open for as long as it is locked
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
        """Let others write; calling it twice does no harm."""
        self._file.close()
