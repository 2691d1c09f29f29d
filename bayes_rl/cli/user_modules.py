"""Modules of a user's own, imported before anything else is looked up."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bayes_rl.bayes.likelihoods import LIKELIHOODS
from bayes_rl.bayes.posteriors.base import POSTERIORS
from bayes_rl.bayes.priors import PRIORS
from bayes_rl.cli.arguments import environment_options, typed_options
from bayes_rl.cli.saved_runs import own_config
from bayes_rl.continual.base import METHODS
from bayes_rl.envs.kinds import MissingModuleError, import_user_module, module_of
from bayes_rl.errors import ConfigError, UserCodeError
from bayes_rl.networks.encoders import ENCODERS

OPTION = "import_modules"

ENVIRONMENTS = ("data.env", "data.tasks")
"""Options whose ids can have a module in front."""

REGISTRIES = (ENCODERS, POSTERIORS, PRIORS, LIKELIHOODS, METHODS)
"""Registries that a user's module can extend."""


class NamedModule(NamedTuple):
    """Module that an option names.

    Attributes:
        name: of the module.
        key: option that names the module.
        value: of the option.
        config: configuration that holds the option; empty for a typed option.
    """

    name: str
    key: str
    value: object
    config: str


def import_user_modules(words: list[str], run_config: str | None = None) -> list[NamedModule]:
    """Import the modules that environment variables, configurations and a command line name, and return them.

    The modules of every `import_modules` add up. An id such as `my_module:My-v0` in `data.env` and `data.tasks` names a
    module too; of these options the last value counts. If any module or class is named, the current folder is
    searched too, as Python does for a script.

    Args:
        words: of the command line, with the configuration of a resumed run.
        run_config: value of `--config` that is the configuration of a resumed run. A module that only this
            configuration names, and that does not exist any more, is left out if other modules are typed.

    Raises:
        ConfigError: if there is no such module, or the option is no list of names.
        UserCodeError: if a module raises an error.
    """
    named = list(_named_modules(words))
    texts = [*words, *(content for name, value in typed_options(words) if name == "config" for content in _read(value))]
    if named or any("class_path" in text for text in texts):
        sys.path.insert(0, os.getcwd())
    imported = []
    for module in named:
        of_run = run_config is not None and module.config == run_config
        try:
            import_user_module(module.name, module.key, module.value)
        except MissingModuleError as error:
            if not of_run:
                raise
            others = [other for other in named if other.key == OPTION and other.config != run_config]
            if module.key == OPTION and others:
                print(f"the run's config.yaml names the module {module.name!r}, which is not found and left out")
                continue
            value = "NAME" if module.key == OPTION else str(module.value).replace(f"{module.name}:", "NAME:")
            way_out = f"the run's config.yaml names it; if it has another name now, type --{module.key} {value!r}"
            raise ConfigError(error.key, error.value, f"{error.problem}; {way_out}") from None
        else:
            imported.append(module)
    return imported


def module_names(modules: list[NamedModule]) -> str | list[str] | None:
    """Return the value of `import_modules` that a run's configuration keeps: all names from all places."""
    names = list(dict.fromkeys(module.name for module in modules if module.key == OPTION))
    return names[0] if len(names) == 1 else names or None


def import_modules_of_run(checkpoint: str, words: list[str]) -> None:
    """Import the modules that the configuration of a checkpoint's run and a typed `--import_modules` name."""
    config = own_config(checkpoint)
    import_user_modules(["export", *([f"--config={config}"] if config else []), *words], config)


def check_modules(options: Any, imported: list[NamedModule]) -> None:
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
        if module and module not in {other.name for other in imported}:
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


def _named_modules(words: list[str]) -> list[NamedModule]:
    """Return the modules that are named, in the order of the parser: variables, then the command line from the left."""
    modules: list[NamedModule] = []
    of_envs: dict[str, list[NamedModule]] = {}
    for key, value, config in _values(words):
        if key == OPTION:
            modules += _in_modules(value, config)
        else:
            of_envs[key] = _in_envs(key, value, config)
    return [*modules, *(module for named in of_envs.values() for module in named)]


def _values(words: list[str]) -> Iterator[tuple[str, object, str]]:
    """Yield option, value and configuration of every place that can name modules."""
    verb = words[0] if words else ""
    for name, variable in environment_options(verb).items():
        if name in (OPTION, *ENVIRONMENTS):
            yield name, _parse_value(name, os.environ[variable]), ""
    for name, value in typed_options(words):
        if name in ("config", "data"):
            for text in _read(value):
                content = _parse(text)
                options = {"data": content} if name == "data" else content
                yield from _in_config(options, value or "")
        elif name in (OPTION, *ENVIRONMENTS):
            yield name, _parse_value(name, value or ""), ""


def _in_config(options: object, config: str) -> Iterator[tuple[str, object, str]]:
    if not isinstance(options, Mapping):
        return  # the parser reports it
    yield OPTION, options.get(OPTION), config
    data = options.get("data")
    for option in ENVIRONMENTS:
        key = option.removeprefix("data.")
        if isinstance(data, Mapping) and key in data:
            yield option, data[key], config


def _in_modules(value: Any, config: str) -> list[NamedModule]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(OPTION, value, "must be the name of a module, or a list of names")
    return [NamedModule(name, OPTION, value, config) for name in names]


def _in_envs(key: str, value: object, config: str) -> list[NamedModule]:
    envs = [env for env in (value if isinstance(value, list) else [value]) if isinstance(env, str)]
    return [NamedModule(module_of(env), key, value, config) for env in envs if module_of(env)]


def _parse_value(key: str, value: str) -> object:
    return value if key == "data.env" else _parse(value)  # YAML reads `my_module:` as a mapping


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
