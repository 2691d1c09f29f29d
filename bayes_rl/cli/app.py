"""Verbs that train or play: `bayes-rl fit|validate|test|predict --config NAME`."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, Namespace
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from bayes_rl.agent.compilation import REPLAYED, check_capture
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli.arguments import (
    PREFIX,
    SECTIONS,
    accept_exponents,
    check_config,
    environment_options,
    given_options,
    typed_options,
    variables_without_verb,
    with_bundled_configs,
    with_own_config,
    with_whole_numbers,
)
from bayes_rl.cli.commands import TRAINER_VERBS
from bayes_rl.cli.option_conditions import check_effects
from bayes_rl.cli.parser_errors import PRECISIONS, format_parser_error, option_names
from bayes_rl.cli.process import command_of, end_with_parent, quiet_loading, share_cores, shortest, silence_warnings
from bayes_rl.cli.resume_rules import (
    FOR_ONE_COMMAND,
    apply_checkpoint_options,
    reached_limit,
    report_trainer_differences,
)
from bayes_rl.cli.saved_runs import SavedRun, find_checkpoint, read_saved_run, saved_trainer
from bayes_rl.cli.trainer_errors import one_line, place_error, shown, trainer_error
from bayes_rl.cli.user_modules import (
    check_modules,
    import_user_modules,
    module_hint,
    module_names,
    write_stack_trace,
)
from bayes_rl.cli.validation import check_trainer, check_values
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.errors import ConfigError, RunError, UserCodeError, check, did_you_mean
from bayes_rl.reporting.score_table import FILE_COLUMN, as_scores, score_table
from bayes_rl.training.callbacks.error_log import write_error_log
from bayes_rl.training.callbacks.run_lock import RunLock
from bayes_rl.training.callbacks.save_on_error import SaveOnError
from bayes_rl.training.callbacks.tensorboard_pages import TensorBoardPages, is_of_a_sweep
from bayes_rl.training.callbacks.uncertainty_picture import PICTURE
from bayes_rl.training.callbacks.video_writer import record_game
from bayes_rl.training.checkpoint_io import FULL, ON_FULL_DISK, AtomicCheckpointIO
from bayes_rl.training.export import is_export, load_weights, read_export
from bayes_rl.training.preflight import check_intervals, check_monitors, check_networks, check_room
from bayes_rl.training.rank_strategy import RankStrategy
from bayes_rl.training.run_callbacks import OF_ONE_RANK, make_callbacks
from bayes_rl.training.run_directory import next_version, run_directory, run_of
from bayes_rl.training.tensorboard_log import TensorBoardLog
from bayes_rl.types import AGENT_ARGUMENTS
from bayes_rl.utils.files import write_atomic
from bayes_rl.utils.ranks import num_ranks
from bayes_rl.utils.stop_signals import STOP

# A deprecation inside Lightning 2.6.6.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


EXACT = {"exit_on_error": False, "allow_abbrev": False, "default_env": True, "env_prefix": PREFIX}
"""Options of the parser: it raises errors, which `main` prints, accepts no shortened option, and reads environment
variables such as `BAYES_RL_FIT__TRAINER__MAX_EPOCHS`."""


WITHOUT_INFLUENCE = ("trainer.default_root_dir", "trainer.enable_", "trainer.logger", "trainer.log_every_n_steps")
"""Beginnings of the options that have no influence on an agent."""


LOST = "connection|peer|socket|timed out"
"""Pattern of torch's errors when another rank is gone."""


