"""Errors of the parser and of Lightning's trainer as one line."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli.arguments import bundled_configs
from bayes_rl.cli.saved_runs import _is_file
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.errors import ConfigError, did_you_mean
from bayes_rl.utils.version_0_1 import present_name


def _config_names() -> str:
    """Return the configuration files on the command line, as typed."""
    words = [word.removeprefix("--config=") for word in sys.argv[1:]]
    return ", ".join(repr(word) for word in words if _is_file(word))


UNION = re.compile(r'Parser key "([\w.]+)": .*?Union subtypes.*? Subtypes: \[(.+)\] Errors: .* Given value: (.+)$')
"""The parser's text for a value that has none of an option's types."""


def format_parser_error(error: Exception, known: list[str]) -> str:
    """Return an error of the parser as one line, with the nearest valid name for an unknown one."""
    text = " ".join(str(error).split())
    text = text.replace("Problems parsing config:", f"--config: {_config_names()} is no YAML mapping of options:")
    if missing := re.search(r"File does not exist: '(.+?)'", text):
        path = Path(os.path.relpath(missing[1]))
        folder = path.parent if path.parent.is_dir() else Path("configs")
        names = [*(str(p) for p in folder.glob("*.yaml")), *bundled_configs()]
        return f"--config: '{path}' does not exist{did_you_mean(str(path), names)}"
    if union := re.search(UNION, text):
        key, subtypes, value = union.groups()
        listed = ", ".join(re.findall(r"Literal\[(.+?)\]", subtypes)).replace("'", "")
        if listed:
            choices = list(dict.fromkeys(listed.split(", ")))
            return f"--{key}: {value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
        kinds = re.findall(r"<class '(\w+)'>", subtypes.replace("NoneType", "null"))
        if len(kinds) == 1 + subtypes.count(", "):
            return f"--{key}: {value!r} is no {' or '.join(kinds)}"
    if group := re.search(r'Parser key "(\w+\.\w+)": Unable to load config .(.+?). - ', text):
        inside = [name for name in known if name.startswith(f"{group[1]}.")]
        return f"--{group[1]}: {group[2]!r} is no mapping of options; nearest: '{(inside or known)[0]}'"
    unknown = re.search(r"unrecognized arguments: (?:--)?(\S+)", text) or re.search(r"not accept option '(\S+?)'", text)
    if not unknown:
        return text
    name = unknown[1].split("=")[0]
    renamed = present_name(name)
    return text + (f"; nearest: {renamed!r}" if renamed else did_you_mean(name, known))


def trainer_error(error: Exception, options: Any) -> ConfigError:
    """Return the error of an option that Lightning's trainer refuses, with the option that its text names.

    Args:
        error: raised by the constructor of the trainer.
        options: of the trainer.
    """
    text = " ".join(str(error).split())
    words = [*re.findall(r"`(\w+)", text), *re.findall(r"\w+", text)]
    words += ["max_time"] if options.max_time is not None else []  # refused by a text without its name
    key = next((word for word in words if word in options), "")
    return ConfigError(f"trainer.{key}".rstrip("."), options.get(key), f"is refused: {text}")


def option_names() -> list[str]:
    """Return the names of all options of `fit`, as `data.env`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(VariationalActorCritic, "model")
    parser.add_lightning_class_args(ReplayDataModule, "data")
    names = [name for action in parser._actions for name in action.option_strings]
    of_run = ("config", "import_modules", "ckpt_path", "name", "allow_overrides", "on_full_disk", "seed_everything")
    return [name.removeprefix("--") for name in (*names, *of_run)]
