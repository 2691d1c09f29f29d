"""The trained agents that come with the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bayes_rl.cli.saved_runs import bundled_agent, find_checkpoint
from bayes_rl.errors import ConfigError
from bayes_rl.training.export import bundled_agents, load_agent, read_export
from tests.helpers.command_line import ROOT, error_of, run

LARGEST = 4_000_000  # bytes


@pytest.mark.parametrize("name", bundled_agents())
def test_an_agent_is_small_and_has_the_networks_of_its_configuration(name: str) -> None:
    """An agent whose configuration has changed since must be trained again."""
    path = bundled_agents()[name]
    assert path.stat().st_size < LARGEST
    agent, config = read_export(path)["hyper_parameters"], yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    for group in ("network", "likelihood"):
        options = config["model"].get(group, {})
        assert {key: agent[group][key] for key in options} == options


def test_a_name_finds_the_agent_of_the_program_and_a_file_of_this_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(find_checkpoint("cartpole", Path("runs/any"))) == bundled_agents()["cartpole"]
    assert load_agent("cartpole").hparams["num_actions"] == 2
    with pytest.raises(ConfigError, match="'cartpol' does not exist; nearest: 'cartpole'"):
        find_checkpoint("cartpol", Path("runs/any"))
    with pytest.raises(ConfigError, match="'breakout' does not exist; the program brings the agents cartpole, minatar"):
        find_checkpoint("breakout", Path("runs/any"))
    Path("cartpole").write_bytes(b"mine")
    assert bundled_agent("cartpole") is None
    assert find_checkpoint("cartpole", Path("runs/any")) == "cartpole"


def test_predict_films_an_agent_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration in the current folder is not that of the agent."""
    pytest.importorskip("pygame", reason="CartPole is drawn by pygame")
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("model: {hidden_dim: 3}\n")
    run(
        monkeypatch,
        "predict",
        "--ckpt_path=cartpole",
        "--data.evaluation.games=1",
        "--data.rules.max_episode_frames=30",
    )
    (video,) = tmp_path.glob("runs/CartPole-v1/version_0/videos/*.gif")
    assert video.name in capsys.readouterr().out
    line = error_of(monkeypatch, capsys, "fit", "--ckpt_path=cartpole")
    assert "'cartpole' holds no replay and no optimizer" in line
