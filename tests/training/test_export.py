"""Exported agents: they play as the checkpoint does, hold nothing else, and no file can do harm."""

from __future__ import annotations

import functools
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import app as cli
from bayes_rl.cli import commands
from bayes_rl.training.export import ExportError, export_agent, load_agent, load_weights, read_export
from tests.helpers.command_line import ROOT, error_of, run
from tests.helpers.options import merged

pytestmark = pytest.mark.usefixtures("shared_parser")

SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.frames_per_epoch=200",
    "--data.replay.min_size=100",
    "--data.replay.capacity=2000",
    "--data.evaluation.games=3",
    "--data.replay.batch_size=8",
    "--model.network.hidden_dim=8",
]
AGENTS = {
    "cartpole": ["--config", str(ROOT / "tests/configs/cartpole.yaml"), *SMALL],
    "minatar": ["--config", str(ROOT / "configs/minatar.yaml"), *SMALL, "--data.rules.max_episode_frames=60"],
    "process": [
        *("--config", str(ROOT / "tests/configs/cartpole.yaml"), *SMALL, "--model.network.bayesian=gaussian_process"),
        *("--model.network.prior_function_scale=1", "--model.network.random_features=16"),
    ],
    "every_weight": [
        *("--config", str(ROOT / "tests/configs/cartpole.yaml"), *SMALL, "--model.network.bayesian=none"),
        *("--model.optimizer.family=ivon", "--model.optimizer.actor_lr=0.01", "--model.optimizer.critic_lr=0.01"),
    ],
    "tasks": [
        *("--config", str(ROOT / "configs/continual.yaml"), *SMALL, "--data.rules.max_episode_frames=60"),
        *("--data.tasks=[MinAtar/Breakout-v1, MinAtar/Freeway-v1]", "--data.curriculum.frames_per_task=200"),
        *("--trainer.max_epochs=2", "--data.curriculum.task_conditioning=heads"),
        *("--model.consolidation.method=vcl", "--model.consolidation.fisher_samples=8"),
    ],
}
State = dict[str, Tensor]
Header = dict[str, str]


def scores(done: cli.BayesCLI) -> dict[str, float]:
    return {key: float(value) for key, value in done.trainer.callback_metrics.items()}


def same(a: dict[str, float], b: dict[str, float]) -> bool:
    """Bit for bit, NaN included."""
    return a.keys() == b.keys() and all(torch.equal(_bits(a[key]), _bits(b[key])) for key in a)


