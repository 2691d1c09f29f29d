"""Checkpoints that survive a kill, and that are verified before they are read.

Beside every `NAME.ckpt` lies a manifest `NAME.ckpt.json`: size, SHA-256 and versions of the file. While a checkpoint is
replaced, the manifest lists both the old and the new one, so that a process killed at any moment leaves a checkpoint
that verifies. Files are flushed to disk in the order in which they are needed, so that a power cut leaves one too, if
the disk writes what it confirms.

Checksums find accidents, truncation and careless changes, not attacks: an attacker can write a manifest too. That a
hostile checkpoint executes nothing is due to `weights_only`. Therefore a checkpoint that was copied without its
manifest is accepted, with a note.
"""

from __future__ import annotations

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
from bayes_rl.utils.files import FULL, read_checksummed_json, sync_directory, write_checksummed_json, write_temporary
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


def describe(data: bytes | memoryview, made_by: dict[str, str]) -> dict[str, Any]:
    """Return the manifest's entry for a file with the content `data`."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "versions": made_by}


def manifest_of(path: Path) -> Path:
    """Return the path of a checkpoint's manifest."""
    return path.with_name(path.name + ".json")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a checkpoint's manifest: `size`, `sha256` and `versions` of each file that `path` may hold.

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


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"size", "sha256", "versions"}:
        return False
    size, digest, made_by = entry["size"], entry["sha256"], entry["versions"]
    return (
        type(size) is int
        and size >= 0
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{64}", digest) is not None
        and isinstance(made_by, dict)
        and made_by.keys() <= {"python", *PACKAGES}
        and all(isinstance(version, str) and len(version) <= 100 for version in made_by.values())
    )


def read_verified(path: Path) -> tuple[bytes, dict[str, str] | None]:
    """Return the verified bytes of a checkpoint, and the versions that wrote it; None without a manifest.

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
                return data, entry["versions"]
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
    data, made_by = read_verified(path)
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError("ckpt_path", str(path), f"is not a checkpoint of this program ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise ConfigError("ckpt_path", str(path), "is not a checkpoint of this program (it holds no mapping)")
    return checkpoint, made_by


def write_verifiable(path: Path, data: bytes | memoryview) -> None:
    """Replace a checkpoint and its manifest; a kill at any moment leaves the old or the new one, which verifies."""
    manifest, new = manifest_of(path), describe(data, versions())
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


def _present(path: Path) -> list[dict[str, Any]]:
    """Return the manifest's entry for the checkpoint at `path`, if it verifies."""
    try:
        data, made_by = read_verified(path)
    except ConfigError:
        return []
    return [describe(data, made_by or {})]


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
        """Write a checkpoint with its manifest."""
        if storage_options is not None:
            raise TypeError("checkpoints are files: there are no storage options")
        path, buffer = Path(path), io.BytesIO()
        with STOP.save_in_progress():
            torch.save(checkpoint, buffer)
            try:
                write_verifiable(path, buffer.getbuffer())
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
        """Delete a checkpoint and its manifest."""
        for file in (Path(path), manifest_of(Path(path))):  # in this order: a checkpoint may lack its manifest
            file.unlink(missing_ok=True)
