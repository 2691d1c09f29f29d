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

SECTIONS = ("trainer", "model", "data")


def typed_options(words: list[str]) -> list[tuple[str, str | None]]:
    """Options on the command line and what follows each, in order; None where nothing does."""
    following = [*words[1:], "--"]
    found: list[tuple[str, str | None]] = []
    for word, after in zip(words, following, strict=True):
        if word.startswith("-c") and not word.startswith("--"):
            word = f"--config={word[2:]}" if len(word) > 2 else "--config"
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name, value if equals else None if after.startswith("--") else after))
    return found


def given_options(words: list[str], configs: list[Path]) -> set[str]:
    """Names of the options that stand on the command line or in a configuration file, as `data.env`."""
    given: set[str] = set()
    for name, value in typed_options(words):
        section, *key = name.split(".")[:2]
        if not key and section in SECTIONS and value is not None:  # a whole section, or a file of one
            text = Path(value).read_text() if _is_file(value) else value
            given |= {f"{section}.{key}" for key in yaml.safe_load(text) or {}}
        given.add(".".join([section, *key]))
    for path in [path for path in configs if _is_file(str(path))]:
        for section, value in (yaml.safe_load(path.read_text()) or {}).items():
            given |= {f"{section}.{key}" for key in value} if isinstance(value, dict) else {section}
    return given


def with_own_config(words: list[str]) -> list[str]:
    """The command line, with the configuration of the run that `--ckpt_path` names unless one is typed.

    Without a name and a configuration `last` and `best` are those of the newest run.

    Raises:
        ConfigError: if there is no such run.
    """
    typed = dict(typed_options(words))
    path = typed.get("ckpt_path")
    if not path or "config" in typed:
        return words
    words = list(words)
    if path in ("last", "best"):
        root = Path(typed.get("trainer.default_root_dir") or "runs")
        path = find_checkpoint(path, root / (typed.get("name") or "*"))
        words.append(f"--ckpt_path={path}")
    config = _own_config(path)
    return [words[0], f"--config={config}", *words[1:]] if _is_file(str(config)) else words


def _own_config(checkpoint: str) -> Path:
    return Path(checkpoint).parent.parent / "config.yaml"


def check_config(path: str) -> None:
    """Raise `ConfigError` unless a file, if there is one, is a mapping in YAML that names nothing twice."""
    if not _is_file(path):
        return  # the parser says so, or takes it for the text itself
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("config", path, f"is no YAML mapping of options: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("config", path, "is no YAML mapping of options")
    for key, value in root.value:
        if key.value in SECTIONS and isinstance(value, yaml.SequenceNode):
            raise ConfigError(key.value, path, "has a list here, no mapping of options")
    sections = [("", root), *((f"{key.value}.", value) for key, value in root.value)]
    for prefix, node in sections:
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if not all(isinstance(name, str) for name in names):
            raise ConfigError("config", path, "is no YAML mapping of options: some name is a list or a mapping")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("config", path, f"names {prefix}{name} twice")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long for any file, or with characters that none can have
        return False


def saved_trainer(checkpoint: str) -> dict[str, Any]:
    """Options of the trainer in the configuration beside a checkpoint; none if it cannot be read."""
    try:
        saved = yaml.safe_load(_own_config(checkpoint).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    trainer = saved.get("trainer") if isinstance(saved, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def find_checkpoint(path: str, directory: Path) -> str:
    """The file that `path` names: itself, or the `last` or `best` of the newest run in `directory`, which may hold `*`.

    Raises:
        ConfigError: if there is none.
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
    if not _is_file(path):
        folder = Path(path).parent
        known = [str(p) for p in (folder.iterdir() if folder.is_dir() else Path("runs").glob("*/*/*/*.ckpt"))]
        known = [name for name in known if name.endswith((".ckpt", SUFFIX))]
        raise ConfigError("ckpt_path", path, f"does not exist{nearest(path, known)}")
    return path


def _last_written(checkpoint: Path) -> float:
    """When any checkpoint of the same run was written: the best one may be old."""
    return max(file.stat().st_mtime for file in checkpoint.parent.glob("*.ckpt"))


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
    return ", ".join(repr(word) for word in words if _is_file(word))


UNION = re.compile(r'Parser key "([\w.]+)": .*?Union subtypes.*? Subtypes: \[(.+)\] Errors: .* Given value: (.+)$')
"""How the parser says that a value is of none of an option's types."""


def one_line(error: Exception, known: list[str]) -> str:
    """An error of the parser as one line, with the nearest valid name where one was not recognised."""
    text = " ".join(str(error).split())
    text = text.replace("Problems parsing config:", f"--config: {_config_names()} is no YAML mapping of options:")
    if missing := re.search(r"File does not exist: '(.+?)'", text):
        path = Path(os.path.relpath(missing[1]))
        folder = path.parent if path.parent.is_dir() else Path("configs")
        return f"--config: '{path}' does not exist{nearest(str(path), [str(p) for p in folder.glob('*.yaml')])}"
    if union := re.search(UNION, text):
        key, subtypes, value = union.groups()
        listed = ", ".join(re.findall(r"Literal\[(.+?)\]", subtypes)).replace("'", "")
        if listed:
            choices = list(dict.fromkeys(listed.split(", ")))
            return f"--{key}: {value!r} is not one of {', '.join(choices)}{nearest(value, choices)}"
        kinds = re.findall(r"<class '(\w+)'>", subtypes.replace("NoneType", "null"))
        if len(kinds) == 1 + subtypes.count(", "):
            return f"--{key}: {value!r} is no {' or '.join(kinds)}"
    unknown = re.search(r"unrecognized arguments: (?:--)?(\S+)", text) or re.search(r"not accept option '(\S+?)'", text)
    return text + nearest(unknown[1].split("=")[0], known) if unknown else text


def option_names() -> list[str]:
    """Every option of `fit`, as `data.env`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(VariationalActorCritic, "model")
    parser.add_lightning_class_args(ReplayDataModule, "data")
    names = [name for action in parser._actions for name in action.option_strings]
    return [
        name.removeprefix("--")
        for name in [*names, "config", "ckpt_path", "name", "allow_overrides", "on_full_disk", "seed_everything"]
    ]
