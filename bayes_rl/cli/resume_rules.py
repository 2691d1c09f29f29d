"""Rules for a command that names a checkpoint: options that come from it, and options that may differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from bayes_rl.cli.saved_runs import SavedRun
from bayes_rl.errors import ConfigError
from bayes_rl.types import AGENT_ARGUMENTS
from bayes_rl.utils.settings import leaves

FIXED = {
    *("env", "env_kwargs", "observation", "channels", "grey"),
    *("num_envs", "frame_stack", "frames_per_epoch", "updates_per_step", "seed"),
    *("rules.frame_skip", "rules.sticky_actions", "rules.crop", "rules.max_episode_frames"),
    *("rules.full_action_space", "rules.auto_fire", "replay.capacity"),
    *("curriculum.frames_per_task", "curriculum.cycles", "curriculum.epsilon_at_switch", "curriculum.keep_replays"),
}
"""Data options that a resumed run cannot change: the state of environments, replay and counters depends on them."""


NETWORKS = {"tasks", "spaces_of", "curriculum.task_conditioning"}
"""Data options that decide the shape of the networks."""


LEARNING = {
    *("exploration", "posterior.num_draws", "consolidation.optimizer_at_switch", "consolidation.critic_at_switch"),
    *("objective.kl_temperature", "objective.bootstrap", "objective.tau", "objective.actor_loss"),
    *("objective.policy_temperature", "objective.entropy_weight", "objective.update_pairs"),
}
"""Model options that no saved state depends on; a resumed run may change them with `--allow_overrides`."""


GAMES = ("env", "tasks", "spaces_of")
"""Data options whose ids can have a module in front, as in `my_module:My-v0`."""


MOMENTARY = {"refill_replay", "evaluation.render", "evaluation.fps", "replay.device", "compile"}
"""Options that hold for one command, or change the speed alone: never taken from a checkpoint."""


FOR_ONE_COMMAND: dict[str, Any] = {"ckpt_path": None, "allow_overrides": False, "data.refill_replay": False}
"""Options that a run's configuration does not keep, with the values that it has in their place."""


DECISIVE: dict[str, tuple[object, ...]] = {
    "precision": (None, 32, "32", "32-true"),
    "deterministic": (None, False),
    "gradient_clip_val": (None, 0),
    "gradient_clip_algorithm": (None, "norm"),
    "accumulate_grad_batches": (None, 1),
}
"""Trainer options that results depend on, with the values that mean the default."""


def apply_checkpoint_options(
    options: Any, saved: dict[str, Any], typed: set[str], given: set[str], fitting: bool
) -> None:
    """Use the checkpoint's options; stop at typed options that differ.

    With `--allow_overrides`, typed options are used where the saved state allows it. Options of a configuration that a
    resumed run may change (`data.replay.n_step`, ...) are used as given, as are all options of the games that a trained
    agent plays.

    Args:
        options: of the subcommand, changed in place.
        saved: `model` and `data` of the checkpoint.
        typed: names of the options on the command line, as `data.env`.
        given: names of the options on the command line and in configuration files.
        fitting: whether a run is resumed; else a trained agent plays.

    Raises:
        ConfigError: naming the first typed option that contradicts the checkpoint.
    """
    broken: list[tuple[str, Any, str]] = []
    differing: list[tuple[str, Any, str]] = []
    for section, key, value, asked in _differences(options, saved):
        name = "seed_everything" if key == "seed" else f"{section}.{key}"
        binding = section == "model" or key in NETWORKS or (fitting and key in FIXED)
        if name in typed:
            line = (name, asked, f"{name}: {value} in the checkpoint, {asked} typed")
            if binding and not (section == "model" and key in LEARNING):
                broken.append(line)
            elif binding or fitting:
                differing.append(line)
        elif not binding and name in given:
            if fitting:
                print(f"{name}: {value} in the checkpoint, {asked} in the configuration, which is used")
        else:
            if name in given:
                print(f"from the checkpoint: {name} = {value} (the configuration has {asked})")
            options[section][key] = value
            if key == "seed":
                options.seed_everything = value
    _refuse(broken, differing, "allow_overrides" in typed and options.allow_overrides)


def _differences(options: Any, saved: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield section, key, saved value and present value of options that differ from the checkpoint's.

    Options that the data decides, and those that hold for one command, are left out.
    """
    for section, values in saved.items():
        for key, value in leaves(values).items():
            decided = section == "model" and key in AGENT_ARGUMENTS
            if not decided and key not in MOMENTARY and key in options[section]:
                asked = options[section][key]
                if not _same(value, asked) and not (key in GAMES and _same(_plain(value), _plain(asked))):
                    yield section, key, value, asked


def _refuse(broken: list[tuple[str, Any, str]], differing: list[tuple[str, Any, str]], allowed: bool) -> None:
    """Raise `ConfigError` at typed options that differ from the checkpoint, unless they are allowed and safe."""
    lines = "; ".join(line for _, _, line in [*broken, *differing])
    if broken:
        raise ConfigError(*broken[0][:2], f"contradicts the checkpoint ({lines}); drop it or start a new run")
    if differing and not allowed:
        problem = f"differs from the checkpoint ({lines}); --allow_overrides resumes with the typed options"
        raise ConfigError(*differing[0][:2], problem)
    if differing:
        print(lines.replace("; ", "\n"))


def report_trainer_differences(saved: dict[str, Any], now: Any, fitting: bool) -> None:
    """Print the trainer's options that differ from the run's configuration if results depend on them.

    Args:
        saved: the trainer's options in the run's configuration, empty without one.
        now: the trainer's options.
        fitting: whether a run is resumed; an agent that plays depends on `precision` only.
    """
    for key, usual in DECISIVE.items():
        before, after = (None if value in usual else value for value in (saved.get(key), now.get(key)))
        if saved and before != after and (fitting or key == "precision"):
            print(f"trainer.{key}: {saved.get(key)} in the run's config.yaml, {now.get(key)} now")


def reached_limit(saved: SavedRun, trainer: Any) -> str | None:
    """Return a line that says that a run has reached a limit of the trainer, with both numbers, or None.

    Args:
        saved: run that is resumed.
        trainer: options of the trainer.
    """
    number, seconds = "{} {} are trained and --trainer.{} is {}: nothing is left; nearest: {}", saved.seconds
    for key, done, unit in (("max_epochs", saved.epochs, "epochs"), ("max_steps", saved.updates, "updates")):
        limit = trainer[key]
        if limit is not None and 0 <= limit <= done:
            return number.format(done, unit, key, limit, done + 1)
    with contextlib.suppress(MisconfigurationException):  # the trainer refuses the value
        time_left = Timer(trainer.max_time).time_remaining()
        if time_left is not None and time_left <= seconds:
            return number.format(f"{seconds:.0f}", "seconds", "max_time", trainer.max_time, "a longer time")
    return None


def _plain(games: Any) -> Any:
    """Return ids of games without the modules in front, which may have been renamed."""
    ids = [str(game).rpartition(":")[2] for game in games] if isinstance(games, (list, tuple)) else games
    return ids.rpartition(":")[2] if isinstance(ids, str) else ids


def _same(saved: Any, asked: Any) -> bool:
    """Return whether two values of an option are equal; checkpoints hold tuples as lists."""
    plain = [list(value) if isinstance(value, tuple) else value for value in (saved, asked)]
    return bool(plain[0] == plain[1])
