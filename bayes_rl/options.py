"""What stands on the command line, and how the parser's errors are worded."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from bayes_rl.datamodule import ReplayDataModule
from bayes_rl.module import VariationalActorCritic
from bayes_rl.types import nearest


def given_options(words: list[str], configs: list[Path]) -> set[str]:
    """Names of the options that stand on the command line or in a configuration file, as `data.env`."""
    given = {".".join(word[2:].split("=")[0].split(".")[:2]) for word in words if word.startswith("--")}
    for path in configs:
        for section, value in (yaml.safe_load(path.read_text()) or {}).items():
            given |= {f"{section}.{key}" for key in value} if isinstance(value, dict) else {section}
    return given


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
