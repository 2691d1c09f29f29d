"""Conditions under which options have an effect: without it, a typed option is refused, a configured one is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, NamedTuple

from bayes_rl.bayes.likelihoods import LIKELIHOODS
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.bayes.priors import PRIORS
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import METHODS
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.envs.kinds import KINDS, find_kind
from bayes_rl.errors import ConfigError
from bayes_rl.networks.encoders import ENCODERS
from bayes_rl.networks.layer_factory import PLAIN

HAS_NO_EFFECT = "has no effect; it acts {}"


class Condition(NamedTuple):
    """Condition under which options have an effect.

    Attributes:
        names: of the options.
        holds: function of all options of a verb.
        text: condition in words, behind "it acts".
    """

    names: tuple[str, ...]
    holds: Callable[[Any], bool]
    text: str


def several_tasks(options: Any) -> bool:
    """Return whether a run has several tasks."""
    return bool(options.data.tasks)


def is_bayesian(options: Any) -> bool:
    """Return whether any layer is Bayesian."""
    return options.model.network.bayesian not in PLAIN


def has_process(options: Any) -> bool:
    """Return whether a Gaussian process stands beside the networks."""
    return bool(options.model.network.bayesian == "gaussian_process")


def is_natural(options: Any) -> bool:
    """Return whether the optimizer gives every weight a distribution."""
    return bool(options.model.optimizer.family == "ivon")


def in_group(section: str, *names: str) -> tuple[str, ...]:
    """Return the full names of options of a group, for example of `model.posterior`."""
    return tuple(f"{section}.{name}" for name in names)


def read_by_family(section: str, registry: Any, choice: str, *names: str) -> list[Condition]:
    """Return a condition for each of the options that some registered families ignore.

    Args:
        section: group of the options, for example `model.likelihood`.
        registry: of the families.
        choice: option of the group that names the family.
        names: options of the group.
    """

    def condition(name: str) -> Condition:
        readers = [family for family, made in registry.items() if name not in ignored(made)]

        def holds(options: Any) -> bool:
            return name not in ignored(registry[options[f"{section}.{choice}"]])

        return Condition((f"{section}.{name}",), holds, f"with --{section}.{choice} {either(readers)}")

    return [condition(name) for name in names]


def ignored(family: Any) -> tuple[str, ...]:
    """Return the settings that a family declares to ignore."""
    return getattr(family, "ignored_settings", ())


def either(words: Iterable[str]) -> str:
    """Return words as `a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def reads_rule(name: str) -> Condition:
    """Return the condition that some game of a run reads a rule of `data.rules`."""
    titles = dict.fromkeys(kind.title for kind in KINDS if name not in kind.ignored_rules)

    def holds(options: Any) -> bool:
        games = options.data.tasks or [options.data.env]
        return any(name not in find_kind(game).ignored_rules for game in games)

    return Condition((f"data.rules.{name}",), holds, f"in {either(titles)}")


def reads_consolidation(name: str) -> Condition:
    """Return the condition that the consolidation method reads one of its settings."""

    def holds(options: Any) -> bool:
        settings = ConsolidationSettings(**options.model.consolidation.as_dict())
        return name not in settings.method_class.ignored_settings(settings)

    def readers(strength: float) -> list[str]:
        names = [method for method in METHODS if METHODS[method] is not METHODS["none"]]
        made = {method: ConsolidationSettings(method, strength) for method in names}
        return [m for m, settings in made.items() if name not in settings.method_class.ignored_settings(settings)]

    condition = "" if readers(0.0) == readers(1.0) else " and --model.consolidation.ewc_lambda above 0"
    text = f"with --model.consolidation.method {either(readers(1.0))}{condition}"
    return Condition((f"model.consolidation.{name}",), holds, text)


def conditions() -> list[Condition]:
    """Return all conditions; they depend on the registered families, methods and kinds of environments."""
    of_every_weight = ("prior_precision", "init_log_var")
    of_layers = [field.name for field in fields(PosteriorSettings) if field.name not in of_every_weight]
    layers = "with Bayesian layers: --model.network.bayesian heads, trunk or all"
    return [
        Condition(
            in_group("data.epsilon", "start", "end", "decay_frames"),
            lambda o: o.model.exploration != "thompson",
            "with --model.exploration epsilon or both",
        ),
        Condition(
            ("data.epsilon.start",),
            lambda o: o.data.epsilon.decay_frames > 0,
            "with --data.epsilon.decay_frames above 0",
        ),
        Condition(
            in_group("data.draws", "start", "end", "decay_frames"),
            lambda o: o.model.exploration != "epsilon",
            "with --model.exploration thompson or both",
        ),
        Condition(
            ("data.draws.start",), lambda o: o.data.draws.decay_frames > 0, "with --data.draws.decay_frames above 0"
        ),
        Condition(
            ("data.replay.newest",), lambda o: o.data.replay.newest_share > 0, "with --data.replay.newest_share above 0"
        ),
        Condition(
            in_group("data.curriculum", "frames_per_task", "cycles", "task_conditioning", "keep_replays"),
            several_tasks,
            "with several --data.tasks",
        ),
        Condition(
            (
                "data.curriculum.epsilon_at_switch",
                *in_group("model.consolidation", "optimizer_at_switch", "critic_at_switch"),
            ),
            several_tasks,
            "with several --data.tasks",
        ),
        Condition(
            ("data.curriculum.epsilon_at_switch",),
            lambda o: o.model.exploration != "thompson" or o.data.draws.decay_frames > 0,
            "with --model.exploration epsilon or both, or --data.draws.decay_frames above 0",
        ),
        reads_rule("auto_fire"),
        reads_rule("full_action_space"),
        Condition(
            ("data.rules.full_action_space",),
            lambda o: not several_tasks(o),
            "with one game: several have all actions",
        ),
        Condition(
            ("model.objective.tau",), lambda o: o.model.objective.target == "ema", "with --model.objective.target ema"
        ),
        Condition(
            ("model.objective.policy_temperature",),
            lambda o: o.model.objective.actor_loss == "cross_entropy",
            "with --model.objective.actor_loss cross_entropy",
        ),
        Condition(
            in_group("model.posterior", *of_every_weight),
            lambda o: is_bayesian(o) or is_natural(o),
            f"{layers}; or with --model.optimizer.family ivon",
        ),
        Condition(
            ("model.objective.kl_temperature",),
            lambda o: is_bayesian(o) or is_natural(o) or has_process(o),
            f"{layers}; or with --model.network.bayesian gaussian_process, or --model.optimizer.family ivon",
        ),
        Condition(
            in_group("model.network", "random_features", "length_scale"),
            has_process,
            "with --model.network.bayesian gaussian_process",
        ),
        Condition(
            ("model.network.width",),
            lambda o: ENCODERS[o.model.network.encoder].needs_images,
            "with an encoder of images: nature, impala, minatar or pseudo_resnet",
        ),
        Condition(in_group("model.posterior", *of_layers), is_bayesian, layers),
        *read_by_family("model.posterior", POSTERIORS, "family", "size", "num_draws"),
        *read_by_family("model.posterior", PRIORS, "prior", "prior_precision"),
        *read_by_family("model.likelihood", LIKELIHOODS, "family", "noise_std", "value_range", "num_bins"),
        *(reads_consolidation(name) for name in METHODS["none"].ignored_settings(ConsolidationSettings())),
        Condition(
            in_group("model.optimizer", "adam_eps", "weight_decay"),
            lambda o: not is_natural(o),
            "with --model.optimizer.family adam",
        ),
        Condition(("model.optimizer.precision_rate",), is_natural, "with --model.optimizer.family ivon"),
        Condition(
            in_group("model.optimizer", "hold_frames", "decay_frames", "final_share"),
            lambda o: o.model.optimizer.schedule != "constant",
            "with --model.optimizer.schedule linear or cosine",
        ),
        Condition(
            ("trainer.gradient_clip_algorithm",),
            lambda o: bool(o.trainer.gradient_clip_val),
            "with --trainer.gradient_clip_val above 0",
        ),
        Condition(("data.refill_replay", "allow_overrides"), lambda o: bool(o.get("ckpt_path")), "with --ckpt_path"),
    ]


VERBS = {"data.evaluation.render": ("predict",), "data.evaluation.fps": ("fit", "predict")}
"""Options that act in some verbs only."""


def check_effects(options: Any, verb: str, typed: set[str], configured: set[str]) -> str:
    """Refuse a typed option that has no effect.

    Args:
        options: of the verb.
        verb: `fit`, `validate`, `test` or `predict`.
        typed: names of the options on the command line.
        configured: names of the options in configuration files with another value than the default.

    Returns:
        A line that names the configured options without an effect, empty if there are none.

    Raises:
        ConfigError: at a typed option that has no effect, naming the condition under which the option acts.
    """
    idle: dict[str, str] = {}
    for condition in conditions():
        names = [name for name in condition.names if name in typed | configured]
        if names and not condition.holds(options):
            idle |= {name: condition.text for name in names if name not in idle}
    idle |= {
        name: f"in the verb {either(verbs)}"
        for name, verbs in VERBS.items()
        if name in typed | configured and verb not in verbs
    }
    for name, text in idle.items():
        if name in typed and options[name] is not None:  # null takes a configured value back
            raise ConfigError(name, options[name], HAS_NO_EFFECT.format(text))
    return "; ".join(f"--{name} acts {text}" for name, text in idle.items())
