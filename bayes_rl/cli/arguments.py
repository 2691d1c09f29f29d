"""Options on the command line and in configuration files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

import bayes_rl
from bayes_rl.cli.commands import TRAINER_VERBS
from bayes_rl.cli.saved_runs import _is_file, bundled_agent, find_checkpoint, own_config
from bayes_rl.errors import ConfigError, did_you_mean
from bayes_rl.utils.settings import GROUPS, leaves

PREFIX = "BAYES_RL"
"""Beginning of the environment variables that set options, as `BAYES_RL_FIT__TRAINER__MAX_EPOCHS`."""


SECTIONS = ("trainer", "model", "data")


EXPONENT = re.compile(r"[-+]?\d+(?:\.\d+)?[eE]\+?\d+")
"""Number such as 1e6, which YAML takes for a fraction."""


def whole_numbers(text: str) -> str:
    """Return YAML text with whole numbers such as 1e6 or 2.5e5 written out; text in quotes stays.

    An option that takes a fraction takes a whole number as well.
    """
    if not re.search(EXPONENT, text):
        return text
    try:
        tokens = list(yaml.scan(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return text  # the parser reports it
    for token in reversed(tokens):
        is_plain = isinstance(token, yaml.ScalarToken) and token.plain
        if is_plain and re.fullmatch(EXPONENT, token.value) and float(token.value).is_integer():
            text = f"{text[: token.start_mark.index]}{int(float(token.value))}{text[token.end_mark.index :]}"
    return text


def with_whole_numbers(words: list[str]) -> list[str]:
    """Return the command line with whole numbers such as 1e6 written out in the options of trainer, model and data."""
    result, before = [], ""
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals and _takes_numbers(option):
            word = f"{option}={whole_numbers(value)}"
        elif not word.startswith("--") and _takes_numbers(before):
            word = whole_numbers(word)
        before = word
        result.append(word)
    return result


def _takes_numbers(option: str) -> bool:
    return option.startswith(tuple(f"--{section}." for section in SECTIONS)) or option == "--seed_everything"


def accept_exponents() -> None:
    """Make the parser read whole numbers such as 1e6 in configuration files, variables and parts of typed values."""
    for variable in list(os.environ):
        if re.match(rf"{PREFIX}_[A-Z]+__({'|'.join(SECTIONS)})__", variable, re.IGNORECASE):
            os.environ[variable] = whole_numbers(os.environ[variable])
    load = get_loader("yaml")
    if load is not _load_with_exponents:
        _LOADERS.append(load)
        set_loader("yaml", _load_with_exponents, exceptions=(yaml.YAMLError,))


_LOADERS: list[Any] = []  # the parser's own, below the one that reads exponents


def _load_with_exponents(stream: str) -> Any:
    return _LOADERS[-1](whole_numbers(stream))


def typed_options(words: list[str]) -> list[tuple[str, str | None]]:
    """Return the options on the command line in order, each with the word behind it, or None without one."""
    following = [*words[1:], "--"][: len(words)]
    found: list[tuple[str, str | None]] = []
    for word, after in zip(words, following, strict=True):
        if word.startswith("-c") and not word.startswith("--"):
            word = f"--config={word[2:]}" if len(word) > 2 else "--config"
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name, value if equals else None if after.startswith("--") else after))
    return found


def given_options(words: list[str], configs: list[Path]) -> set[str]:
    """Return the names of the options on the command line and in configuration files, as `data.env`."""
    given: set[str] = set()
    for name, value in typed_options(words):
        section, _, key = name.partition(".")
        if name in SECTIONS or key in GROUPS.get(section, ()):  # a whole section or group, or a file of one
            text = Path(value).read_text() if value is not None and _is_file(value) else value
            content = yaml.safe_load(text or "") or {}
            given |= {f"{name}.{option}" for option in (leaves(content) if name in SECTIONS else content)}
        parts = name.split(".")
        grouped = section in GROUPS and parts[1:2] and parts[1] in GROUPS[section]
        given.add(".".join(parts[: 3 if grouped else 2]))  # a name behind an option is part of its value
    for path in [path for path in configs if _is_file(str(path))]:
        for section, value in (yaml.safe_load(path.read_text()) or {}).items():
            given |= {f"{section}.{key}" for key in leaves(value)} if isinstance(value, dict) else {section}
    return given


def with_own_config(words: list[str]) -> list[str]:
    """Return the command line with the configuration of the run of `--ckpt_path`, unless a configuration is typed.

    Without a name and a configuration, `last` and `best` are checkpoints of the newest run.

    Raises:
        ConfigError: if there is no such checkpoint.
    """
    typed = dict(typed_options(words))
    path = typed.get("ckpt_path")
    if not path or "config" in typed or bundled_agent(path):
        return words
    words = list(words)
    if path in ("last", "best"):
        root = Path(typed.get("trainer.default_root_dir") or "runs")
        path = find_checkpoint(path, root / (typed.get("name") or "*"))
        words.append(f"--ckpt_path={path}")
    config = own_config(path)
    return [words[0], f"--config={config}", *words[1:]] if config else words


def environment_options(verb: str) -> dict[str, str]:
    """Return the options of a verb that environment variables set, each with the name of its variable.

    Configuration files and the command line win over the environment.
    """
    beginning = f"{PREFIX}_{verb.upper()}__"
    names = [name for name in os.environ if name.startswith(beginning)]
    return {name.removeprefix(beginning).lower().replace("__", "."): name for name in names}


def variables_without_verb() -> list[str]:
    """Return the environment variables that begin like those of options, but name no verb."""
    verbs = "|".join(verb.upper() for verb in TRAINER_VERBS)
    return [name for name in os.environ if re.match(rf"{PREFIX}_(?!(?:{verbs})__)", name)]


def bundled_configs() -> dict[str, Path]:
    """Return the configurations that come with the program, by name.

    They lie in the installed package, and beside it in a checkout, which need not be installed.
    """
    package = Path(bayes_rl.__file__).parent
    folder = next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def with_bundled_configs(words: list[str]) -> list[str]:
    """Return the command line with `--config NAME` replaced by the path of the bundled configuration `NAME`.

    Files come first: a value that is a file, or has a suffix, stays. A folder is no configuration: the current folder
    may hold the runs of this name.

    Raises:
        ConfigError: if a name is neither a file nor a bundled configuration.
    """
    found, after_option = [], False
    for word in words:
        option, name = re.fullmatch(r"(--config=|-c=?|)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
        if (option or after_option) and re.fullmatch(r"\w[\w-]*", name) and not Path(name).is_file():
            bundled = bundled_configs()
            if name not in bundled:
                problem = f"is neither a file nor a bundled configuration{did_you_mean(name, bundled)}"
                raise ConfigError("config", name, problem)
            word = f"{option}{bundled[name]}"
        after_option = word in ("--config", "-c")
        found.append(word)
    return found


def check_config(path: str) -> None:
    """Raise `ConfigError` if a file exists that is no YAML mapping, or names an option twice."""
    if not _is_file(path):
        return  # the parser reports it, or reads it as YAML text
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
