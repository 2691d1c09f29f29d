"""Files of a replay: their layout, their manifest, and the arrays mapped from them."""

from __future__ import annotations

import errno
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_rl.utils.files import read_checksummed_json, write_checksummed_json

MANIFEST = "replay.json"


def replay_layout(
    num_envs: int, slots: int, screen_shape: tuple[int, ...], screen_dtype: np.dtype[Any]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return name, shape and type of each file of a replay. A file holds the rings one after the other.

    Args:
        num_envs: E, the number of rings.
        slots: slots per ring.
        screen_shape: shape of one screen.
        screen_dtype: type of the numbers of one screen.
    """
    total = num_envs * slots
    return {
        f"screens.{screen_dtype.name}": ((total, math.prod(screen_shape)), screen_dtype),
        "actions.int16": ((total,), np.dtype(np.int16)),
        "rewards.float32": ((total,), np.dtype(np.float32)),
        "flags.uint8": ((total,), np.dtype(np.uint8)),
        "ages.uint8": ((total,), np.dtype(np.uint8)),  # steps since reset, saturating
        # Slots of the current history, and the largest number of slots ever written. The second number does not
        # decrease when a run resumes from an older checkpoint, because the slots were overwritten all the same.
        "written.int64": ((2, num_envs), np.dtype(np.int64)),
    }


def allocate_files(sizes: Mapping[Path, int], new: bool) -> None:
    """Give files their sizes, with all their blocks on the disk.

    A write to a hole of a mapped file kills the process (SIGBUS) if the disk is full. File systems that allocate no
    blocks ahead keep the holes.

    Args:
        sizes: of the files, in bytes.
        new: begin with files of zeros. An error deletes these files.

    Raises:
        OSError: if there is no room.
    """
    try:
        for path, size in sizes.items():
            with open(path, "w+b" if new else "r+b") as file:
                file.truncate(size)
                try:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    except OSError:
        for path in sizes if new else ():
            path.unlink(missing_ok=True)
        raise


class ReplayFiles:
    """Arrays of a replay, mapped from the files of a directory or held in memory.

    Mapped files are shared memory: the system keeps what was written even if the process is killed at any moment, and
    `flush` writes it to disk. A history is the sequence of steps since the replay was empty. A manifest beside the
    files has the name of the history, so that a checkpoint of another history is refused.

    Files of the right sizes are mapped at construction. Other files are left as they are until `begin_history`, because
    a checkpoint may refer to them.

    Args:
        directory: folder of the files; None keeps all arrays in memory.
        num_envs: E, the number of rings.
        slots: slots per ring.
        screen_shape: shape of one screen.
        screen_dtype: type of the numbers of one screen.

    Attributes:
        screens: `[E * slots, numbers of a screen]`.
        actions, rewards, flags, ages: `[E * slots]`; an age is the number of steps since the reset, at most 255.
        written: slots of the current history, and the largest number of slots ever written, `[2, E]`.
        history: name of the history; None in memory, before a history began, and in files without a manifest.
        mapped: whether the arrays are mapped from the files of the directory.
    """

    screens: NDArray[Any]
    actions: NDArray[np.int16]
    rewards: NDArray[np.float32]
    flags: NDArray[np.uint8]
    ages: NDArray[np.uint8]
    written: NDArray[np.int64]

    def __init__(
        self,
        directory: Path | None,
        num_envs: int,
        slots: int,
        screen_shape: tuple[int, ...],
        screen_dtype: np.dtype[Any],
    ) -> None:
        self.directory = directory
        self.geometry = [num_envs, slots, *screen_shape]
        self.history: str | None = None
        self._layout = replay_layout(num_envs, slots, screen_shape, screen_dtype)
        self.mapped = self._files_fit()
        self._open("r+" if self.mapped else "")

    @property
    def nbytes(self) -> int:
        """Bytes of all slots at full size."""
        return sum(a.nbytes for a in (self.screens, self.actions, self.rewards, self.flags, self.ages))

    def begin_history(self) -> None:
        """Write the manifest of a new history, before any slot is overwritten: all earlier slots become invalid."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self.mapped:
                self._open("w+")
                self.mapped = True
            self.history = secrets.token_hex(16)
            write_checksummed_json(self.directory / MANIFEST, self._manifest())
        self.written[:] = 0

    def flush(self) -> None:
        """Write the mapped files to disk."""
        for file in self._files:
            file.flush()

    def _manifest(self) -> dict[str, Any]:
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in self._layout.items()}
        return {"format": 1, "history": self.history, "geometry": self.geometry, "files": sizes}

    def _files_fit(self) -> bool:
        """Return whether the directory holds a replay of this geometry, and read the name of its history."""
        if self.directory is None:
            return False
        sizes = {self.directory / name: size for name, size in self._manifest()["files"].items()}
        if any(not path.is_file() or path.stat().st_size != size for path, size in sizes.items()):
            return False
        try:
            content = read_checksummed_json(self.directory / MANIFEST)
        except FileNotFoundError:  # the first versions of the program wrote no manifest
            return True
        except (OSError, ValueError):
            return False
        self.history = content.get("history")
        return isinstance(self.history, str) and content == self._manifest()

    def _open(self, mode: str) -> None:
        """Make the arrays: mapped from the files, opened in `mode`; or in memory, if `mode` is empty.

        The system gives memory to an array of zeros only when the array is written to.
        """
        self._files: list[np.memmap[Any, Any]] = []
        arrays = []
        if self.directory is not None and mode:
            sizes = self._manifest()["files"]
            allocate_files({self.directory / name: size for name, size in sizes.items()}, new=mode == "w+")
        for name, (shape, dtype) in self._layout.items():
            if self.directory is None or not mode:
                arrays.append(np.zeros(shape, dtype))
                continue
            self._files.append(np.memmap(self.directory / name, dtype, "r+", shape=shape))
            # A plain array of the same memory: indexing a memmap takes three times as long.
            arrays.append(self._files[-1].view(np.ndarray))
        self.screens, self.actions, self.rewards, self.flags, self.ages, self.written = arrays
