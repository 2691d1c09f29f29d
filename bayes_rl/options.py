"""What stands on the command line and in checkpoints, and how the parser's errors are worded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from bayes_rl.checkpoints import load_verified, manifest_of
from bayes_rl.datamodule import ReplayDataModule
from bayes_rl.export import PLAYED, SUFFIX, is_export, read_export
from bayes_rl.module import VariationalActorCritic
from bayes_rl.types import ConfigError, nearest


def given_options(words: list[str], configs: list[Path]) -> set[str]:
    """Names of the options that stand on the command line or in a configuration file, as `data.env`."""
    given = {".".join(word[2:].split("=")[0].split(".")[:2]) for word in words if word.startswith("--")}
    for path in configs:
        for section, value in (yaml.safe_load(path.read_text()) or {}).items():
            given |= {f"{section}.{key}" for key in value} if isinstance(value, dict) else {section}
    return given


def find_checkpoint(path: str, directory: Path) -> str:
    """The file that `path` names: itself, or the newest `last` or `best` of the runs in `directory`.

    Raises:
        ConfigError: if there is none.
    """
    if path in ("last", "best"):
        found = sorted(directory.glob(f"version_*/checkpoints/{path}*.ckpt"), key=lambda p: p.stat().st_mtime)
        if not found:
            other = {"last": "best", "best": "last"}[path]
            hint = f"; nearest: {other!r}" if any(directory.glob(f"version_*/checkpoints/{other}*.ckpt")) else ""
            raise ConfigError("ckpt_path", path, f"finds no checkpoint below {directory}{hint}")
        return str(found[-1])
    if not Path(path).is_file():
        folder = Path(path).parent
        known = [str(p) for p in (folder.iterdir() if folder.is_dir() else Path("runs").glob("*/*/*/*.ckpt"))]
        known = [name for name in known if name.endswith((".ckpt", SUFFIX))]
        raise ConfigError("ckpt_path", path, f"does not exist{nearest(path, known)}")
    return path


def saved_options(path: str, needed: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Options of `model` and `data` in an exported agent, or in a checkpoint that is what its manifest says; no code in
    it is executed.

    Args:
        path: of the file; a checkpoint without a manifest is read all the same, with a printed note.
        needed: options of the model that must be among them.

    Raises:
        ConfigError: if it is no checkpoint of this program, or not what was written.
    """
    exported = read_export(path) if is_export(path) else None
    checkpoint, made_by = (exported, None) if exported else load_verified(Path(path))
    try:
        saved = {"model": checkpoint["hyper_parameters"], "data": checkpoint["datamodule_hyper_parameters"]}
        for key in needed:
            saved["model"][key]
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError("ckpt_path", path, f"is not a checkpoint of this program ({reason})") from None
    if exported:  # how it was trained is for the reader
        saved["data"] = {key: value for key, value in saved["data"].items() if key in PLAYED}
    elif made_by is None:
        print(f"{path} has no manifest {manifest_of(Path(path)).name}: whether it is whole cannot be verified")
    return saved


def _config_names() -> str:
    """The configuration files on the command line, as typed."""
    words = [word.removeprefix("--config=") for word in sys.argv[1:]]
    return ", ".join(repr(word) for word in words if Path(word).is_file())


def one_line(error: Exception, known: list[str]) -> str:
    """An error of the parser as one line, with the nearest valid name where one was not recognised."""
    text = " ".join(str(error).split())
    text = text.replace("Problems parsing config:", f"--config: {_config_names()} is no YAML mapping of options:")
    if missing := re.search(r"File does not exist: '(.+?)'", text):
        path = Path(os.path.relpath(missing[1]))
        folder = path.parent if path.parent.is_dir() else Path("configs")
        return f"--config: '{path}' does not exist{nearest(str(path), [str(p) for p in folder.glob('*.yaml')])}"
    unknown = re.search(r"unrecognized arguments: (?:--)?(\S+)", text) or re.search(r"not accept option '(\S+?)'", text)
    return text + nearest(unknown[1].split("=")[0], known) if unknown else text


def option_names() -> list[str]:
    """Every option of `fit`, as `data.env`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(VariationalActorCritic, "model")
    parser.add_lightning_class_args(ReplayDataModule, "data")
    names = [name for action in parser._actions for name in action.option_strings]
    return [name.removeprefix("--") for name in [*names, "config", "ckpt_path", "name", "seed_everything"]]
