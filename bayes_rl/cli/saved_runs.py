"""Checkpoints and configurations of earlier runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.errors import ConfigError, did_you_mean
from bayes_rl.training.checkpoint_io import load_verified, manifest_of
from bayes_rl.training.export import PLAYED, SUFFIX, bundled_agents, is_export, read_export
from bayes_rl.utils.settings import leaves
from bayes_rl.utils.version_0_1 import in_groups, in_present_groups


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long for any file, or with characters that none can have
        return False


def _own_config(checkpoint: str) -> Path:
    return Path(checkpoint).parent.parent / "config.yaml"


def own_config(checkpoint: str) -> str | None:
    """Return the configuration of a checkpoint's run for `--config`, or None if the run has none.

    This is the path of the file, or, for a run of version 0.1.0, its options in today's groups as YAML text.
    """
    path = _own_config(checkpoint)
    if not _is_file(str(path)):
        return None
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return str(path)  # the parser reports it
    present = in_present_groups(options)
    return str(path) if present == options else yaml.safe_dump(present, width=10**9)


def saved_trainer(checkpoint: str) -> dict[str, Any]:
    """Return the trainer's options in the configuration of a checkpoint's run; empty if it cannot be read."""
    try:
        saved = yaml.safe_load(_own_config(checkpoint).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    trainer = saved.get("trainer") if isinstance(saved, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def bundled_agent(path: str) -> Path | None:
    """Return the agent of this name that comes with the program, or None. A file of this name comes first."""
    return None if _is_file(path) else bundled_agents().get(path)


def find_checkpoint(path: str, directory: Path) -> str:
    """Return the file that `path` names.

    Args:
        path: a file, `last` or `best` for a checkpoint of the newest run in `directory`, or the name of an agent that
            comes with the program.
        directory: of the runs of one name; it may hold `*` for any name.

    Raises:
        ConfigError: if there is no such file.
    """
    if path in ("last", "best"):
        root = Path(*directory.parts[: directory.parts.index("*")]) if "*" in directory.parts else directory
        runs = f"{directory.relative_to(root)}/version_*/checkpoints"
        found = sorted(root.glob(f"{runs}/{path}*.ckpt"), key=_last_written)
        if not found:
            other = {"last": "best", "best": "last"}[path]
            hint = f"; nearest: {other!r}" if any(root.glob(f"{runs}/{other}*.ckpt")) else ""
            raise ConfigError("ckpt_path", path, f"finds no checkpoint below {root}{hint}")
        return str(found[-1])
    if (bundled := bundled_agent(path)) is not None:
        return str(bundled)
    if not _is_file(path):
        folder = Path(path).parent
        known = [str(p) for p in (folder.iterdir() if folder.is_dir() else Path("runs").glob("*/*/*/*.ckpt"))]
        known = [*(name for name in known if name.endswith((".ckpt", SUFFIX))), *bundled_agents()]
        brought = f"; the program brings the agents {', '.join(bundled_agents())}" if folder == Path() else ""
        raise ConfigError("ckpt_path", path, f"does not exist{did_you_mean(path, known) or brought}")
    return path


def _last_written(checkpoint: Path) -> float:
    """Return the time at which the run last wrote any checkpoint: its best one may be old."""
    return max(file.stat().st_mtime for file in checkpoint.parent.glob("*.ckpt"))


class SavedRun(NamedTuple):
    """Options and length of a run as a checkpoint holds them.

    Attributes:
        options: options of `model` and `data` in their groups.
        epochs: finished epochs.
        updates: optimizer steps.
        seconds: time of training, counted if the run had `--trainer.max_time`.
        ranks: number of processes that trained together.
    """

    options: dict[str, dict[str, Any]]
    epochs: int = 0
    updates: int = 0
    seconds: float = 0.0
    ranks: int = 1


def read_saved_run(path: str, needed: Iterable[str]) -> SavedRun:
    """Return what an exported agent, or a checkpoint that its manifest verifies, holds of its run.

    No code in the file is executed.

    Args:
        path: of the file. A checkpoint without a manifest is read with a printed note.
        needed: options of the model that the file must hold.

    Raises:
        ConfigError: if the file is no checkpoint of this program, or was changed.
    """
    exported = read_export(path) if is_export(path) else None
    checkpoint, made_by = (exported, None) if exported else load_verified(Path(path))
    try:
        saved = {
            "model": in_groups("model", checkpoint["hyper_parameters"]),
            "data": in_groups("data", checkpoint["datamodule_hyper_parameters"]),
        }
        for key in needed:
            saved["model"][key]
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError("ckpt_path", path, f"is not a checkpoint of this program ({reason})") from None
    if exported:  # other data options describe the training, for readers
        saved["data"] = {key: value for key, value in leaves(saved["data"]).items() if key in PLAYED}
    elif made_by is None:
        print(f"{path} has no manifest {manifest_of(Path(path)).name}: whether it is whole cannot be verified")
    return SavedRun(saved) if exported else SavedRun(saved, *_length(checkpoint))


def _length(checkpoint: dict[str, Any]) -> tuple[int, int, float, int]:
    """Return epochs, optimizer steps, seconds of training and ranks; zeros and 1 for a checkpoint without them."""
    try:
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        updates, timer = int(checkpoint["global_step"]), checkpoint.get("callbacks", {}).get("Timer", {})
        ranks = int(checkpoint.get(ReplayDataModule.__qualname__, {}).get("ranks", 1))
        return epochs, updates, float(timer.get("time_elapsed", {}).get("train", 0.0)), ranks
    except (KeyError, TypeError, ValueError, AttributeError):  # Lightning reports such a checkpoint
        return 0, 0, 0.0, 1
