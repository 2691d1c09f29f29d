"""What is said of a run before it begins is true, and what cannot fit is refused before anything is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import app as cli
from bayes_rl.errors import ConfigError
from bayes_rl.training import preflight as forecast
from tests.helpers.command_line import error_of, run
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

ROOT = Path(cli.__file__).parents[2]
SMALL = [
    *("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *(
        "--data.frames_per_epoch=240",
        "--data.replay.min_size=100",
        "--data.replay.capacity=2000",
        "--data.evaluation.games=1",
    ),
]


def fit(monkeypatch: pytest.MonkeyPatch, config: str, *more: str) -> cli.BayesCLI:
    return run(monkeypatch, "fit", "--config", config, *SMALL, *more)


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str = "cartpole", *more: str
) -> str:
    """The one line that a run is refused with; asserts exit code 2 and nothing written."""
    line = error_of(monkeypatch, capsys, "fit", "--config", config, *SMALL, *more)
    assert not list(Path.cwd().iterdir())
    return line


@pytest.mark.parametrize("config", slow_but(["cartpole", "minatar"], "cartpole"))
def test_a_forecast_comes_true(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = fit(monkeypatch, config, "--model.consolidation.method=ewc", "--model.consolidation.consolidate_every=50")
    printed = capsys.readouterr().out
    agent, data, trainer = done.model, done.datamodule, done.trainer
    run = Path(f"runs/{config}/version_0")

    files = [file.stat().st_size for file in (run / "replay").rglob("*.*") if file.suffix != ".json"]
    assert len(files) == 6
    assert forecast.replay_bytes(data) == sum(files)
    size = (run / "checkpoints/last.ckpt").stat().st_size
    assert forecast.checkpoint_bytes(agent, data) == pytest.approx(size, rel=0.05)

    parts = forecast.network_bytes(agent)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    moments = [x for entry in saved["optimizer_states"][0]["state"].values() for x in entry.values()]
    assert parts["optimizer"] == sum(x.nbytes for x in moments)
    kept = {key: x.nbytes for key, x in saved["state_dict"].items()}
    for name, prefix in (("weights", "twin."), ("moving average", "target_twin."), ("anchors and Fisher", "consolid")):
        assert parts[name] == sum(x for key, x in kept.items() if key.startswith(prefix)) > 0

    frames = 100 + 240
    assert f"length {frames} frames, 60 updates" in printed
    assert saved["global_step"] == 60 == forecast.updates_of(trainer, data)
    assert abs(data.stream.frames - frames) < 2 * data.num_envs  # whole steps of all environments
    assert f"{forecast._mib(sum(parts.values()))} for networks" in printed
    assert f"2 checkpoints of {forecast._mib(forecast.checkpoint_bytes(agent, data))}" in printed
    assert len(list((run / "checkpoints").glob("*.ckpt"))) == 2
    lines = [line for line in printed.splitlines() if re.match("(device|memory|disk  |length) ", line)]
    assert len(lines) == 4


REFUSED: dict[str, tuple[list[str], list[int], list[str]]] = {
    "disk": (["--data.replay.capacity=2000000000"], [], ["data.replay.capacity", "2000000000", "of disk"]),
    "networks": (["--model.network.hidden_dim=60000"], [10**9], ["model.network.hidden_dim", "60000", "of memory"]),
    "learning": ([], [10**9, 200_000], ["model.network.hidden_dim", "128", "memory to learn in"]),
    "replay": (
        ["--trainer.fast_dev_run=true", "--data.replay.capacity=100000", "--data.replay.min_size=90000"],
        [1_500_000, 1_500_000],
        ["data.replay.capacity", "100000", "of memory", "1.4 MiB are available"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_fit_is_refused(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, memory, words = REFUSED[case]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    if memory:  # before there are any networks, and before learning
        monkeypatch.setattr(forecast, "available_memory", iter(memory).__next__)
    line = refusal(monkeypatch, capsys, "cartpole", *options)
    assert all(word in line for word in words), line


def test_a_replay_in_files_needs_no_memory_and_one_that_is_hardly_filled_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forecast, "available_memory", lambda: 1_500_000)
    fit(monkeypatch, "cartpole", "--data.replay.capacity=100000")  # 2.4 MB
    fit(monkeypatch, "cartpole", "--data.replay.capacity=100000", "--trainer.fast_dev_run=true")


def test_memory_of_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10**9))
    agent: Any = VariationalActorCritic(network={"encoder": "mlp", "hidden_dim": 16}, observation_shape=(4,))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    with pytest.raises(ConfigError, match="GPU's memory"):
        forecast.check_room(trainer, agent, SimpleNamespace())  # type: ignore[arg-type]


def test_nothing_is_drawn_and_nothing_taken_to_measure_networks() -> None:
    state = torch.get_rng_state()
    network = {"encoder": "mlp", "prior_function_scale": 3.0}
    posterior = {"family": "members"}
    forecast.check_networks({"network": network, "observation_shape": (4,), "posterior": posterior})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("limits", "updates"),
    [
        ({}, 300),
        ({"max_steps": 70}, 70),
        ({"max_steps": 700}, 300),
        ({"max_epochs": -1}, None),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"limit_train_batches": 5}, 15),
        ({"limit_train_batches": 0.5}, 150),
    ],
)
def test_updates_follow_the_limits(limits: dict[str, Any], updates: int | None) -> None:
    trainer: Any = SimpleNamespace(**{"max_epochs": 3, "max_steps": -1, "limit_train_batches": 1.0} | limits)
    assert forecast.updates_of(trainer, SimpleNamespace(batches_per_epoch=100)) == updates  # type: ignore[arg-type]


def test_durations_are_written_in_the_unit_that_fits() -> None:
    durations = [forecast.duration(seconds) for seconds in (0, 20, 89, 91, 3000, 3600 * 2.54, 3600 * 20, 86_400 * 3)]
    assert durations == [
        *("about 1 seconds", "about 20 seconds", "about 89 seconds", "about 2 minutes", "about 50 minutes"),
        *("about 2.5 hours", "about 20 hours", "about 3.0 days"),
    ]


@pytest.mark.parametrize(
    ("precision", "encoder", "ratio", "instead"),
    [
        ("bf16-mixed", "nature", 3.0, "32-true"),
        ("bf16-mixed", "mlp", 3.0, "32-true"),
        ("bf16-mixed", "nature", 1.1, None),
        ("bf16-mixed", "nature", 0.2, None),
        ("32-true", "nature", 0.2, "bf16-mixed"),
        ("32-true", "minatar", 0.2, None),
        ("32-true", "nature", 0.9, None),
        ("32-true", "nature", 3.0, None),
    ],
)
def test_a_precision_that_is_slower_than_another_here_is_named_with_that(
    precision: str, encoder: str, ratio: float, instead: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "product_seconds", lambda dtype, _: ratio if dtype == torch.bfloat16 else 1.0)
    says = f"a product takes {ratio} times as long in bfloat16 as in float32 here"
    expected = instead and f"{says}: --trainer.precision {instead} may be faster"
    assert forecast.precision_hint(precision, torch.device("cpu"), encoder) == expected


def test_a_fit_gives_the_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(forecast, "product_seconds", lambda dtype, _: 2.0 if dtype == torch.bfloat16 else 1.0)
    fit(monkeypatch, "cartpole", "--trainer.precision=bf16-mixed")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hint")]
    assert line.endswith("2.0 times as long in bfloat16 as in float32 here: --trainer.precision 32-true may be faster")


def test_products_are_measured_only_if_a_hint_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "product_seconds", lambda *_: pytest.fail("nothing to compare"))
    assert forecast.precision_hint("16-mixed", torch.device("cpu"), "nature") is None
    assert forecast.precision_hint("bf16-mixed", torch.device("cuda"), "nature") is None
    assert forecast.precision_hint("32-true", torch.device("cpu"), "minatar") is None


def test_the_seconds_of_a_product_are_the_median_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 24.0])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(ticks))
    assert forecast.product_seconds(torch.float32, torch.device("cpu"), 4, 3) == 4.0
    assert next(ticks, None) is None


def test_a_long_line_of_the_report_goes_on_below_its_words() -> None:
    report = "device cpu\nmemory 1.4 MiB for networks (weights 1.1 MiB), 1.2 MiB for replay"
    assert forecast.wrapped(report, 40).splitlines() == [
        "device cpu",
        "memory 1.4 MiB for networks (weights 1.1",
        "       MiB), 1.2 MiB for replay",
    ]
    assert forecast.wrapped(report, 80) == report


def test_each_game_of_a_sequence_has_the_tags_of_its_own_scores() -> None:
    def tags(*names: str) -> set[str]:
        kinds = SimpleNamespace(kinds=())
        data: Any = SimpleNamespace(
            game=names[0],
            num_tasks=len(names),
            curriculum=SimpleNamespace(names=names),
            novel_states=lambda task: kinds,
        )
        agent: Any = SimpleNamespace(twin=torch.nn.Identity(), weight_posterior=None)
        return {tag for tag in forecast.logged_tags(agent, data) if tag.endswith("human_normalised")}

    of_breakout, of_all = "val/breakout/human_normalised", "val/human_normalised"
    assert tags("breakout", "pong") == {of_breakout, "val/pong/human_normalised", of_all}
    assert tags("breakout", "no_human_played_it") == {of_breakout}  # no mean without the score of a game
    assert tags("no_human_played_it", "breakout") == {of_breakout}
