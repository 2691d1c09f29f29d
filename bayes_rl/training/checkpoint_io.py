"""Checkpoints that survive a kill, and that are verified before they are read.

Beside every `NAME.ckpt` lies a manifest `NAME.ckpt.json`: size, SHA-256 and versions of the file. While a checkpoint is
replaced, the manifest lists both the old and the new one, so that a process killed at any moment leaves a checkpoint
that verifies. Files are flushed to disk in the order in which they are needed, so that a power cut leaves one too, if
the disk writes what it confirms.

Each rank of a run of several processes writes its state to a file of its own, `NAME.rank0.HASH.state`, before the
checkpoint is replaced. The manifest seals these files: its entry of a checkpoint lists their sizes and SHA-256. A file
whose name has another hash belongs to another save. Files that no entry lists are deleted by the next save.

Checksums find accidents, truncation and careless changes, not attacks: an attacker can write a manifest too. That a
hostile checkpoint executes nothing is due to `weights_only`. Therefore a checkpoint that was copied without its
manifest is accepted, with a note.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import CheckpointIO

from bayes_rl.errors import ConfigError, check_choice
from bayes_rl.utils.files import (
    FULL,
    read_checksummed_json,
    sync_directory,
    write_atomic,
    write_checksummed_json,
    write_temporary,
)
from bayes_rl.utils.stop_signals import STOP

FORMAT = 1


PACKAGES = ("torch", "pytorch_lightning", "gymnasium", "ale_py", "numpy", "bayes_rl")


DECIDING = ("ale_py", "torch", "gymnasium", "pytorch_lightning", "numpy")
"""Packages whose versions may change the numbers of a resumed run."""


ON_FULL_DISK = ("stop", "continue")


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that a run depends on; `none` for one that is not installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "none"
    return installed


def describe(
    data: bytes | memoryview, made_by: dict[str, str], ranks: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the manifest's entry for a file with the content `data`.

    Args:
        data: content of the checkpoint.
        made_by: versions that wrote it.
        ranks: size and SHA-256 of the file of each rank; None for a run of one process.
    """
    entry = {**_seal(data), "versions": made_by}
    return entry if ranks is None else {**entry, "ranks": ranks}


