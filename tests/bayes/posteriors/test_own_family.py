"""A posterior family from outside the package: the worked example of the documentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayes_rl.bayes import POSTERIORS, BayesLinear, PosteriorSettings
from bayes_rl.training.export import export_agent, load_agent
from tests.bayes.posterior_case import PosteriorCase
from tests.helpers.command_line import TINY, run, weights
from tests.helpers.examples import example

NAME = "scaled_mean_field"
FAMILY = [f"--model.posterior.family={NAME}", "--data.num_envs=2", "--data.frames_per_epoch=160"]
FAMILY += ["--data.evaluation.games=1"]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with example(NAME):
        yield


class TestScaledMeanField(PosteriorCase):
    @property
    def settings(self) -> PosteriorSettings:  # type: ignore[override]
        return PosteriorSettings(NAME, prior_precision=2.0, init_log_var=-2.0)


def test_all_standard_deviations_of_a_layer_scale_together() -> None:
    layer = BayesLinear(4, 3, PosteriorSettings(NAME))
    before = layer.log_var()
    with torch.no_grad():
        layer.get_parameter("log_scale").fill_(math.log(4.0))
    torch.testing.assert_close(layer.log_var(), before + math.log(4.0))


def test_an_example_is_forgotten_after_its_test() -> None:
    assert NAME in POSTERIORS
    with example("my_encoder"):
        assert NAME in POSTERIORS


def scales(state: dict[str, Tensor]) -> list[Tensor]:
    found = [value for key, value in state.items() if key.startswith("twin.") and key.endswith("log_scale")]
    assert len(found) == 4  # of two actors and two critics
    return found


def test_it_trains_resumes_and_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = run(monkeypatch, "fit", *TINY, *FAMILY, "--trainer.max_epochs=1", "--trainer.default_root_dir=run")
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    early = scales(weights(checkpoint))
    assert all(value != 0 for value in early)  # the scales have learned
    assert first.model.twin.posterior.settings.family == NAME
    run(monkeypatch, "fit", *TINY, *FAMILY, "--trainer.default_root_dir=run", f"--ckpt_path={checkpoint}")
    newest = max(tmp_path.rglob("last*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    late = scales(weights(newest))
    assert torch.load(newest, weights_only=True)["epoch"] == 1
    assert any(not torch.equal(a, b) for a, b in zip(early, late, strict=True))
    export_agent(newest, tmp_path / "agent.safetensors")
    agent = load_agent(tmp_path / "agent.safetensors")
    observations = torch.randn(5, *agent.hparams.observation_shape)
    assert agent.act(observations, 0).shape == (5,)


@pytest.mark.slow
def test_ewc_protects_its_means_and_leaves_its_scales_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "--model.consolidation.method=ewc",
        "--model.consolidation.consolidate_every=20",
        "--model.consolidation.ewc_lambda=0.1",
    ]
    agent = run(monkeypatch, "fit", *TINY, *FAMILY, *options, "--trainer.max_epochs=1").model
    names = agent.consolidator.ewc.names
    assert any(name.endswith("weight_mu") for name in names)
    assert not any(name.endswith(("log_scale", "weight_log_var")) for name in names)
    assert agent.consolidator.ewc.active
    assert float(agent.consolidator.penalty(agent.twin).detach()) > 0
