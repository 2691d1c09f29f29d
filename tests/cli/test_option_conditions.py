"""Options without an effect: refused if typed, named if configured."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning import Trainer

from bayes_rl.cli.option_conditions import VERBS, conditions
from tests.helpers.command_line import ROOT, error_of, run
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

CARTPOLE = [
    f"--config={ROOT / 'tests/configs/cartpole.yaml'}",
    "--data.replay.capacity=2000",
    "--data.replay.min_size=100",
]
EWC = ["--model.consolidation.method=ewc", "--model.consolidation.consolidate_every=9"]
HISTOGRAM = ["--model.likelihood.family=hl_gauss"]
PROCESS = ["--model.network.bayesian=gaussian_process", "--model.network.prior_function_scale=1"]
PLAIN = ["--model.network.bayesian=none"]

IDLE: dict[str, tuple[list[str], str]] = {
    "data.epsilon.start=0.5": (["--model.exploration=thompson"], "--model.exploration epsilon or both"),
    "data.epsilon.end=0.5": (["--model.exploration=thompson"], "--model.exploration epsilon or both"),
    "data.epsilon.decay_frames=5": (["--model.exploration=thompson"], "--model.exploration epsilon or both"),
    "data.draws.start=0.5": (["--model.exploration=epsilon"], "--model.exploration thompson or both"),
    "data.draws.end=0.5": (["--model.exploration=epsilon"], "--model.exploration thompson or both"),
    "data.draws.decay_frames=5": (["--model.exploration=epsilon"], "--model.exploration thompson or both"),
    "data.draws.start=0.7": (["--model.exploration=both"], "--data.draws.decay_frames above 0"),
    "data.epsilon.start=0.7": (["--data.epsilon.decay_frames=0"], "--data.epsilon.decay_frames above 0"),
    "data.replay.newest=9": ([], "--data.replay.newest_share above 0"),
    "data.rules.auto_fire=true": ([], "in an Atari game"),
    "data.rules.full_action_space=false": ([], "in an Atari game"),
    "data.curriculum.frames_per_task=800": ([], "several --data.tasks"),
    "data.curriculum.cycles=1": ([], "several --data.tasks"),
    "data.curriculum.keep_replays=false": ([], "several --data.tasks"),
    "data.curriculum.task_conditioning=none": ([], "several --data.tasks"),
    "data.curriculum.epsilon_at_switch=continue": ([], "several --data.tasks"),
    "data.curriculum.epsilon_at_switch=restart": (
        ["--data.tasks=[CartPole-v1, Acrobot-v1]", "--model.exploration=thompson"],
        "--data.draws.decay_frames above 0",
    ),
    "data.evaluation.render=human": ([], "in the verb predict"),
    "data.refill_replay=true": ([], "--ckpt_path"),
    "allow_overrides=true": ([], "--ckpt_path"),
    "model.consolidation.optimizer_at_switch=keep": ([], "several --data.tasks"),
    "model.consolidation.critic_at_switch=reset": ([], "several --data.tasks"),
    "model.consolidation.fisher=empirical": ([], "--model.consolidation.method ewc, online_ewc or vcl"),
    "model.consolidation.fisher_samples=9": ([], "--model.consolidation.method ewc, online_ewc or vcl"),
    "model.consolidation.fisher_newest=0.5": ([], "--model.consolidation.method ewc, online_ewc or vcl"),
    "model.consolidation.fisher_norm=none": ([], "--model.consolidation.method ewc, online_ewc or vcl"),
    "model.consolidation.protected_networks=actor": ([], "--model.consolidation.method ewc, online_ewc or vcl"),
    "model.consolidation.ewc_lambda=0": ([], "--model.consolidation.method ewc, online_ewc or vcl"),
    "model.consolidation.online_decay=0.5": (EWC, "--model.consolidation.method online_ewc"),
    "model.consolidation.fisher_samples=8": (
        [*EWC, "--model.consolidation.ewc_lambda=0"],
        "--model.consolidation.ewc_lambda above 0",
    ),
    "model.posterior.size=3": ([], "--model.posterior.family low_rank or members"),
    "model.posterior.num_draws=3": (["--model.posterior.family=members"], "--model.posterior.family low_rank"),
    "model.posterior.prior_precision=3": (["--model.posterior.prior=log_uniform"], "--model.posterior.prior gaussian"),
    "model.posterior.init_log_var=-8": (PLAIN, "--model.network.bayesian heads, trunk or all"),
    "model.posterior.family=low_rank": (PLAIN, "--model.network.bayesian heads, trunk or all"),
    "model.objective.kl_temperature=0.5": (PLAIN, "--model.network.bayesian heads, trunk or all"),
    "model.network.random_features=64": ([], "--model.network.bayesian gaussian_process"),
    "model.network.length_scale=2": ([], "--model.network.bayesian gaussian_process"),
    "model.network.width=0.5": ([], "an encoder of images: nature, impala, minatar or pseudo_resnet"),
    "model.objective.tau=0.5": (
        ["--model.objective.target=other", "--model.network.shared_trunk=false"],
        "--model.objective.target ema",
    ),
    "model.objective.policy_temperature=0.5": (
        ["--model.objective.actor_loss=dpg"],
        "--model.objective.actor_loss cross_entropy",
    ),
    "model.likelihood.noise_std=0.5": (
        HISTOGRAM,
        "--model.likelihood.family gaussian, learned_gaussian or return_gaussian",
    ),
    "model.likelihood.num_bins=21": ([], "--model.likelihood.family hl_gauss or two_hot"),
    "model.likelihood.value_range=[-3,3]": ([], "--model.likelihood.family hl_gauss or two_hot"),
    "model.optimizer.adam_eps=1e-3": ([*PLAIN, "--model.optimizer.family=ivon"], "--model.optimizer.family adam"),
    "model.optimizer.weight_decay=0.1": ([*PLAIN, "--model.optimizer.family=ivon"], "--model.optimizer.family adam"),
    "model.optimizer.precision_rate=0.1": ([], "--model.optimizer.family ivon"),
    "model.optimizer.hold_frames=9": ([], "--model.optimizer.schedule linear or cosine"),
    "model.optimizer.decay_frames=9": ([], "--model.optimizer.schedule linear or cosine"),
    "model.optimizer.final_share=0.5": ([], "--model.optimizer.schedule linear or cosine"),
    "trainer.gradient_clip_algorithm=value": (
        ["--trainer.gradient_clip_val=0"],
        "--trainer.gradient_clip_val above 0",
    ),
}
"""Typed option to options beside it, and the condition that the error names."""


FIRST = {condition: option for option, (_, condition) in reversed(IDLE.items())}.values()
"""The first option of each condition in words."""
SAME_WORDS = [f"data.curriculum.epsilon_at_switch={word}" for word in ("continue", "restart")]
SAME_WORDS += ["model.objective.kl_temperature=0.5"]
"""Options of further conditions, whose words are those of others."""


@pytest.mark.parametrize("option", slow_but(IDLE, *FIRST, *SAME_WORDS))
@pytest.mark.usefixtures("not_trained")
def test_a_typed_option_without_effect_is_refused_with_its_condition(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others, condition = IDLE[option]
    line = error_of(monkeypatch, capsys, "fit", *CARTPOLE, *others, f"--{option}")
    assert line.startswith(f"bayes-rl: error: --{option.partition('=')[0]}: ")
    assert "has no effect; it acts " in line
    assert condition in line.partition("it acts ")[2]


def test_every_condition_is_tried() -> None:
    tried = {option.partition("=")[0] for option in IDLE}
    named = {name for condition in conditions() for name in condition.names} | set(VERBS)
    group = {name for name in named if name.startswith("model.posterior.")}  # one condition for all of the group
    assert named - tried - group == {"data.evaluation.fps"}


@pytest.fixture
def not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """End every command where training would begin."""

    def begin(*_: object, **__: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Trainer, "_run", begin)


ACTING = [
    ["--data.epsilon.start=0.5", "--data.epsilon.end=0.1", "--data.epsilon.decay_frames=5", "--model.exploration=both"],
    ["--model.consolidation.fisher=empirical", "--model.consolidation.fisher_samples=9", *EWC],
    ["--model.consolidation.online_decay=0.5", "--model.consolidation.method=online_ewc", EWC[1]],
    ["--data.replay.newest=9", "--data.replay.newest_share=0.5"],
    ["--model.posterior.family=low_rank", "--model.posterior.size=3", "--model.posterior.num_draws=3"],
    ["--model.posterior.family=members", "--model.posterior.size=3", "--model.exploration=thompson"],
    [
        *(
            "--data.draws.start=0.9",
            "--data.draws.end=0",
            "--data.draws.decay_frames=5",
            "--model.exploration=thompson",
        ),
        *("--data.tasks=[CartPole-v1, Acrobot-v1]", "--data.curriculum.epsilon_at_switch=continue"),
    ],
    ["--model.likelihood.family=two_hot", "--model.likelihood.value_range=[-3,3]", "--model.likelihood.num_bins=21"],
    ["--model.likelihood.family=learned_gaussian", "--model.likelihood.noise_std=0.5"],
    ["--model.objective.tau=0.5", "--model.objective.policy_temperature=0.5", "--model.objective.kl_temperature=0"],
    [*PLAIN, "--model.optimizer.family=ivon", "--model.optimizer.precision_rate=0.1", "--model.exploration=thompson"],
    [
        *PLAIN,
        "--model.optimizer.family=ivon",
        "--model.posterior.init_log_var=-5",
        "--model.objective.kl_temperature=2",
    ],
    [
        *PROCESS,
        "--model.network.random_features=64",
        "--model.network.length_scale=2",
        "--model.objective.kl_temperature=2",
    ],
    ["--model.optimizer.schedule=cosine", "--model.optimizer.decay_frames=90", "--model.optimizer.final_share=0.5"],
    ["--trainer.gradient_clip_algorithm=value", "--trainer.gradient_clip_val=1", "--data.evaluation.fps=20"],
]


@pytest.mark.parametrize("options", ACTING)
@pytest.mark.usefixtures("not_trained")
def test_an_option_that_acts_is_accepted(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "fit", *CARTPOLE, *options)
    assert stop.value.code == 0
    assert "without effect" not in capsys.readouterr().err.replace(
        "without effect in the configuration: --data.epsilon.end acts with --model.exploration epsilon or both; "
        "--data.epsilon.decay_frames acts with --model.exploration epsilon or both\n",
        "",
    )


@pytest.mark.usefixtures("not_trained")
def test_configured_options_without_effect_are_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "model:\n  posterior: {size: 3, family: mean_field}\n  likelihood: {num_bins: 51}\n"
    Path("mine.yaml").write_text(f"{model}data:\n  rules: {{auto_fire: true}}\n")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "fit", *CARTPOLE, "--config=mine.yaml")
    assert stop.value.code == 0
    errors = capsys.readouterr().err
    assert "--model.posterior.size acts with --model.posterior.family low_rank or members" in errors
    assert "--data.rules.auto_fire acts in an Atari game" in errors
    assert "num_bins" not in errors  # at its default
    assert errors.count("without effect in the configuration: ") == 1


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.usefixtures("not_trained")
def test_every_option_of_a_bundled_configuration_acts(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--data.replay.capacity=2000", "--data.replay.min_size=100", "--data.replay.batch_size=8"]
    small += ["--data.num_envs=2", "--data.replay.device=cpu", "--model.network.hidden_dim=8"]
    small += ["--model.compile=none"]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "fit", f"--config={config}", *small)
    assert stop.value.code == 0
    assert "without effect" not in capsys.readouterr().err