def _bits(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64).nan_to_num(nan=12345.678)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of an agent to the last checkpoint of its tiny run, which is made once."""

    @functools.cache
    def checkpoint_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            run(monkeypatch, "fit", *AGENTS[name])
        return next(folder.glob("runs/*/version_0/checkpoints/last.ckpt"))

    return checkpoint_of


@pytest.fixture(params=AGENTS)
def trained(request: pytest.FixtureRequest, train: Callable[[str], Path]) -> tuple[str, Path]:
    """Name and last checkpoint of a tiny run."""
    return request.param, train(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an agent that did not learn: what its file says is enough."""
    path = tmp_path_factory.mktemp("agent") / "agent.ckpt"
    settings = {"observation_shape": [4], "num_actions": 2, "game": "CartPole-v1"}
    more = {"pixel_scale": 1.0, "num_categories": 0, "num_tasks": 1, "task_conditioning": "none"}
    agent = VariationalActorCritic({"encoder": "mlp", "hidden_dim": 8}, **settings, **more)  # type: ignore[arg-type]
    data = {
        "env": "CartPole-v1",
        "frame_stack": 1,
        "rules": {"frame_skip": 1, "sticky_actions": 0.0},
        "replay": {"life_loss": "none"},
        "evaluation": {"games": 2},
        "seed": 3,
    }
    saved = {
        "state_dict": agent.state_dict(),
        "hyper_parameters": dict(agent.hparams),
        "datamodule_hyper_parameters": data,
        "frames": 7,
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(saved, path)
    return path


@pytest.fixture
def sound(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[State, Header]:
    """Tensors and header of a sound export; the working directory is empty."""
    export_agent(checkpoint, tmp_path / "sound.safetensors")
    with safe_open(str(tmp_path / "sound.safetensors"), framework="pt") as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (tmp_path / "sound.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    return parts


# ------------------------------------------------------------------------------------------------ it plays the same
PLAYED = [
    (agent, verb, configured) for agent in AGENTS for verb in ("validate", "test") for configured in (False, True)
]
"""Agent, verb, and whether the command names the configuration."""


def plays_with_every_test(agent: str, verb: str, configured: bool) -> bool:
    """Return whether a case runs with every test: all ways with one agent, and one with an agent of several tasks."""
    return agent == "cartpole" or (agent, verb, configured) == ("tasks", "test", False)


@pytest.mark.parametrize(
    ("trained", "verb", "configured"),
    [pytest.param(*case, marks=() if plays_with_every_test(*case) else pytest.mark.slow) for case in PLAYED],
    indirect=["trained"],
)
def test_an_export_plays_as_its_checkpoint(
    trained: tuple[str, Path],
    verb: str,
    configured: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`validate` and `test`, without a configuration and with it: every number is the same."""
    name, checkpoint = trained
    monkeypatch.chdir(tmp_path)
    commands.export([str(checkpoint), "agent.safetensors"])
    words = AGENTS[name] if configured else ["--trainer.enable_progress_bar=false"]
    one = run(monkeypatch, verb, *words, f"--ckpt_path={checkpoint}")
    two = run(monkeypatch, verb, *words, "--ckpt_path=agent.safetensors")
    assert same(scores(one), scores(two))
    assert len(scores(two)) > 10
    assert two.model.frames == one.model.frames > 0
    assert "checkpoint      agent.safetensors" in capsys.readouterr().out


def test_predict_takes_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame", reason="CartPole is drawn by pygame")
    monkeypatch.chdir(tmp_path)
    export_agent(checkpoint, "agent.safetensors")
    run(monkeypatch, "predict", "--ckpt_path=agent.safetensors", "--trainer.enable_progress_bar=false")
    assert len(list(Path("runs").rglob("videos/seed*"))) == 2


def test_a_loaded_agent_acts_and_estimates_values_as_the_checkpoint(trained: tuple[str, Path], tmp_path: Path) -> None:
    _, checkpoint = trained
    export_agent(checkpoint, tmp_path / "agent.safetensors")
    ours = load_agent(tmp_path / "agent.safetensors")
    theirs = VariationalActorCritic.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu").eval()
    assert not ours.training
    assert ours.hparams == theirs.hparams
    shape = ours.hparams.observation_shape
    generator = torch.Generator().manual_seed(0)
    observations = torch.rand(64, *shape, generator=generator)
    if len(shape) == 3:
        observations = (observations * 2).to(torch.uint8)
    assert torch.equal(ours.act(observations), theirs.act(observations))
    for a, b in zip(ours.estimate_values(observations), theirs.estimate_values(observations), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours.scores, theirs.scores, strict=True):
        assert torch.equal(a.return_fit, b.return_fit)
        assert not a.return_fit.isnan().any()


def test_tensors_keep_their_values_and_types_and_nothing_else_is_there(
    trained: tuple[str, Path], tmp_path: Path
) -> None:
    _, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=True)
    state = export_agent(checkpoint, tmp_path / "agent.safetensors")["state_dict"]
    kept = read_export(tmp_path / "agent.safetensors")
    assert kept["state_dict"].keys() == state.keys()
    for key, tensor in kept["state_dict"].items():
        assert key.startswith(("twin.", "weight_posterior.")) or key.endswith("return_fit")
        assert "prior" not in key  # no prior of a consolidation
        assert "moments" not in key  # no data of a process
        assert tensor.dtype == saved["state_dict"][key].dtype
        assert torch.equal(tensor, saved["state_dict"][key])
    assert kept["frames"] == saved["frames"]
    assert kept["pytorch-lightning_version"] == saved["pytorch-lightning_version"]
    with safe_open(str(tmp_path / "agent.safetensors"), framework="pt") as file:
        for entry in ("hyper_parameters", "datamodule_hyper_parameters"):
            given = {k: v for k, v in saved[entry].items() if not k.startswith("_")}
            assert json.loads(file.metadata()[entry]) == json.loads(json.dumps(given))
    tensors = sum(tensor.nbytes for tensor in state.values())
    assert (tmp_path / "agent.safetensors").stat().st_size < tensors + 16_000


def test_the_average_takes_the_place_of_the_newest_weights(trained: tuple[str, Path], tmp_path: Path) -> None:
    _, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    export_agent(checkpoint, tmp_path / "agent.safetensors", average=True)
    agent = load_agent(tmp_path / "agent.safetensors")
    head = next(key for key in ("critics.0.weight_mu", "critics.0.weight") if key in agent.twin.state_dict())
    assert torch.equal(agent.twin.state_dict()[head], saved[f"target_twin.{head}"])
    assert not torch.equal(saved[f"twin.{head}"], saved[f"target_twin.{head}"])
    assert all(part.return_fit.isnan().all() for part in agent.scores)


def test_half_the_bytes_hold_the_matrices_of_the_networks_to_three_digits(
    trained: tuple[str, Path], tmp_path: Path
) -> None:
    _, checkpoint = trained
    whole = export_agent(checkpoint, tmp_path / "whole.safetensors")["state_dict"]
    half = export_agent(checkpoint, tmp_path / "half.safetensors", half=True)["state_dict"]
    for name, tensor in whole.items():
        matrix = name.startswith("twin.") and tensor.dim() > 1
        assert half[name].dtype == (torch.float16 if matrix else tensor.dtype)
        torch.testing.assert_close(half[name].to(tensor.dtype), tensor, rtol=2**-11, atol=2**-25, equal_nan=True)
    assert any(tensor.dtype == torch.float16 for tensor in half.values())
    assert all(parameter.dtype == torch.float32 for parameter in load_agent(tmp_path / "half.safetensors").parameters())


def test_a_weight_beyond_16_bits_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    name = next(name for name, tensor in saved["state_dict"].items() if name.startswith("twin.") and tensor.dim() > 1)
    saved["state_dict"][name][0] = 70_000
    torch.save(saved, tmp_path / "large.ckpt")
    output = tmp_path / "agent.safetensors"
    with pytest.raises(ExportError, match=f"{name} holds numbers beyond 65504; drop --half"):
        export_agent(tmp_path / "large.ckpt", output, half=True)
    assert not output.exists()
    export_agent(tmp_path / "large.ckpt", output)


def test_what_only_learning_needs_begins_at_the_exported_weights(checkpoint: Path, tmp_path: Path) -> None:
    export_agent(checkpoint, tmp_path / "agent.safetensors")
    agent = load_agent(tmp_path / "agent.safetensors")
    assert agent.target_twin is not None
    for newest, averaged in zip(agent.twin.parameters(), agent.target_twin.parameters(), strict=True):
        assert torch.equal(newest, averaged)


# ------------------------------------------------------------------------------------------------------- refusals
def test_fit_refuses_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    export_agent(checkpoint, "agent.safetensors")
    line = error_of(monkeypatch, capsys, "fit", "--ckpt_path=agent.safetensors")
    assert "holds no replay and no optimizer; resume from a checkpoint" in line


def test_a_contradicting_option_is_refused_as_with_a_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    export_agent(checkpoint, "agent.safetensors")
    for option, word in (
        ("--model.network.hidden_dim=16", "model.network.hidden_dim"),
        ("--data.env=Acrobot-v1", "data.env"),
    ):
        assert word in error_of(monkeypatch, capsys, "validate", "--ckpt_path=agent.safetensors", option)


def test_what_cannot_be_exported_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = torch.load(checkpoint, weights_only=True)
    Path("there.safetensors").write_text("precious")
    Path("folder.safetensors").mkdir()
    Path("text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, "empty.ckpt")
    torch.save([1, 2], "list.ckpt")
    torch.save(saved | {"state_dict": {k: v for k, v in saved["state_dict"].items() if "mu" not in k}}, "part.ckpt")
    averaged = {k: v for k, v in saved["state_dict"].items() if not k.startswith("target_twin.")}
    torch.save(saved | {"state_dict": averaged}, "other.ckpt")
    ckpt = str(checkpoint)
    cases: dict[str, list[str]] = {
        "'missing.ckpt' does not exist": ["missing.ckpt", "out.safetensors"],
        "'text.ckpt' cannot be exported": ["text.ckpt", "out.safetensors"],
        "'empty.ckpt' cannot be exported": ["empty.ckpt", "out.safetensors"],
        "'list.ckpt' cannot be exported": ["list.ckpt", "out.safetensors"],
        "weight_mu is missing": ["part.ckpt", "out.safetensors"],
        "it holds no moving average; drop --average": ["other.ckpt", "out.safetensors", "--average"],
        "'there.safetensors' exists; give --overwrite": [ckpt, "there.safetensors"],
        "'folder.safetensors' is no file": [ckpt, "folder.safetensors", "--overwrite"],
        "'no/out.safetensors' cannot be written: its directory does not exist": [ckpt, "no/out.safetensors"],
        "'out.pt' must end in .safetensors": [ckpt, "out.pt"],
        "required: OUT.safetensors": [ckpt],
        "unrecognized arguments: --over": [ckpt, "out.safetensors", "--over"],
        "File name too long": [ckpt, "o" * 300 + ".safetensors"],
    }
    for words, arguments in cases.items():
        line = error_of(monkeypatch, capsys, "export", *arguments)
        assert line.startswith("bayes-rl: error: ")
        assert words in line
    assert Path("there.safetensors").read_text() == "precious"


def test_a_file_is_replaced_only_on_demand_and_only_by_a_whole_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.safetensors").write_text("precious")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = error_of(monkeypatch, capsys, "export", str(checkpoint), "out.safetensors", "--overwrite")
    assert "'out.safetensors' cannot be written: No space left on device" in line
    assert Path("out.safetensors").read_text() == "precious"
    commands.export([str(checkpoint), "out.safetensors", "--overwrite"])
    assert read_export("out.safetensors")["frames"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


# -------------------------------------------------------------------------------------------------- hostile files
def damaged(change: Callable[[State, Header], object]) -> Callable[[State, Header], None]:
    def write(state: State, header: Header) -> None:
        change(state, header)
        save_file(state, "hostile.safetensors", header)

    return write


def setting(entry: str, **values: Any) -> Callable[[State, Header], None]:
    return damaged(lambda _, header: header.update({entry: json.dumps(merged(json.loads(header[entry]), values))}))


def model(**values: Any) -> Callable[[State, Header], None]:
    return setting("hyper_parameters", **values)


def data(**values: Any) -> Callable[[State, Header], None]:
    return setting("datamodule_hyper_parameters", **values)


def cut(keep: Callable[[bytes], bytes]) -> Callable[[State, Header], None]:
    """A sound file whose bytes are changed."""

    def write(state: State, header: Header) -> None:
        save_file(state, "hostile.safetensors", header)
        file = Path("hostile.safetensors")
        file.write_bytes(keep(file.read_bytes()))

    return write


def raw(header: bytes) -> Callable[[State, Header], None]:
    content = struct.pack("<Q", len(header)) + header
    return lambda *_: Path("hostile.safetensors").write_bytes(content) and None


def retyped(dtype: torch.dtype) -> Callable[[State, Header], object]:
    return lambda state, _: state.update({BIAS: state[BIAS].to(dtype)})


BIAS = "twin.actors.0.bias"
NESTED = "[" * 100_000
SPEC = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}
HOSTILE: dict[str, tuple[Callable[[State, Header], Any], str]] = {
    "nothing": (cut(lambda _: b""), "hostile.safetensors"),
    "seven bytes": (cut(lambda b: b[:7]), "header"),
    "header cut": (cut(lambda b: b[:100]), "header"),
    "tensors cut": (cut(lambda b: b[:-1]), "hostile.safetensors"),
    "bytes too many": (cut(lambda b: b + b"x"), "hostile.safetensors"),
    "length of a header": (cut(lambda b: b"\xff" * 8 + b[8:]), "header"),
    "zeros": (cut(lambda b: bytes(len(b))), "hostile.safetensors"),
    "header not UTF-8": (cut(lambda b: b[:8] + b"\xff\xfe" + b[10:]), "hostile.safetensors"),
    "a pickle": (lambda *_: torch.save({"a": 1}, "hostile.safetensors"), "hostile.safetensors"),
    "header that is a list": (raw(b"[1, 2]"), "hostile.safetensors"),
    "nested header": (raw(b'{"a":' * 2000 + b"1" + b"}" * 2000), "hostile.safetensors"),
    "offsets beyond the file": (
        raw(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        "hostile.safetensors",
    ),
    "shape that overflows": (
        raw(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        "hostile.safetensors",
    ),
    "offsets backwards": (raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'), "hostile.safetensors"),
    "dtype unknown": (raw(b'{"a":{"dtype":"OBJ","shape":[0],"data_offsets":[0,0]}}'), "hostile.safetensors"),
    "no metadata": (damaged(lambda _, header: header.clear()), "format"),
    "another format": (damaged(lambda _, header: header.update(format="pt")), "format is 'pt'"),
    "no settings": (damaged(lambda _, header: header.pop("hyper_parameters")), "'hyper_parameters' is missing"),
    "no JSON": (damaged(lambda _, header: header.update(hyper_parameters="{")), "not an exported agent"),
    "nested JSON": (damaged(lambda _, header: header.update(hyper_parameters=NESTED)), "recursion"),
    "digits without end": (damaged(lambda _, header: header.update(frames="9" * 10_000)), "digits"),
    "frames that are none": (damaged(lambda _, header: header.update(frames="[]")), "'[]' is not int"),
    "settings that are a list": (damaged(lambda _, header: header.update(hyper_parameters="[]")), "no mapping"),
    "tensor missing": (damaged(lambda state, _: state.pop(BIAS)), f"{BIAS} is missing"),
    "tensor too many": (damaged(lambda state, _: state.update(extra=torch.zeros(3))), "'extra' is no part"),
    "tensor of another name": (
        damaged(lambda state, _: state.update({"twin\n\x1b[2J": state.pop(BIAS)})),
        f"{BIAS} is missing",
    ),
    "tensor of another shape": (
        damaged(lambda state, _: state.update({BIAS: torch.zeros(1, 2)})),
        f"{BIAS} has shape [1, 2], not [2]",
    ),
    "numbers that would lose digits": (damaged(retyped(torch.float64)), f"{BIAS} is torch.float64"),
    "integers for weights": (damaged(retyped(torch.int64)), f"{BIAS} is torch.int64"),
    "numbers of another kind": (damaged(retyped(torch.bool)), f"{BIAS} is torch.bool"),
    "wider than the weights": (model(network={"hidden_dim": 10**9}), "shape"),
    "beyond any machine": (model(network={"hidden_dim": 10**300}), "hidden_dim: 1000"),
    "infinite": (model(network={"hidden_dim": float("inf")}), "hidden_dim: 'inf' is not int"),
    "as many tasks as atoms": (model(num_tasks=10**9), "too few for 1000000000 tasks"),
    "word for a number": (model(network={"hidden_dim": "8"}), "hidden_dim: '8' is not int"),
    "truth for a number": (model(likelihood={"noise_std": True}), "noise_std: 'True' is not float"),
    "mapping for a word": (model(network={"encoder": {"a": 1}}), "encoder: "),
    "range of three": (model(likelihood={"value_range": [1, 2, 3]}), "value_range:"),
    "impossible setting": (model(tau=-1.0), "tau"),
    "unknown setting": (model(__class__="os"), "knows no setting '__class__'"),
    "shape that is missing": (
        damaged(lambda _, h: h.update(hyper_parameters=h["hyper_parameters"].replace("num_categories", "num_bins"))),
        "num_categories",
    ),
    "tasks of another shape": (data(tasks=["CartPole-v1", "Acrobot-v1"]), "has observation_shape (6,)"),
    "environment from a module": (data(env="antigravity:Game-v0"), "data.env"),
    "object among arguments": (data(env_kwargs={"a": [SPEC]}), "class_path is no argument"),
    "games without end": (data(evaluation={"games": 10**12}), "games: 1000000000000 is out of range"),
    "no seed": (data(seed=-1), "seed: -1 is out of range"),
    "stack of screens": (data(frame_stack=10**7), "frame_stack"),
    "probability of two": (data(rules={"sticky_actions": 2}), "data.rules.sticky_actions"),
    "numbers for an environment": (data(env=5), "env: '5' is not str"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line(
    case: str, sound: tuple[State, Header], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, words = HOSTILE[case]
    write(*sound)
    line = error_of(monkeypatch, capsys, "validate", "--ckpt_path=hostile.safetensors")
    assert words in line
    assert line.isprintable()
    assert len(line) < 700
    assert "antigravity" not in sys.modules


def test_python_users_get_the_same_error(sound: tuple[State, Header]) -> None:
    state, header = sound
    state.pop(BIAS)
    save_file(state, "hostile.safetensors", header)
    with pytest.raises(ExportError, match=f"{BIAS} is missing"):
        load_agent("hostile.safetensors")
    with pytest.raises(ExportError, match="does not exist"):
        load_agent("missing.safetensors")


def test_weights_of_another_agent_are_refused(sound: tuple[State, Header]) -> None:
    save_file(sound[0], "agent.safetensors", sound[1])
    settings = read_export("agent.safetensors")["hyper_parameters"]
    for other, words in (
        ({"network": {"hidden_dim": 4}}, "has shape"),
        ({"num_tasks": 2}, "scores.1.return_fit is missing"),
    ):
        agent = VariationalActorCritic(**merged(settings, other))
        with pytest.raises(ExportError, match=words):
            load_weights(agent, read_export("agent.safetensors"), "agent.safetensors")


def test_how_it_was_trained_cannot_stop_an_agent_from_playing(
    sound: tuple[State, Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay of two thousand million transitions and as many environments are for the reader, not made."""
    most = 2**31 - 1
    setting("datamodule_hyper_parameters", replay={"capacity": most}, num_envs=most, frames_per_epoch=most)(*sound)
    done = run(monkeypatch, "validate", "--ckpt_path=hostile.safetensors", "--trainer.enable_progress_bar=false")
    assert scores(done)["val/games"] == 2


def test_half_precision_is_read_as_it_is(sound: tuple[State, Header]) -> None:
    state, header = sound
    state[BIAS] = torch.tensor([0.5, -0.25], dtype=torch.float16)
    save_file(state, "half.safetensors", header)
    assert read_export("half.safetensors")["state_dict"][BIAS].dtype == torch.float16
    assert load_agent("half.safetensors").twin.state_dict()[BIAS.removeprefix("twin.")].tolist() == [0.5, -0.25]