class BayesCLI(LightningCLI):
    """Lightning's command line for one agent and one data module.

    Runs are written to `runs/NAME/version_K`, the model takes its shapes from the data, and `fit` ends with a table of
    scores.
    """

    model: VariationalActorCritic
    datamodule: ReplayDataModule
    _saved: SavedRun | None = None  # of the checkpoint

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the verbs of `parser_kwargs`, each with the arguments of the trainer's method that are no options."""
        return {verb: skipped for verb, skipped in LightningCLI.subcommands().items() if verb in self.parser_kwargs}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, and the defaults of the trainer."""
        parser.add_argument("--name", type=str, default="", help="Name of the run, a directory below runs/.")
        help = "A save that finds no room on the disk ends the run, or is skipped."
        parser.add_argument("--on_full_disk", type=Literal[ON_FULL_DISK], default="stop", help=help)
        text = "Resume from a checkpoint although options differ from it."
        parser.add_argument("--allow_overrides", type=bool, nargs="?", const=True, default=False, help=text)
        text = "Your own module, or a list of modules, that registers environments, encoders or the like."
        parser.add_argument("--import_modules", type=list[str] | str | None, default=None, help=text)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.set_defaults(
            {"trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 100, "trainer.max_epochs": 10}
        )

    def _options(self) -> Any:
        return self.config[self.config.subcommand]

    def _configs(self) -> list[Path]:
        """Return the configuration files that were typed."""
        return [] if self._resumes_alone else [Path(str(c)) for c in self._options().get("config") or []]

    def _run_directory(self) -> Path:
        options = self._options()
        config = options.config[0] if options.get("config") else None
        games = options.data.tasks or [options.data.env]
        name = options.name or (Path(str(config)).stem if config else "-".join(games).replace("/", "-"))
        return Path(options.trainer.default_root_dir or "runs") / name

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint, and take the model's options from it; an option that contradicts it is an error."""
        options = self._options()
        path = options.get("ckpt_path")
        if path is None:
            if self.config.subcommand != "fit":
                raise ConfigError("ckpt_path", None, "names no agent, and this verb plays one; nearest: 'last'")
            return
        options.ckpt_path = find_checkpoint(path, self._run_directory())
        if self.config.subcommand == "fit" and is_export(options.ckpt_path):
            raise ConfigError("ckpt_path", path, "holds no replay and no optimizer; resume from a checkpoint")
        self._saved = read_saved_run(options.ckpt_path, AGENT_ARGUMENTS)
        typed, fitting = given_options(self._words, []), self.config.subcommand == "fit"
        given = given_options(self._words, self._configs()) | {*environment_options(self.config.subcommand)}
        apply_checkpoint_options(options, self._saved.options, typed, given, fitting)
        check_modules(options.data, self._imported)
        report_trainer_differences(saved_trainer(options.ckpt_path), options.trainer, fitting)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, and check what the types of the options cannot express.

        A run that is resumed by its checkpoint alone continues with its own configuration.
        """
        words = sys.argv[1:] if args is None else args
        assert isinstance(words, list)
        words = with_whole_numbers(with_bundled_configs(words))
        self._words = with_own_config(words)
        self._resumes_alone = self._words != words
        for name, value in typed_options(self._words):
            if name == "config" and value:
                check_config(value)
        run_config = dict(typed_options(self._words))["config"] if self._resumes_alone else None
        self._imported = import_user_modules(self._words, run_config)
        self.config = parser.parse_args(self._words)
        options = self._options()
        options.import_modules = module_names(self._imported)
        self._check_environment()
        seed = options.seed_everything
        if isinstance(seed, bool) or seed is None or not 0 <= seed < 2**32:
            raise ConfigError("seed_everything", seed, "must be a whole number from 0 to 4294967295")
        self._check_sections()
        check_trainer(options.trainer)
        self._check_name(options.name)
        typed = given_options(self._words, [])
        if self._resumes_alone and "trainer.default_root_dir" not in typed:
            options.trainer.default_root_dir = None  # the run may have been moved, to another machine too
        for key in AGENT_ARGUMENTS:
            if f"model.{key}" in typed:  # a saved configuration may hold them
                raise ConfigError(f"model.{key}", options.model[key], "follows from the data; drop it")
        if options.data.tasks and "data.env" in typed:
            raise ConfigError("data.env", options.data.env, "is not played beside --data.tasks; drop one of them")

    def _check_sections(self) -> None:
        """Raise `ConfigError` if a section is no mapping, or holds a value that is wrong."""
        options = self._options()
        for section, cls in (("trainer", Trainer), ("model", VariationalActorCritic), ("data", ReplayDataModule)):
            if not isinstance(options[section], Namespace):
                raise ConfigError(section, options[section], "is no mapping of options")
            for part in (options[section], *vars(options[section]).values()):
                if isinstance(part, Namespace):
                    part.pop("__path__", None)  # of a file that is the value of a section or group; no option
            check_values(section, cls, options[section])

    def _check_environment(self) -> None:
        """Raise `ConfigError` at an environment variable that names no verb or no option."""
        for variable in variables_without_verb():
            names = [f"{PREFIX}_{verb}__{name}" for verb in TRAINER_VERBS for name in option_names()]
            names = [name.replace(".", "__").upper() for name in names]
            nearest = difflib.get_close_matches(variable, names, n=1, cutoff=0)[0]
            problem = f"is set for no verb (environment variable {variable}); nearest: {nearest!r}"
            raise ConfigError(variable.removeprefix(f"{PREFIX}_").lower(), os.environ[variable], problem)
        for name, variable in environment_options(self.config.subcommand).items():
            known = option_names() if name not in self._options() else ()
            problem = f"names no option{did_you_mean(name, known)} (environment variable {variable})"
            check(not known, name, os.environ[variable], problem)

    def _check_name(self, name: str) -> None:
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        short = all(len(os.fsencode(part)) <= 200 for part in Path(name).parts)
        if not (inside and short and name.isprintable()):
            raise ConfigError("name", name, "must be the short name of a directory below runs/")

    def _set_seed(self) -> None:
        """Seed all generators without a message: an error found later should be the only line."""
        seed_everything(self._options().seed_everything, workers=True, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Set the model's shapes, which the data decides."""
        options = self._options()
        data = ReplayDataModule(**options.data.clone().as_dict())
        if self._saved is not None:
            for key in ("observation_shape", "num_actions", "num_categories"):
                value, saved = getattr(data, key), self._saved.options["model"][key]
                if value != (tuple(saved) if key == "observation_shape" else saved):
                    problem = f"has {key} {value}; the checkpoint's agent was trained with {saved}"
                    raise ConfigError("data.env", data.settings.env, problem)
        for key, decided in data.agent_arguments().items():
            options.model[key] = decided
        if data.num_tasks > 1 and self.config.subcommand == "fit":
            self._plan_epochs(data)
        resuming = self._saved is not None and self.config.subcommand == "fit"
        if resuming and (line := reached_limit(self._saved, options.trainer)):  # type: ignore[arg-type]
            print(f"{options.ckpt_path}: {line}")
            raise SystemExit(0)
        check_networks(options.model.as_dict())
        self._check_effects()
        options.weights_only = True  # a checkpoint from elsewhere executes nothing
        if "verbose" in options:
            options.verbose = False  # `score_table` is printed instead

    def _check_effects(self) -> None:
        """Refuse typed options that have no effect, and name those of configurations that were chosen."""
        options, verb, typed = self._options(), self.config.subcommand, given_options(self._words, [])
        configured = given_options([], self._configs()) | {*environment_options(verb)}
        chosen = self._unusual({key for key in configured - typed if key in options})
        if line := check_effects(options, verb, typed, chosen):
            print(f"without effect in the configuration: {line}", file=sys.stderr)

    def _unusual(self, names: set[str]) -> set[str]:
        """Return those of some options whose values differ from the defaults of their classes."""
        options, verb = self._options(), self.config.subcommand
        usual: Any = self._parser(verb).get_defaults() if names else {}
        return {name for name in names if options[name] != usual.get(name)}

    def _plan_epochs(self, data: ReplayDataModule) -> None:
        """Plan as many epochs as the tasks take, unless fewer are configured, and a validation before training."""
        trainer, planned = self._options().trainer, data.curriculum.visits * data.curriculum.epochs
        given = given_options(self._words, [Path(str(c)) for c in self._options().get("config") or []])
        given |= {*environment_options("fit")}
        if "trainer.max_epochs" not in given:
            trainer.max_epochs = planned
        if trainer.max_epochs is None or not 0 <= trainer.max_epochs <= planned:
            problem = f"is not what the tasks take: {planned} epochs of --data.frames_per_epoch; drop it"
            raise ConfigError("trainer.max_epochs", trainer.max_epochs, problem)
        if "trainer.num_sanity_val_steps" not in given and not self._options().get("ckpt_path"):
            trainer.num_sanity_val_steps = data.num_tasks

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make the trainer, with the run's directory, logger, checkpoints and callbacks."""
        options = self._options()
        path = options.get("ckpt_path")
        if path and is_export(path):  # an export is loaded here, not by the trainer
            load_weights(self.model, read_export(path), path)
            self.config_init[self.config.subcommand].ckpt_path = None
        # A resumed run continues in its own directory.
        run = (run_of(path) if path else None) or next_version(self._run_directory())
        if self.config.subcommand != "fit":
            kwargs["logger"] = False  # playing games adds nothing to the curves of the run
        elif options.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLog(str(run.parent), name="", version=run.name, default_hp_metric=False)
        resuming = self.config.subcommand == "fit" and bool(options.get("ckpt_path"))
        if resuming and options.data.tasks:
            kwargs["num_sanity_val_steps"] = 0  # the run has validated its untrained agent
        kwargs["plugins"] = [AtomicCheckpointIO(options.on_full_disk, resuming), *self._plugins()]
        data = options.data
        epochs_per_task = round(data.curriculum.frames_per_task / data.frames_per_epoch) if data.tasks else None
        progress_bar = options.trainer.enable_progress_bar is not False
        pages = TensorBoardPages() if resuming else self._pages(run)
        self.trainer_defaults["callbacks"] = make_callbacks(run, epochs_per_task, progress_bar, pages)
        precision = options.trainer.precision
        if precision not in (None, "32", 32, *PRECISIONS):
            raise ConfigError("trainer.precision", precision, f"is none of {', '.join(PRECISIONS)}")
        self._check_place(run)
        if self._number_of_ranks() > 1:
            kwargs["strategy"] = RankStrategy()
        trainer = super().instantiate_trainer(**kwargs)
        forks = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
        problem = "starts processes of its own, which cannot share a replay; use auto"
        check(not forks, "trainer.strategy", options.trainer.strategy, problem)
        self._check_started_ranks(trainer.world_size)
        self._check_saved_ranks(trainer.world_size)
        if trainer.world_size > 1:
            self._prepare_ranks(trainer)
        if not getattr(trainer, "fast_dev_run", False):
            self.datamodule.directory = run / "replay"
        return trainer

    def _pages(self, run: Path) -> TensorBoardPages:
        """Return the writer of TensorBoard's pages, with the options that tell the run from others.

        These influence an agent, and they are typed, or in the environment, or their value in a configuration is not
        the default. The page begins with those beside the configuration. The options of a sweep's trial all come from
        one configuration: a default may be the value of the trial, so all of them are written.

        Args:
            run: directory of the run.
        """
        options, configs = self._options(), self._configs()
        typed = given_options(self._words, []) | {*environment_options(self.config.subcommand)}
        sections = tuple(f"{section}." for section in SECTIONS)
        given = {name for name in typed | given_options([], configs) if name.startswith(sections)}
        names = {name for name in given if name in options and not name.startswith(WITHOUT_INFLUENCE)}
        if not is_of_a_sweep(run.absolute()):
            names = (names & typed) | self._unusual(names - typed)
        values = {name: options[name] for name in sorted(names)}
        always = {"config": configs[0].stem if configs else "none", "seed_everything": options.seed_everything}
        return TensorBoardPages({**always, **values}, typed | {"seed_everything"})

    def _number_of_ranks(self) -> int:
        """Return the number of processes that Lightning makes of the options; 1 with a strategy of the user's."""
        options = self._options().trainer
        if options.strategy not in ("auto", "ddp"):
            return 1
        names = ("accelerator", "devices", "num_nodes", "strategy")
        return int(getattr(_AcceleratorConnector(**{name: options[name] for name in names}).strategy, "world_size", 1))

    def _ranks_option(self) -> tuple[str, Any]:
        """Return name and value of the option that decides the number of ranks."""
        trainer = self._options().trainer
        key = "num_nodes" if trainer.num_nodes > 1 else "devices"
        return f"trainer.{key}", trainer[key]

    def _check_started_ranks(self, ranks: int) -> None:
        """Raise `ConfigError` unless as many ranks are asked for as torchrun has started. Each would train alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        started, local = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        nearest = f"--trainer.devices {local} --trainer.num_nodes {started // local}"
        problem = f"is not what torchrun has started, {started} processes; nearest: {nearest}"
        check(started == ranks, *self._ranks_option(), problem)

    def _check_saved_ranks(self, ranks: int) -> None:
        """Raise `ConfigError` unless a resumed run has as many ranks as its checkpoint, or collects again."""
        saved = self._saved.ranks if self._saved is not None and self.config.subcommand == "fit" else ranks
        problem = (
            f"is not as many ranks as have saved {self._options().get('ckpt_path')}; nearest: {saved} ranks, "
            "or collect new replays with --data.refill_replay true"
        )
        check(saved == ranks or self._options().data.refill_replay, *self._ranks_option(), problem)

    def _prepare_ranks(self, trainer: Any) -> None:
        """Check that several processes can run the verb, and prepare this one of them."""
        options, verb = self._options(), self.config.subcommand
        check(verb != "predict", *self._ranks_option(), "is more than predict plays by; use 1")
        problem = "is not made for several ranks; use auto"
        check(isinstance(trainer.strategy, RankStrategy), "trainer.strategy", shown(options.trainer.strategy), problem)
        # A recorded graph would replay the reductions of gradients, which has never been tried.
        problem = f"records the update of one process, and this run has {trainer.world_size} ranks; use default"
        check(options.model.compile not in REPLAYED, "model.compile", options.model.compile, problem)
        self.datamodule.check_ranks(trainer.world_size, training=verb == "fit")
        share_cores(trainer.num_devices)
        if trainer.strategy.cluster_environment.creates_processes_externally:
            end_with_parent()
        if not trainer.is_global_zero:
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, OF_ONE_RANK)]

    def _check_place(self, run: Path) -> None:
        """Raise `ConfigError` unless the directory of the run can be made and written to."""
        place = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
        root, problem = self._options().trainer.default_root_dir, f"cannot be written to: {place} is "
        key, value = ("trainer.default_root_dir", str(root)) if root else ("name", os.path.relpath(run))
        check(place.is_dir(), key, value, problem + "a file")
        check(os.access(place, os.W_OK | os.X_OK), key, value, problem + "protected")
        check(os.statvfs(place).f_blocks > 0, key, value, problem + "no place for files")

    def instantiate_classes(self) -> None:
        """Make data, agent, and trainer; an error of a part of the trainer becomes one line."""
        with self._explained_errors():
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; an error of a part of the trainer becomes one line."""
        try:
            with self._explained_errors():
                super()._run_subcommand(subcommand)
        except BaseException:
            if isinstance(launcher := self.trainer.strategy.launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)
            raise

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Turn every error into one line, after the callback `SaveOnError` has saved what was learned.

        An error that an option of the trainer caused names the option. The stack trace of any other error is written
        to `error.log`.
        """
        try:
            yield
        except (ConfigError, RunError, ArgumentError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            if num_ranks() > 1 and isinstance(error, RuntimeError) and re.search(LOST, str(error), re.IGNORECASE):
                raise RunError("another rank has ended or cannot be reached; go on with --ckpt_path last") from error
            trainer, options = getattr(self, "trainer", None), self._options()
            run = run_directory(trainer) if trainer is not None else self._run_directory()
            explained = trainer_error(error, options.trainer) or place_error(error, options, run)
            saved = next((c.remark for c in getattr(trainer, "callbacks", ()) if isinstance(c, SaveOnError)), "")
            if explained is not None:
                raise ConfigError(explained.key, explained.value, explained.problem + saved) from error
            if trainer is None:
                raise  # the constructor of an environment or of the agent
            path = write_error_log(run, error)
            raise RunError(f"{one_line(error)}{saved}; the stack trace is in {path}") from error

    def _plugins(self) -> list[Any]:
        """Return the plugins of the option `trainer.plugins`."""
        plugins = self.config_init[self.config.subcommand].trainer.plugins
        return plugins if isinstance(plugins, list) else [plugins] if plugins else []

    def before_fit(self) -> None:
        """Check memory and disk, then lock the run's directory."""
        device, accumulated = self.trainer.strategy.root_device, self.trainer.accumulate_grad_batches
        check_capture(self.model.hparams["compile"], device, accumulated, self.model.hparams["network"]["bayesian"])
        check_intervals(self.trainer, self.datamodule)
        check_monitors(self.trainer, self.model, self.datamodule)
        check_room(self.trainer, self.model, self.datamodule)
        if self.datamodule.directory is not None:
            key = "ckpt_path" if self._options().get("ckpt_path") else "name"
            run = self.datamodule.directory.parent
            self.trainer.callbacks.insert(0, SaveOnError(run / "checkpoints/last.ckpt"))  # type: ignore[attr-defined]
            if self.trainer.is_global_zero:
                self.trainer.callbacks.append(RunLock(run, key))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Play the test games with the best checkpoint, and print scores and files."""
        trainer = self.trainer
        if getattr(trainer, "fast_dev_run", False):
            return
        run = run_directory(trainer)
        saved = [run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        best = next(
            (path for path in saved if path.is_file()), None
        )  # without a validation there is no best checkpoint
        with quiet_loading():  # the table names the checkpoint
            trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        if not trainer.is_global_zero:
            return
        scores = as_scores(trainer.callback_metrics, "test")
        run = Path(shortest(run))
        videos = [record_game(self.datamodule, self.model, task, run) for task in range(self.datamodule.num_tasks)]
        curve = {"learning curve": "learning_curve.png", "metrics": "metrics.npy"}  # written by validations
        curve["uncertainty"] = PICTURE.format("test")
        files = {
            "checkpoint": shortest(best) if best else "none",
            **{name: str(run / file) for name, file in curve.items() if (run / file).exists()},
            "video": ("\n" + " " * FILE_COLUMN).join(videos),  # one a line
            **self._curves(),
        }
        print(self._score_table(scores, files))

    def _curves(self) -> dict[str, str]:
        """Return where the loggers of this run have written, by the names of the loggers."""
        places: dict[str, str] = {}
        for logger in self.trainer.loggers:
            directory = getattr(logger, "log_dir", None)
            if directory and Path(directory).is_dir():
                place = shortest(directory)
                if isinstance(logger, TensorBoardLogger):
                    places["TensorBoard"] = f"{command_of('tensorboard', 'tensorboard.main')} --logdir {place}"
                else:
                    places[type(logger).__name__.removesuffix("Logger")] = place
        return places

    def after_validate(self) -> None:
        """Print the scores."""
        self._print_scores("val")

    def after_test(self) -> None:
        """Print the scores."""
        self._print_scores("test")

    def _score_table(self, scores: dict[str, float], files: dict[str, str]) -> str:
        data = self.datamodule
        tasks = data.curriculum.names if data.num_tasks > 1 else []
        return score_table(data.game, tasks, data.settings.sticky_actions, scores, files)

    def _print_scores(self, stage: str) -> None:
        scores = as_scores(self.trainer.callback_metrics, stage)
        files = {"checkpoint": str(self._options().ckpt_path)}
        picture = run_directory(self.trainer) / PICTURE.format(self.config.subcommand)
        if picture.is_file():
            files["uncertainty"] = shortest(picture)
        print(self._score_table(scores, files))


class _SaveConfig(SaveConfigCallback):
    """Callback that writes `config.yaml`: the options of the latest fit of a run, which the next fit resumes with."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and not self._path(trainer).exists():
            self._write(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Not before: options that end a resumed run at once must not be remembered.
        self._write(trainer)

    def _path(self, trainer: Any) -> Path:
        return run_directory(trainer) / "config.yaml"

    def _write(self, trainer: Any) -> None:
        if not trainer.is_global_zero:
            return
        config = self.config.clone()
        for key, value in FOR_ONE_COMMAND.items():
            config[key] = value
        text = self.parser.dump(config, skip_none=False)
        write_atomic(self._path(trainer), lambda file: file.write(text.encode()))


def run(args: ArgsType = None, cls: type[BayesCLI] = BayesCLI) -> BayesCLI:
    """Parse `args` (default: the command line) and run the subcommand.

    Args:
        args: words of the command line.
        cls: class of the command line.

    Raises:
        ConfigError: if an option is wrong; one line that names the option.
        ArgumentError: if the parser refuses an option or a file.
    """
    silence_warnings()
    share_cores()
    accept_exponents()
    words = sys.argv[1:] if args is None else args
    typed = words[:1] if isinstance(words, list) else []
    # Collecting the options of a verb takes a part of a second, so the parser learns those of the typed verb only.
    verbs = [verb for verb in TRAINER_VERBS if verb in typed] or TRAINER_VERBS
    with STOP.listening():
        return cls(
            VariationalActorCritic,
            ReplayDataModule,
            args=args,
            seed_everything_default=1,
            save_config_callback=_SaveConfig,
            auto_configure_optimizers=False,
            parser_kwargs={**EXACT, **dict.fromkeys(verbs, EXACT)},
        )


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Print an error of this block as one line.

    Wrong input exits with code 2, an error that ends a run with code 1.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except RunError as error:
        print(f"bayes-rl: error: {error}", file=sys.stderr)
        sys.exit(1)
    except (ConfigError, ArgumentError) as error:
        if started_rank() > 0 and num_ranks() == 1 and "TORCHELASTIC_RUN_ID" in os.environ:
            # All ranks that torchrun has started read the same words: rank 0 prints the error.
            sys.exit(2)
        print(f"bayes-rl: error: {error_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(f"bayes-rl: error: no room on the disk: {error}")


def started_rank() -> int:
    """Return the number of this process among those that Lightning, torchrun or SLURM has started, from 0."""
    return int(getattr(rank_zero_only, "rank", 0))


def error_line(error: ConfigError | ArgumentError) -> str:
    """Return an error of wrong input as one line; the stack trace of an error in a user's code goes to a file."""
    if isinstance(error, ArgumentError):
        return format_parser_error(error, option_names())
    trace = write_stack_trace(error, sys.argv[1:]) if isinstance(error, UserCodeError) else ""
    return f"{error}{module_hint(error)}{trace}"


def main() -> None:
    """Run the command line; print an error as one line. Of several ranks, the first one prints the rest."""
    if started_rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
    with errors_as_lines():
        run()
