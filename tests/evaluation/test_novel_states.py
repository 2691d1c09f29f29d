"""Novel states: what each kind keeps of the played states and what it destroys, and where it is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.evaluation.novel_states import (
    OTHER_GAMES,
    RECORDINGS,
    UNVISITED,
    NovelStates,
    load_recording,
    noise_states,
    shuffled_states,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def images(count: int = 40) -> Tensor:
    """Two frames of two planes of 5 x 6: brightness that goes with the position, the state and the plane."""
    torch.manual_seed(0)
    place = torch.arange(30).view(1, 1, 5, 6) + 40 * torch.arange(4).view(1, 4, 1, 1)
    return (place + torch.randint(0, 40, (count, 1, 1, 1))).to(torch.uint8)


def vectors(count: int = 40) -> Tensor:
    """Two frames of three components, each a function of the first."""
    torch.manual_seed(0)
    first = torch.rand(count, 1)
    return torch.cat([first, 10 + first, 20 + first, 30 + first, 40 + first, 50 + first], 1)


def of_channels(states: Tensor) -> Tensor:
    """All values of each channel in order, `[C, M * H * W]`."""
    return states.movedim(1, 0).flatten(1).sort(1).values


# ----------------------------------------------------------------------------------------------------- noise
@pytest.mark.parametrize("played", [images(), vectors()], ids=["images", "vectors"])
def test_noise_has_exactly_the_values_of_each_channel(played: Tensor) -> None:
    before = played.clone()
    noise = noise_states(played, rng())
    assert (noise.shape, noise.dtype) == (played.shape, played.dtype)
    assert torch.equal(of_channels(noise), of_channels(played))
    assert torch.equal(played, before)
    assert not torch.equal(noise, played)


def test_noise_has_no_structure() -> None:
    """Neither position, nor state, nor another channel tells anything of a value."""
    played, noise = images(400).double(), noise_states(images(400), rng()).double()
    spread = noise.std((0, 2, 3))
    for states, structured in ((played, True), (noise, False)):
        # The spread of the mean of n independent values is that of a value, divided by the root of n.
        positions = states.mean(0).flatten(1).std(1) > 2 * spread / 400**0.5
        whole = states.mean((2, 3)).std(0) > 2 * spread / 30**0.5
        assert positions.tolist() == whole.tolist() == 4 * [structured]
    flat = noise.movedim(1, 0).flatten(1)
    correlations = torch.corrcoef(flat) - torch.eye(4)
    assert correlations.abs().max() < 5 / flat.shape[1] ** 0.5
    components = torch.corrcoef(noise_states(vectors(400), rng()).T) - torch.eye(6)
    assert components.abs().max() < 5 / 400**0.5
    assert torch.corrcoef(vectors(400).T).min() > 0.99


# -------------------------------------------------------------------------------------------------- shuffled
def test_shuffled_images_have_one_order_of_positions_for_all_channels() -> None:
    played = images()
    shuffled = shuffled_states(played, 2, rng())
    assert (shuffled.shape, shuffled.dtype) == (played.shape, played.dtype)
    orders = set()
    for before, after in zip(played.flatten(2), shuffled.flatten(2), strict=True):
        # All brightnesses of a plane differ, so that the first plane tells the order.
        order = [before[0].tolist().index(value) for value in after[0].tolist()]
        assert sorted(order) == list(range(30))
        assert torch.equal(after, before[:, order])
        orders.add(tuple(order))
    assert len(orders) == len(played)  # each state has an order of its own


def test_shuffled_vectors_have_one_order_of_components_for_all_frames() -> None:
    played = vectors()
    shuffled = shuffled_states(played, 2, rng())
    orders = set()
    for before, after in zip(played.view(-1, 2, 3), shuffled.view(-1, 2, 3), strict=True):
        order = [before[0].tolist().index(value) for value in after[0].tolist()]
        assert sorted(order) == [0, 1, 2]
        assert torch.equal(after, before[:, order])
        orders.add(tuple(order))
    assert len(orders) == 6  # 40 states have all orders of three components


# ---------------------------------------------------------------------------------------- where a kind is left out
PLAIN = {"frame_skip": 1, "sticky_actions": 0.0}
TASKS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("Breakout", {"env": "breakout"}, ("noise", "shuffled", "other_game", "unvisited")),
    ("cropped", {"env": "breakout", "rules": {"crop": (0, 160, 0, 160)}}, ("noise", "shuffled", "other_game")),
    ("colours", {"env": "breakout", "grey": False}, ("noise", "shuffled")),
    ("one screen", {"env": "breakout", "frame_stack": 1}, ("noise", "shuffled")),
    ("Pong", {"env": "pong"}, ("noise", "shuffled", "other_game")),
    ("MinAtar", {"env": "MinAtar/Breakout-v1", "frame_stack": 1}, ("noise", "shuffled", "unvisited")),
    ("two frames", {"env": "MinAtar/Breakout-v1", "frame_stack": 2}, ("noise", "shuffled")),
    ("Freeway", {"env": "MinAtar/Freeway-v1", "frame_stack": 1}, ("noise", "shuffled")),
    ("vector", {"env": "CartPole-v1", "frame_stack": 1, "rules": PLAIN}, ("noise", "shuffled")),
    ("numbers", {"env": "bayes_rl/DeepSea-v0", "env_kwargs": {"one_hot": False}, "frame_stack": 1, "rules": PLAIN}, ()),
]


@pytest.mark.parametrize(("options", "kinds"), [task[1:] for task in TASKS], ids=[task[0] for task in TASKS])
def test_impossible_kinds_are_left_out(options: dict[str, Any], kinds: tuple[str, ...]) -> None:
    data = ReplayDataModule(num_envs=1, **options)
    assert data.novel_states().kinds == kinds
    assert data.games("validate").novel.kinds == data.games("test").novel.kinds == kinds  # type: ignore[union-attr]
    assert data.games("predict").novel is None
    if len(kinds) > 2:
        played = torch.randint(0, 2, (6, *data.observation_shape), dtype=torch.uint8)
        made = data.novel_states().make(played, 0.0, rng())
        assert tuple(made) == kinds
        assert {(states.shape, states.dtype) for states in made.values()} == {(played.shape, played.dtype)}


def test_a_single_number_has_no_order() -> None:
    data = ReplayDataModule(env="CartPole-v1", num_envs=1, frame_stack=3, rules=PLAIN)  # type: ignore[arg-type]
    assert NovelStates(data.settings, (3,), 3, 0, ["CartPole-v1"]).kinds == ("noise",)
    assert NovelStates(data.settings, (6,), 3, 0, ["CartPole-v1"]).kinds == ("noise", "shuffled")


def test_another_game_is_none_that_the_agent_learns() -> None:
    played = torch.zeros(5, 4, 84, 84, dtype=torch.uint8)
    for env, other in (("breakout", "pong"), ("pong", "breakout"), ("space_invaders", "pong")):
        made = ReplayDataModule(env=env, num_envs=1).novel_states().make(played, 0.0, rng())["other_game"]
        screens = {state.numpy().tobytes() for state in load_recording(other)[0]}
        assert len(made) == 5
        assert all(state.numpy().tobytes() in screens for state in made)
    both = ReplayDataModule(tasks=["breakout", "pong"], num_envs=1)
    assert "other_game" not in both.novel_states(0).kinds + both.novel_states(1).kinds
    assert "unvisited" in both.novel_states(0).kinds


# ------------------------------------------------------------------------------------------------- recordings
def test_every_recording_is_small_and_used() -> None:
    files = {path.stem: path.stat().st_size for path in RECORDINGS.iterdir()}
    assert set(files) == {*OTHER_GAMES, *UNVISITED.values()}
    assert sum(files.values()) < 300_000
    setup = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "bayes_rl.evaluation = recordings/*.npz" in setup
    for name in files:
        with np.load(RECORDINGS / f"{name}.npz", allow_pickle=False) as file:
            assert name in str(file["made_by"])
            assert int(file["seed"]) >= 100  # seeds that choose, not seeds that are reported
        assert len(np.unique(load_recording(name)[0].numpy(), axis=0)) > 100


def test_recorded_states_are_those_of_their_game() -> None:
    """Bricks are missing in states of a score that an agent rarely reaches, and walls stand where they do."""
    states, least = load_recording("minatar_breakout_later")
    paddle, ball, trail, brick = (states[:, plane].flatten(1).sum(1) for plane in range(4))
    assert states.max() == 1
    assert (paddle == 1).all()
    assert (ball == 1).all()
    assert (trail <= 1).all()
    assert (brick <= 30 - least).all()
    assert (brick > 30 - 20).all()
    later, early = load_recording("breakout_later")[0], load_recording("breakout")[0]
    assert later.shape[1:] == early.shape[1:] == (4, 84, 84)
    bricks = slice(23, 37)
    assert later[:, :, bricks, 4:80].float().mean() < early[:, :, bricks, 4:80].float().mean()
    assert torch.equal(later[0, 0, 20:36, :3], early[0, 0, 20:36, :3])  # the left wall
