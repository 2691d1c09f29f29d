"""Input of the verb `sweep`: the space, and the options of all its fits."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, get_loader

from bayes_rl.cli import app
from bayes_rl.cli.arguments import accept_exponents, environment_options, given_options, typed_options
from bayes_rl.cli.parser_errors import option_names
from bayes_rl.errors import ConfigError, RunError, check, did_you_mean
from bayes_rl.sweep.run import run_sweep
from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import SEED, Space, SpaceError, parse_space
from bayes_rl.utils.settings import nested

OF_SWEEP = ("name", "trainer.default_root_dir", "ckpt_path", "allow_overrides", SEED)
"""Options of `fit` that a sweep sets itself."""

FIRST_SEED = 100
"""First of the seeds that `--seeds` counts. Options are chosen on other seeds than those that are reported."""


class _CheckedCLI(app.BayesCLI):
    """Command line that checks its options, and makes and runs nothing."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Check options of `fit`, by name.

        Raises:
            ConfigError: if an option is wrong.
            ArgumentError: if the parser refuses an option.
        """
        # Remarks on options without effect repeat those on the options of all trials.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            self.parse_arguments(self.parser, ["fit", "--config", json.dumps(nested(options))])
            self.before_instantiate_classes()

    def given(self) -> dict[str, Any]:
        """Return the options of `fit` that were typed, configured or set by environment variables, by name."""
        values = yaml.safe_load(self.parser.dump(self.config, skip_none=False))["fit"]
        names = given_options(self._words, self._configs()) | {*environment_options("fit")}
        return {name: _value(values, name) for name in sorted(names - {"config"})}


def _value(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = options[part]
    return options


def run(options: argparse.Namespace, words: list[str]) -> None:
    """Check the input, run the sweep and print its report.

    Args:
        options: of the verb.
        words: options of `fit` for all trials.
    """
    with app.errors_as_lines():
        run_sweep(make_sweep(options, words), f"{__name__}:{run_verb.__name__}", options.address)


def run_verb(words: list[str]) -> dict[str, float]:
    """Run `bayes-rl WORDS` in this process, and return the metrics of the test games.

    Raises:
        RunError: if the verb fails; its text is the line that the verb prints.
    """
    try:
        cli = app.run(words)
    except (ConfigError, ArgumentError) as error:
        raise RunError(app.error_line(error)) from error
    metrics = cli.trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith("test/")}


def make_sweep(options: argparse.Namespace, words: list[str]) -> Sweep:
    """Return the sweep of a command line.

    Args:
        options: of the verb.
        words: options of `fit` for all trials.

    Raises:
        ConfigError: if the space, or an option, is wrong.
        ArgumentError: if the parser of `fit` refuses an option.
    """
    space = read_space(options.space)
    _check_numbers(options, space)
    for name, value in typed_options(words):
        way_out = "type --output" if name != SEED else f"type --seeds, or list them in the space: {SEED}: {{grid: [1]}}"
        check(name not in OF_SWEEP, name, value, f"is set by the sweep; {way_out}")
    fit, given, validations = _check_fit(words, options.minutes)
    sweep = Sweep(
        directory=(options.output or Path("sweeps") / options.space.stem).absolute(),
        space=space,
        options=given,
        seeds=space.seeds or tuple(range(FIRST_SEED, FIRST_SEED + (options.seeds or 5))),
        draws=options.trials,
        validations=validations,
        threads=options.threads,
        gpus=options.gpus,
        pruning=not (options.no_pruning or space.grids),
        folder=Path.cwd(),
    )
    for name, values in space.options.items():
        for value in values.values:
            _check_value(fit, given, name, value)
    return sweep


def read_space(path: Path) -> Space:
    """Return the space in a file.

    Raises:
        ConfigError: if there is no such file, or an option or its values are wrong.
    """
    accept_exponents()
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = get_loader("yaml")(text)
    except FileNotFoundError:
        beside = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise SpaceError(str(path), f"does not exist{did_you_mean(str(path), beside)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpaceError(str(path), f"is no YAML mapping of options: {' '.join(str(error).split())}") from None
    names = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    for name in names:
        check(names.count(name) == 1, str(name), str(path), "names this option twice")
    if not isinstance(content, dict) or not content:
        raise SpaceError(str(path), "is no mapping of options; nearest: 'data.replay.n_step: {choice: [1, 3]}'")
    return parse_space(content, option_names())


def _check_numbers(options: argparse.Namespace, space: Space) -> None:
    """Raise `ConfigError` at options of the verb that are out of range."""
    for name, least in (("seeds", 1), ("trials", 1), ("threads", 1)):
        value = getattr(options, name)
        check(value is None or value >= least, name, value, f"must be at least {least}")
    check(options.seeds is None or not space.seeds, "seeds", options.seeds, f"stand in the space, as {SEED}; drop it")
    check(math.isfinite(options.gpus) and options.gpus >= 0, "gpus", options.gpus, "must be at least 0")
    minutes = options.minutes
    check(minutes is None or 0 < minutes < math.inf, "minutes", minutes, "must be a number greater than 0")


def _check_fit(words: list[str], minutes: float | None) -> tuple[_CheckedCLI, dict[str, Any], int | None]:
    """Check the options of all trials.

    Returns:
        The command line, the options by name, and the number of validations of a fit, None for equal minutes.

    Raises:
        ConfigError: if an option is wrong, or the options do not say how long a fit is.
        ArgumentError: if the parser refuses an option.
    """
    fit = cast(_CheckedCLI, app.run(["fit", *words], _CheckedCLI))
    given, trainer = fit.given(), fit.config.fit.trainer
    limit = trainer.limit_val_batches
    check(limit is None or limit > 0, "trainer.limit_val_batches", limit, "leaves no validation to score a fit by")
    if minutes is not None:
        seconds = round(60 * minutes)
        limit = f"{seconds // 86400:02}:{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        given |= {"trainer.max_time": limit, "trainer.max_epochs": -1}
        fit.check(given)
        return fit, given, None
    for name, usual in (("max_time", None), ("max_steps", -1)):
        problem = "ends fits at different frames; use --trainer.max_epochs or, for equal minutes, --minutes"
        check(trainer[name] in (None, usual), f"trainer.{name}", trainer[name], problem)
    interval = trainer.val_check_interval
    problem = "adds validations within an epoch, and a sweep compares those at the ends of epochs; drop it"
    usual = interval is None or (isinstance(interval, float) and interval == 1)  # the whole number 1 is one update
    check(usual, "trainer.val_check_interval", interval, problem)
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    validations = epochs // every if epochs and every else 0
    check(validations > 0, "trainer.max_epochs", epochs, "must be a number, and long enough for a validation")
    return fit, given, validations


def _check_value(fit: _CheckedCLI, given: Mapping[str, Any], name: str, value: object) -> None:
    """Raise `ConfigError` or `ArgumentError` if an option of the space cannot have a value."""
    try:
        fit.check({**given, name: value})
    except ConfigError as error:
        if error.key == name:  # other errors may depend on another option of the space
            raise
