"""Errors of the parser and of Lightning's trainer as one line."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli.arguments import bundled_configs
from bayes_rl.cli.saved_runs import _is_file
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.errors import did_you_mean
from bayes_rl.utils.version_0_1 import present_name


def _config_names() -> str:
    """Return the configuration files on the command line, as typed."""
    words = [word.removeprefix("--config=") for word in sys.argv[1:]]
    return ", ".join(repr(word) for word in words if _is_file(word))


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Values of `trainer.precision` that a run accepts; Lightning knows more."""


UNION = re.compile(r'Parser key "([\w.]+)": .*?Union subtypes.*? Subtypes: \[(.+)\] Errors: (.*) Given value: (.+)$')
"""The parser's text for a value that has none of an option's types."""


CLASS_PROBLEM = re.compile(
    r"Problem with given class_path '(?P<path>[\w.]+)': (?P<reason>.+?)(?= - (?:Expected|Problem) | Given value|$)"
)
"""The parser's text for a class that cannot be made."""


NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)$")
"""The parser's text for an option of a class, as `--trainer.callbacks.patience`."""


def class_problem(key: str, path: str, reason: str) -> tuple[str, str]:
    """Return the name of a class and why it cannot be made.

    Args:
        key: option that names the class.
        path: import path of the class.
        reason: by the parser or by the class.
    """
    name = path.rpartition(".")[2]
    if missing := re.search(r"arguments are required: (\w+)", reason):
        return name, f"needs an argument: --{key}.{missing[1]}"
    if package := re.search(r"Requirement '(.+?)' not met|No module named '(.+?)'", reason):
        return name, f"needs a module that is not installed: {package[1] or package[2]}"
    if option := re.search(r"Option '([\w.]+)' is not accepted", reason):
        module = sys.modules.get(path.rpartition(".")[0])
        known = inspect.signature(getattr(module, name, object)).parameters if hasattr(module, name) else ()
        return name, f"has no argument {option[1]!r}{did_you_mean(option[1], known)}"
    return name, f"is refused: {reason[:300]}"


def _type_name(text: str) -> str:
    """Return a type of the parser's text in words, for example `null` or `[int, int]`."""
    text = text.removeprefix("<class '").removesuffix("'>").replace("NoneType", "null")
    if inside := re.fullmatch(r"tuple\[(.+)\]", text):
        return f"[{inside[1]}]"
    if inside := re.fullmatch(r"(?:[\w.]*\.)?(list|Iterable)\[(.+)\]", text):
        return f"list of {_type_name(inside[2])}"
    return "mapping" if "dict" in text or "Mapping" in text else text.rpartition(".")[2]


def _union_line(key: str, subtypes: str, errors: str, value: str) -> str:
    """Return the line for a value that has none of an option's types."""
    nested = re.search(NESTED, value)
    if made := re.search(CLASS_PROBLEM, errors):
        if nested and f"Option '{nested[1]}'" not in made["reason"]:
            return f"--{key}.{nested[1]}: {nested[2]!r} is refused by {made['path'].rpartition('.')[2]}"
        name, problem = class_problem(key, made["path"], made["reason"])
        return f"--{key}: {name!r} {problem}"
    if nested:
        return f"--{key}.{nested[1]}: {nested[2]!r} is for a class, and --{key} names none"
    if listed := ", ".join(re.findall(r"Literal\[(.+?)\]", subtypes)).replace("'", ""):
        choices = list(PRECISIONS) if key == "trainer.precision" else list(dict.fromkeys(listed.split(", ")))
        return f"--{key}: {value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
    kinds = [_type_name(text) for text in re.split(r", (?![^\[]*\])", subtypes)]
    return f"--{key}: {value!r} is no {' or '.join(dict.fromkeys(kinds))}"


def format_parser_error(error: Exception, known: Sequence[str]) -> str:
    """Return an error of the parser as one line, with the nearest valid name for an unknown one."""
    text = " ".join(str(error).split())
    text = text.replace("Problems parsing config:", f"--config: {_config_names()} is no YAML mapping of options:")
    if missing := re.search(r"File does not exist: '(.+?)'", text):
        path = Path(os.path.relpath(missing[1]))
        folder = path.parent if path.parent.is_dir() else Path("configs")
        names = [*(str(p) for p in folder.glob("*.yaml")), *bundled_configs()]
        return f"--config: '{path}' does not exist{did_you_mean(str(path), names)}"
    if union := re.search(UNION, text):
        return _union_line(*union.groups())
    if wrong := re.search(r'Parser key "([\w.]+)": Expected a <class \'(\w+)\'>. Got value: (.*)$', text):
        return f"--{wrong[1]}: {wrong[3]!r} is no {wrong[2]}"
    if group := re.search(r'Parser key "(\w+\.\w+)": Unable to load config .(.+?). - ', text):
        inside = [name for name in known if name.startswith(f"{group[1]}.")]
        return f"--{group[1]}: {group[2]!r} is no mapping of options; nearest: '{(inside or known)[0]}'"
    unknown = re.search(r"unrecognized arguments: (?:--)?(\S+)", text) or re.search(r"not accept option '(\S+?)'", text)
    if not unknown:
        return text
    name = unknown[1].split("=")[0]
    within_groups = (option for option in known if option.endswith(f".{name}"))
    meant = present_name(name) or next(within_groups, None)
    return text + (f"; nearest: {meant!r}" if meant else did_you_mean(name, known))


@cache
def option_names() -> tuple[str, ...]:
    """Return the names of all options of `fit`, as `data.env`."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(VariationalActorCritic, "model")
    parser.add_lightning_class_args(ReplayDataModule, "data")
    names = [name for action in parser._actions for name in action.option_strings]
    of_run = ("config", "import_modules", "ckpt_path", "name", "allow_overrides", "on_full_disk", "seed_everything")
    return tuple(name.removeprefix("--") for name in (*names, *of_run))
