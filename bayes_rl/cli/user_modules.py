"""Modules of a user's own, imported before anything else is looked up."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bayes_rl.bayes.likelihoods import LIKELIHOODS
from bayes_rl.bayes.posteriors.base import POSTERIORS
from bayes_rl.bayes.priors import PRIORS
from bayes_rl.cli.arguments import typed_options
from bayes_rl.cli.saved_runs import own_config
from bayes_rl.continual.base import METHODS
from bayes_rl.envs.kinds import import_user_module, module_of
from bayes_rl.errors import ConfigError, UserCodeError
from bayes_rl.networks.encoders import ENCODERS

OPTION = "import_modules"

REGISTRIES = (ENCODERS, POSTERIORS, PRIORS, LIKELIHOODS, METHODS)
"""Registries that a user's module can extend."""


def import_user_modules(words: list[str]) -> set[str]:
    """Import the modules that a command line and its configurations name, and return their names.

    `import_modules` names modules, and so does an id such as `my_module:My-v0` in `data.env` and `data.tasks`. If any
    module or class is named, the current folder is searched too, as Python does for a script.

    Args:
        words: of the command line, with the configuration of a resumed run.

    Raises:
        ConfigError: if there is no such module, or the option is no list of names.
        UserCodeError: if a module raises an error.
    """
    named = list(_named_modules(words))
    texts = [*words, *(content for name, value in typed_options(words) if name == "config" for content in _read(value))]
    if named or any("class_path" in text for text in texts):
        sys.path.insert(0, os.getcwd())
    for name, key, value in named:
        import_user_module(name, key, value)
    return {name for name, _, _ in named}


def import_modules_of_run(checkpoint: str, words: list[str]) -> None:
    """Import the modules that the configuration of a checkpoint's run and a typed `--import_modules` name."""
    config = own_config(checkpoint)
    import_user_modules(["export", *([f"--config={config}"] if config else []), *words])


def check_modules(options: Any, imported: set[str]) -> None:
    """Check that neither the command line nor a configuration left out the module of an environment.

    A checkpoint from elsewhere must not decide what is imported.

    Args:
        options: of the section `data`, with those of the checkpoint.
        imported: modules that the command line and its configurations name.

    Raises:
        ConfigError: if only the checkpoint names a module.
    """
    for env in [options.env, *(options.tasks or [])]:
        module = module_of(env)
        problem = f"names a module that only the checkpoint names; to import it, add --{OPTION} {module}"
        if module and module not in imported:
            raise ConfigError("data.env", env, problem)


def module_hint(error: ConfigError) -> str:
    """Return how to bring a name of one's own, if the error is that a registry lacks a name; else an empty string."""
    unknown = any(error.key == registry.key for registry in REGISTRIES) and "is not one of" in error.problem
    return f"; one of your own: --{OPTION} MODULE" if unknown else ""


def write_stack_trace(error: UserCodeError, words: list[str]) -> str:
    """Write the stack trace of an error in a user's code to `error.log`, and return a clause that names the file.

    Args:
        error: whose cause is the user's error.
        words: of the command line, which may name the directory of the runs.
    """
    path = Path(dict(typed_options(words)).get("trainer.default_root_dir") or "runs") / "error.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error.__cause__)), encoding="utf-8")
    except OSError as reason:
        return f"; its stack trace could not be written to {path}: {reason.strerror}"
    return f"; its stack trace is in {path}"


def _named_modules(words: list[str]) -> Iterator[tuple[str, str, object]]:
    """Yield the name of each module, the option that names the module, and the option's value."""
    for name, value in typed_options(words):
        if name == "config":
            for text in _read(value):
                yield from _in_config(text)
        elif name in (OPTION, "data.env", "data.tasks"):
            yield from _in_option(name, _parse(value or ""))


def _in_config(text: str) -> Iterator[tuple[str, str, object]]:
    config = _parse(text)
    if not isinstance(config, Mapping):
        return  # the parser reports it
    yield from _in_option(OPTION, config.get(OPTION))
    data = config.get("data")
    if isinstance(data, Mapping):
        for key in ("env", "tasks"):
            yield from _in_option(f"data.{key}", data.get(key))


def _in_option(key: str, value: object) -> Iterator[tuple[str, str, object]]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for entry in values:
        if key == OPTION:
            if not isinstance(entry, str):
                raise ConfigError(key, value, "must be the name of a module, or a list of names")
            yield entry, key, value
        elif isinstance(entry, str) and module_of(entry):
            yield module_of(entry), key, value


def _read(value: str | None) -> list[str]:
    """Return the text of a configuration: of a file, or the value itself; nothing if it cannot be read."""
    try:
        return [Path(value).read_text(encoding="utf-8") if value and Path(value).is_file() else value or ""]
    except (OSError, ValueError):  # the parser reports it, or reads YAML text that no file can be named
        return [value or ""]


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # the parser reports it
        return None
