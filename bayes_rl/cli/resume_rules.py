"""What a command that names a checkpoint takes from it, and what may differ."""

from __future__ import annotations

from typing import Any

from bayes_rl.errors import ConfigError
from bayes_rl.types import AGENT_ARGUMENTS

FIXED = {
    *("env", "env_kwargs", "num_envs", "frame_stack", "frame_skip", "sticky_actions", "crop", "max_episode_frames"),
    *("full_action_space", "auto_fire", "replay_capacity", "frames_per_epoch", "updates_per_step", "seed"),
    *("frames_per_task", "cycles", "epsilon_at_switch", "keep_replays"),
}
"""Data options that a resumed run cannot change: the state of environments, replay and counters depends on them."""


NETWORKS = {"tasks", "task_conditioning"}
"""Data options that decide what the networks are."""


LEARNING = {
    *("temperature", "draws", "exploration", "bootstrap", "tau", "actor_loss", "policy_temperature", "entropy_weight"),
    *("update_pairs", "optimizer_at_switch", "critic_at_switch"),
}
"""Model options that no saved state depends on; a resumed run may change them if that is said to be meant."""


MOMENTARY = {"refill_replay", "render", "fps", "replay_device", "compile"}
"""Options of one command only, and of how, not what, is computed: never taken from a checkpoint."""


DECISIVE: dict[str, tuple[object, ...]] = {
    "precision": (None, 32, "32", "32-true"),
    "deterministic": (None, False),
    "gradient_clip_val": (None, 0),
    "gradient_clip_algorithm": (None, "norm"),
    "accumulate_grad_batches": (None, 1),
}
"""Trainer options that results depend on, and values that say the same as none."""


def apply_checkpoint_options(
    options: Any, saved: dict[str, Any], typed: set[str], given: set[str], fitting: bool
) -> None:
    """Use the checkpoint's options; stop at typed ones that differ.

    With `--allow_overrides` typed options are used where the run does not break. Options of a configuration that a
    resumed run may change (`data.n_step`, ...) are used as given, and so are all that say what a trained agent plays.

    Args:
        options: of the subcommand, changed in place.
        saved: `model` and `data` of the checkpoint.
        typed: names of the options on the command line, as `data.env`.
        given: those and the ones of configuration files.
        fitting: whether a run goes on, rather than an agent plays.

    Raises:
        ConfigError: naming the first typed option that contradicts the checkpoint.
    """
    broken: list[tuple[str, Any, str]] = []
    differing: list[tuple[str, Any, str]] = []
    for section, values in saved.items():
        for key, value in values.items():
            asked = options[section].get(key)
            linked = section == "model" and key in AGENT_ARGUMENTS
            if linked or key in MOMENTARY or key not in options[section] or _same(value, asked):
                continue
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


def _refuse(broken: list[tuple[str, Any, str]], differing: list[tuple[str, Any, str]], allowed: bool) -> None:
    """Stop at typed options that differ from the checkpoint's: always where they break the run."""
    lines = "; ".join(line for _, _, line in [*broken, *differing])
    if broken:
        raise ConfigError(*broken[0][:2], f"contradicts the checkpoint ({lines}); drop it or start a new run")
    if differing and not allowed:
        problem = f"differs from the checkpoint ({lines}); --allow_overrides goes on with what is typed"
        raise ConfigError(*differing[0][:2], problem)
    if differing:
        print(lines.replace("; ", "\n"))


def report_trainer_differences(saved: dict[str, Any], now: Any, fitting: bool) -> None:
    """Name the trainer's options that are not the run's own although results depend on them.

    Args:
        saved: the trainer's options in the run's configuration, empty if it is lost.
        now: the trainer's options.
        fitting: whether a run goes on; an agent that plays depends on `precision` only.
    """
    for key, usual in DECISIVE.items():
        before, after = (None if value in usual else value for value in (saved.get(key), now.get(key)))
        if saved and before != after and (fitting or key == "precision"):
            print(f"trainer.{key}: {saved.get(key)} in the run's config.yaml, {now.get(key)} now")


def _same(saved: Any, asked: Any) -> bool:
    """Whether two values of an option are the same; checkpoints hold tuples as lists."""
    plain = [list(value) if isinstance(value, tuple) else value for value in (saved, asked)]
    return bool(plain[0] == plain[1])