def _seal(data: bytes | memoryview) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest_of(path: Path) -> Path:
    """Return the path of a checkpoint's manifest."""
    return path.with_name(path.name + ".json")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a checkpoint's manifest: `size`, `sha256` and `versions` of each file that `path` may hold.

    An entry of a run of several processes has `size` and `sha256` of each rank's file under `ranks`.

    Raises:
        ValueError: if the manifest is not, byte for byte, as this program writes it.
        OSError: if there is no manifest.
    """
    content = read_checksummed_json(manifest_of(path))
    entries = content.get("files")
    if content.keys() != {"format", "files"} or type(content["format"]) is not int or content["format"] != FORMAT:
        raise ValueError(f"{manifest_of(path).name} is of another format")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 2 or not all(map(_is_entry, entries)):
        raise ValueError(f"{manifest_of(path).name} has other entries than a manifest")
    return entries


def _is_seal(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    size, digest = entry.get("size"), entry.get("sha256")
    whole = type(size) is int and size >= 0 and isinstance(digest, str)
    return whole and re.fullmatch("[0-9a-f]{64}", str(digest)) is not None


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() - {"ranks"} != {"size", "sha256", "versions"}:
        return False
    made_by, ranks = entry["versions"], entry.get("ranks", [])
    return (
        _is_seal(entry)
        and isinstance(ranks, list)
        and all(_is_seal(rank) and rank.keys() == {"size", "sha256"} for rank in ranks)
        and isinstance(made_by, dict)
        and made_by.keys() <= {"python", *PACKAGES}
        and all(isinstance(version, str) and len(version) <= 100 for version in made_by.values())
    )


def read_verified(path: Path) -> tuple[bytes, dict[str, Any] | None]:
    """Return the verified bytes of a checkpoint, and its entry in the manifest; None without a manifest.

    Raises:
        ConfigError: if the bytes are not those of the manifest.
    """
    problem = ""
    for _ in range(2):  # a fit may replace both files between the two readings: then the second try agrees
        try:
            data = path.read_bytes()
            if not os.path.lexists(manifest_of(path)):
                return data, None
            entries = read_manifest(path)
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise ConfigError("ckpt_path", str(path), f"cannot be verified: {text}") from None
        for entry in entries:
            if len(data) == entry["size"] and hashlib.sha256(data).hexdigest() == entry["sha256"]:
                return data, entry
        sizes = " or ".join(str(entry["size"]) for entry in entries)
        if len(data) not in [entry["size"] for entry in entries]:
            problem = f"is not what was saved: {len(data)} bytes, its manifest says {sizes}"
        else:
            problem = "is not what was saved: its SHA-256 is not that of its manifest"
    raise ConfigError("ckpt_path", str(path), problem)


def load_verified(path: Path, map_location: Any = "cpu") -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return a verified checkpoint, and the versions that wrote it, or None without a manifest.

    No code in the file is executed.

    Raises:
        ConfigError: if the file was changed, or is no checkpoint.
    """
    data, entry = read_verified(path)
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError("ckpt_path", str(path), f"is not a checkpoint of this program ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise ConfigError("ckpt_path", str(path), "is not a checkpoint of this program (it holds no mapping)")
    return checkpoint, None if entry is None else entry["versions"]


def _rank_file(path: Path, rank: int, seal: dict[str, Any]) -> Path:
    return path.with_name(f"{path.stem}.rank{rank}.{seal['sha256'][:16]}.state")


def _rank_files(path: Path) -> list[Path]:
    """Return the files of ranks that saves of the checkpoint have left."""
    return list(path.parent.glob(f"{glob.escape(path.stem)}.rank*.state"))


def write_rank_file(path: Path, rank: int, state: dict[str, Any]) -> dict[str, Any] | None:
    """Write the state of a rank beside the checkpoint `path`. It counts once the checkpoint's manifest seals it.

    Returns:
        Size and SHA-256 of the file for the manifest, or None if the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    seal = _seal(buffer.getbuffer())
    try:
        write_atomic(_rank_file(path, rank, seal), lambda file: file.write(buffer.getbuffer()))
    except OSError as error:
        if error.errno not in FULL:
            raise
        return None
    return seal


def read_rank_file(path: Path, rank: int) -> dict[str, Any]:
    """Return the state of a rank that the manifest of the checkpoint `path` seals. No code in the file is executed.

    Raises:
        ConfigError: if the manifest seals no such file, or if the file is missing or was changed.
    """
    entry = read_verified(path)[1]
    ranks = [] if entry is None else entry.get("ranks", [])
    if rank >= len(ranks):
        problem = f"has no manifest {manifest_of(path).name} that seals the state of its ranks"
        remedy = "resume from another checkpoint, or collect again with --data.refill_replay true"
        raise ConfigError("ckpt_path", str(path), f"{problem}; {remedy}")
    file = _rank_file(path, rank, ranks[rank])
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError("ckpt_path", str(path), f"lacks the file {file.name}: {error.strerror}") from None
    if _seal(data) != ranks[rank]:
        raise ConfigError("ckpt_path", str(path), f"has a file {file.name} that is not what was saved")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def write_verifiable(path: Path, data: bytes | memoryview, ranks: list[dict[str, Any]] | None = None) -> None:
    """Replace a checkpoint and its manifest; a kill at any moment leaves the old or the new one, which verifies.

    Args:
        path: of the checkpoint.
        data: content of the checkpoint.
        ranks: what `write_rank_file` has returned on each rank; None for a run of one process.
    """
    manifest, new = manifest_of(path), describe(data, versions(), ranks)
    temporary = write_temporary(path, lambda file: file.write(data))
    try:
        write_checksummed_json(manifest, {"format": FORMAT, "files": [*_present(path), new]})
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        write_checksummed_json(manifest, {"format": FORMAT, "files": [new]})
    except OSError as error:  # the manifest with both entries verifies; the next save shortens it
        if error.errno not in FULL:
            raise
        return
    kept = {_rank_file(path, rank, seal) for rank, seal in enumerate(ranks or [])}
    for file in _rank_files(path):
        if file not in kept:
            file.unlink(missing_ok=True)


def _present(path: Path) -> list[dict[str, Any]]:
    """Return the manifest's entry for the checkpoint at `path`, if it verifies."""
    try:
        data, entry = read_verified(path)
    except ConfigError:
        return []
    return [describe(data, {}) if entry is None else entry]


def changed_versions(made_by: dict[str, str]) -> str:
    """Return one line on packages whose versions have changed, or an empty text."""
    now = versions()
    changes = [f"{p} {made_by[p]} -> {now[p]}" for p in DECIDING if made_by.get(p, now[p]) != now[p]]
    return f"since this checkpoint: {', '.join(changes)}; a resumed run may differ" if changes else ""


class AtomicCheckpointIO(CheckpointIO):
    """Plugin of Lightning that writes checkpoints atomically with manifests, and executes nothing when it reads them.

    Args:
        on_full_disk: `stop` ends the process with one line and exit code 1, `continue` skips the save. Both leave the
            previous checkpoint unchanged.
        resuming: print once which versions have changed since the checkpoint that is loaded first.

    Attributes:
        saved: whether the latest checkpoint was saved.
    """

    def __init__(self, on_full_disk: str = "stop", resuming: bool = False) -> None:
        check_choice("on_full_disk", on_full_disk, ON_FULL_DISK)
        self.on_full_disk, self.saved = on_full_disk, True
        self._resuming = resuming

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint with its manifest.

        Args:
            checkpoint: tensors and primitives.
            path: of the file.
            storage_options: None, or `ranks` with the entries of the ranks' files, None for one without room.
        """
        if storage_options is not None and storage_options.keys() != {"ranks"}:
            raise TypeError("checkpoints are files: there are no storage options")
        ranks = None if storage_options is None else storage_options["ranks"]
        path, buffer = Path(path), io.BytesIO()
        with STOP.save_in_progress():
            torch.save(checkpoint, buffer)
            try:
                if ranks is not None and None in ranks:
                    raise OSError(errno.ENOSPC, "no room for the state of a rank")
                write_verifiable(path, buffer.getbuffer(), ranks)
                self.saved = True
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._disk_is_full(path, buffer.getbuffer().nbytes)

    def _disk_is_full(self, path: Path, size: int) -> None:
        free = shutil.disk_usage(path.parent).free
        there = "the previous one is intact" if path.exists() else "there is no previous one"
        line = f"no room to save {path}: {size / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free; {there}"
        if self.on_full_disk == "stop":
            raise SystemExit(f"bayes-rl: error: {line}")
        self.saved = False
        print(f"{line}; going on", file=sys.stderr, flush=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Return a verified checkpoint."""
        checkpoint, made_by = load_verified(Path(path), map_location)
        if self._resuming and (line := changed_versions(made_by or {})):
            print(line, flush=True)
        self._resuming = False
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint, its manifest and the files of its ranks."""
        path = Path(path)
        for file in (path, manifest_of(path), *_rank_files(path)):  # in this order: a checkpoint may lack its manifest
            file.unlink(missing_ok=True)
