"""Whole games: named by their seeds, scored raw, and drawn again from (seed, actions)."""

from __future__ import annotations

from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_rl.data.datamodule import ReplayDataModule, shares
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.evaluation.games import Game, GameLoader, Games
from bayes_rl.metrics.atari_scores import human_normalised_score
from bayes_rl.metrics.calibration import realised_returns
from bayes_rl.types import ValueEstimate
from tests.helpers.playing import hashed
from tests.helpers.replay_oracle import Rules
from tests.helpers.scripted_envs import IDLE_FRAMES, SCRIPTED, ScriptedGames, episode_of, returns_of

INVADERS = EnvSettings("space_invaders", sticky_actions=0.25, max_episode_frames=1600)
FIRED = EnvSettings("breakout", sticky_actions=0.25, max_episode_frames=600, auto_fire=True)
MINATAR = EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.1)
CARTPOLE = EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0)


def noop(observations: Tensor) -> Tensor:
    return torch.zeros(len(observations), dtype=torch.int64)


def replayed(settings: EnvSettings, game: Game) -> tuple[list[float], bool]:
    """Rewards of (seed, actions) played again by hand, and whether the game ended by itself at its last step."""
    envs = make_envs(settings, 1)
    envs.reset(np.array([game.seed]), np.ones(1, bool))
    rewards, over = [], False
    for action in game.actions:
        assert not over, "the game had ended before its last action"
        step = envs.step(np.array([action]))
        rewards.append(float(step.rewards[0]))
        over = bool((step.terminated | step.truncated)[0])
    envs.close()
    return rewards, over


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every game is a scripted one."""
    monkeypatch.setattr("bayes_rl.evaluation.games.make_envs", ScriptedGames)


def worth(observations: Tensor) -> Tensor:
    """A value for each observation, some number."""
    return (observations.double() @ torch.arange(1.0, 5.0, dtype=torch.float64)).sin().float()


def value_estimate(observations: Tensor) -> ValueEstimate:
    """An estimate from which the observation can be read."""
    value = worth(observations)
    return ValueEstimate(value[:, None].expand(-1, 3), observations[:, :3], observations[:, 1:], value)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("life_loss", ["none", "discount", "penalty"])
@pytest.mark.parametrize("reward_clip", [None, 1.0])
def test_records_tell_the_returns_that_the_learner_would_have_read(life_loss: str, reward_clip: float | None) -> None:
    """Clipped, with lives, ends, truncations and cuts, by the definition of the replay's transitions."""
    seeds, gamma = list(range(40)), 0.9
    rules = Rules(n_step=10**6, gamma=gamma, life_loss=life_loss, reward_clip=reward_clip, frame_stack=2)
    games = Games(SCRIPTED, seeds, 2, IDLE_FRAMES, life_loss, reward_clip, parallel=7).play(hashed(3), value_estimate)
    kinds = set()
    for game in games:
        episode, cut = episode_of(game.seed, game.actions)
        assert (game.score, game.frames, game.cut) == (sum(episode.rewards), 4 * len(episode.actions), cut)
        assert len(game.rewards) == len(game.discounts) == len(game.actions) == len(episode.actions)
        ours = realised_returns(torch.tensor(game.rewards), torch.tensor(game.discounts), gamma, game.bootstrap)
        torch.testing.assert_close(ours, torch.tensor(returns_of(episode, rules, worth)), rtol=1e-5, atol=1e-5)
        assert (game.bootstrap != 0) == (not episode.terminated)
        kinds.add((cut, episode.terminated, episode.truncated, any(episode.life_lost)))
    assert {kind[:3] for kind in kinds} == {
        (True, False, True),
        (False, True, False),
        (False, False, True),
        (False, True, True),
    }


@pytest.mark.usefixtures("scripted")
def test_environments_are_closed_when_games_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(ScriptedGames, "close", lambda envs: closed.append(True), raising=False)

    def fail(observations: Tensor) -> Tensor:
        raise RuntimeError("no action")

    with pytest.raises(RuntimeError, match="no action"):
        Games(SCRIPTED, [1, 2], 2, IDLE_FRAMES, parallel=2).play(fail)
    assert closed == [True]


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("parallel", [1, 3, 10])
@pytest.mark.parametrize("every", [1, 4])
def test_values_are_estimated_for_every_so_many_th_state_of_the_games_and_nothing_else(
    every: int, parallel: int
) -> None:
    asked: list[list[float]] = []

    def estimator(observations: Tensor) -> ValueEstimate:
        asked.extend(observations.tolist())
        return value_estimate(observations)

    games = Games(SCRIPTED, list(range(1, 9)), 2, IDLE_FRAMES, estimate_every=every, parallel=parallel).play(
        hashed(3), estimator
    )
    expected = []
    for game in games:
        episode, _ = episode_of(game.seed, game.actions)
        stacks = [np.concatenate(two) for two in pairwise([0 * episode.screens[0], *episode.screens])]
        due = torch.from_numpy(np.stack(stacks[: len(episode.actions) : every]))
        assert len(game.estimates) == len(due)
        for estimate, observation in zip(game.estimates, due, strict=True):
            for part, wanted in zip(estimate, value_estimate(observation[None]), strict=True):
                assert torch.equal(part, wanted[0])
        expected += due.tolist() + ([] if episode.terminated else [stacks[-1].tolist()])
    assert sorted(asked) == sorted(expected)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("parallel", [1, 3])
def test_screens_of_the_first_game_are_kept_and_change_no_game(parallel: int) -> None:
    seeds = list(range(1, 9))
    played = Games(SCRIPTED, seeds, 2, IDLE_FRAMES, parallel=parallel, recorded_screens=4).play(hashed(3))
    first, *others = played
    assert first.record is not None
    screens = episode_of(first.seed, first.actions)[0].screens
    assert [*first.record.screens] == [*range(0, len(first.actions), first.record.every)]
    assert all(np.array_equal(image, screens[step]) for step, image in first.record.screens.items())
    assert all(game.record is None for game in others)
    without = Games(SCRIPTED, seeds, 2, IDLE_FRAMES, parallel=parallel).play(hashed(3))
    assert [game.actions for game in without] == [game.actions for game in played]


@pytest.mark.usefixtures("scripted")
def test_states_are_kept_evenly_over_games_and_each_is_that_of_its_estimate() -> None:
    seeds = list(range(1, 9))
    games = Games(SCRIPTED, seeds, 2, IDLE_FRAMES, estimate_every=2, parallel=3, sampled_states=shares(21, len(seeds)))
    played = games.play(hashed(3), value_estimate)
    for number, game in enumerate(played):
        assert game.sample is not None
        assert len(game.sample.observations) == min(2 + (number < 5), len(game.estimates))  # 21 = 5 x 3 + 3 x 2
        for state, observation in game.sample.observations.items():
            wanted = value_estimate(observation[None])
            assert all(torch.equal(part[0], one) for part, one in zip(wanted, game.estimates[state], strict=True))
    again = Games(SCRIPTED, seeds, 2, IDLE_FRAMES, estimate_every=2, parallel=8, sampled_states=shares(21, len(seeds)))
    for one, two in zip(played, again.play(hashed(3), value_estimate), strict=True):
        assert one.sample is not None
        assert two.sample is not None
        assert one.sample.observations.keys() == two.sample.observations.keys()
    assert all(game.sample is None for game in Games(SCRIPTED, seeds, 2, IDLE_FRAMES).play(hashed(3), value_estimate))


@pytest.mark.usefixtures("scripted")
def test_games_without_an_estimator_have_no_estimates() -> None:
    for game in Games(SCRIPTED, [1, 2, 3], 2, IDLE_FRAMES).play(hashed(3)):
        assert (game.estimates, game.bootstrap) == ([], 0.0)
        assert len(game.rewards) == len(game.actions)


# ------------------------------------------------------------------ real games
@pytest.mark.parametrize(("settings", "num_actions"), [(MINATAR, 3), (CARTPOLE, 2)], ids=[MINATAR.env, CARTPOLE.env])
def test_games_are_named_by_their_seeds_however_many_are_played_at_once(
    settings: EnvSettings, num_actions: int
) -> None:
    seeds = [4, 8, 15, 16, 23, 42, 108]
    policy = hashed(num_actions)
    wanted = Games(settings, seeds, 3, 0, parallel=1).play(policy)
    assert [g.seed for g in wanted] == seeds
    assert len({astuple(g)[1:3] for g in wanted}) > 1
    for parallel in (2, 3, 10):
        assert Games(settings, seeds, 3, 0, parallel=parallel).play(policy) == wanted
    again = Games(settings, seeds[::-1], 3, 0, parallel=4).play(policy)
    assert again[::-1] == wanted


def test_atari_games_are_named_by_their_seeds_however_many_are_played_at_once() -> None:
    seeds = [5, 6, 7]
    alone = Games(FIRED, seeds, 4, 0, parallel=1).play(hashed(4))
    assert Games(FIRED, seeds, 4, 0, parallel=2).play(hashed(4)) == alone
    assert len({tuple(g.actions) for g in alone}) > 1


def test_scores_are_raw_and_the_recorded_actions_are_the_game() -> None:
    """Space Invaders pays 5 to 30 points for each: never a clipped 1."""
    for game in Games(INVADERS, [0, 1], 4, 0).play(hashed(6)):
        rewards, over = replayed(INVADERS, game)
        assert over
        assert sum(rewards) == game.score >= 5 * np.count_nonzero(rewards) > 0
        assert game.frames == 4 * len(game.actions)


def test_recorded_actions_are_those_that_auto_fire_played() -> None:
    """A policy that never fires still loses lives, because FIRE is pressed for it; the record says so."""
    settings = EnvSettings("breakout", sticky_actions=0.0, max_episode_frames=1200, auto_fire=True)
    (game,) = Games(settings, [1], 4, 0).play(noop)
    assert set(game.actions) == {0, 1}
    rewards, over = replayed(settings, game)
    assert (sum(rewards), over) == (game.score, True)


def test_lost_lives_of_an_atari_game_end_the_learner_s_return() -> None:
    games = Games(FIRED, [1, 2, 3], 4, 0, life_loss="discount", parallel=2).play(hashed(4))
    for game in games:
        envs = make_envs(FIRED, 1)
        _, lives = envs.reset(np.array([game.seed]), np.ones(1, bool))
        steps = [envs.step(np.array([action])) for action in game.actions]
        envs.close()
        counted = [int(lives[0]), *(int(step.lives[0]) for step in steps)]
        kept = [float(b >= a and not step.terminated[0]) for step, (a, b) in zip(steps, pairwise(counted), strict=True)]
        assert game.discounts == kept
    assert sum(game.discounts.count(0.0) for game in games) > 3


def test_gymnasium_games_end_at_their_end() -> None:
    for game in Games(CARTPOLE, [1, 2, 3, 4], 1, 0, parallel=2).play(noop):
        assert game.score == game.frames == len(game.actions) < 15  # pushed left only, the pole falls
        assert replayed(CARTPOLE, game) == ([1.0] * len(game.actions), True)


def test_a_game_without_rewards_ends_after_the_idle_frames() -> None:
    """Breakout stands still until FIRE: each game ends at 100 frames, also those begun after an unfinished one."""
    settings = EnvSettings("breakout", sticky_actions=0.25)
    games = Games(settings, [1, 2, 3], 4, 100, parallel=2).play(noop)
    assert [(g.score, g.frames, len(g.actions)) for g in games] == [(0.0, 100, 25)] * 3


def test_a_reward_sets_the_idle_frames_back() -> None:
    """CartPole pays each frame: an idle limit of 2 frames never ends it. Elsewhere the longest wait is the limit."""
    assert Games(CARTPOLE, [1, 2], 1, 2).play(noop) == Games(CARTPOLE, [1, 2], 1, 0).play(noop)
    settings, limit = EnvSettings("MinAtar/Asterix-v1", frame_skip=1, sticky_actions=0.1), 30
    causes = set()
    for game in Games(settings, list(range(40)), 1, limit, parallel=5).play(hashed(5)):
        rewards, over = replayed(settings, game)
        paid = [-1, *np.flatnonzero(rewards), len(rewards) - 1 + over]
        waits = np.diff(paid)
        assert max(waits[:-1], default=0) <= limit
        assert over or waits[-1] == limit
        assert game.score == sum(rewards)
        causes.add((over, game.score > 0))
    assert (False, True) in causes, "no game was cut after it had been rewarded"


def test_an_idle_limit_of_zero_ends_nothing() -> None:
    settings = EnvSettings("breakout", sticky_actions=0.0, max_episode_frames=400)
    (game,) = Games(settings, [1], 4, 0).play(noop)
    assert game.frames == 400


def test_the_policy_sees_what_it_sees_in_training() -> None:
    """Stacks of the right shape and type, zero before the start of each game."""
    shapes, starts = set(), 0

    def policy(observations: Tensor) -> Tensor:
        nonlocal starts
        shapes.add((tuple(observations.shape), observations.dtype))
        for stack in observations.view(2, 3, 4):
            blank = (stack == 0).all(1).tolist()
            assert blank in ([True, True, False], [True, False, False], [False] * 3)
            starts += blank[0] and blank[1]
        return noop(observations)

    Games(CARTPOLE, [1, 2, 3, 4], 3, 0, parallel=2).play(policy)
    assert shapes == {((2, 12), torch.float32)}
    assert starts == 4


@pytest.mark.parametrize("settings", [MINATAR, CARTPOLE], ids=lambda s: s.env)
def test_the_policy_is_asked_for_the_states_of_games_alone(settings: EnvSettings) -> None:
    """An environment whose games are all over is stepped on beside the others; nobody looks at its screens."""
    asked = 0

    def policy(observations: Tensor) -> Tensor:
        nonlocal asked
        asked += len(observations)
        return hashed(2)(observations)

    games = Games(settings, list(range(9)), 3, 0, parallel=4).play(policy)
    assert asked == sum(len(game.actions) for game in games)


@pytest.mark.slow
def test_tennis_without_a_serve_counts_at_most_as_random_play() -> None:
    """By the frame limit and by the idle limit alike; the points of a game that goes on are told."""
    tennis = EnvSettings("tennis", sticky_actions=0.25, max_episode_frames=400)
    for idle, limit in ((0, "truncated"), (100, "cut")):
        games = Games(tennis, [1, 2], 4, idle, parallel=2).play(noop)
        assert all(getattr(game, limit) and game.score == 0 for game in games)
        assert all(human_normalised_score("tennis", game.counted) == 0 for game in games)
    long = EnvSettings("tennis", sticky_actions=0.25, max_episode_frames=6000)
    (game,) = Games(long, [3], 4, 0).play(hashed(18))
    rewards, _ = replayed(long, game)
    assert game.points_lost == -sum(min(reward, 0) for reward in rewards) > 0


@pytest.mark.usefixtures("scripted")
def test_a_game_that_ends_at_its_limit_was_not_stopped() -> None:
    """Scripted games terminate, are truncated, or both at once; and some are cut before."""
    seen = set()
    for game in Games(SCRIPTED, list(range(1, 40)), 2, IDLE_FRAMES).play(hashed(3)):
        episode, idle = episode_of(game.seed, game.actions)
        assert (game.cut, game.truncated) == (idle, not idle and episode.truncated and not episode.terminated)
        seen.add((episode.terminated, episode.truncated, idle))
    assert seen == {(True, False, False), (False, True, False), (True, True, False), (False, True, True)}


def test_only_a_game_that_was_stopped_is_truncated() -> None:
    for game in Games(CARTPOLE, [1, 2], 1, 0).play(noop):
        assert not game.truncated
    short = EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0, max_episode_frames=5)
    assert all(game.truncated for game in Games(short, [1, 2], 1, 0).play(noop))


def test_no_seeds_are_no_games() -> None:
    """A process that got none of the games, because there are more processes than games."""
    games = Games(CARTPOLE, [], 1, 0)
    assert len(games) == 0
    assert games.play(noop) == []


def test_a_loader_hands_out_one_set_of_games() -> None:
    games = Games(CARTPOLE, [1, 2], 1, 0)
    loader = GameLoader([games])
    assert len(loader) == 1
    assert list(loader) == [games] == list(loader)
    assert len(games) == 2


def test_stages_and_runs_never_share_a_game() -> None:
    seeds: list[int] = []
    for seed in (0, 1, 2):
        data = ReplayDataModule(
            env="CartPole-v1", rules={"frame_skip": 1}, num_envs=1, seed=seed, replay={"capacity": 100, "min_size": 10}
        )
        for stage in ("validate", "test", "predict"):
            seeds += data.games(stage).seeds
    assert len(set(seeds)) == len(seeds) == 3 * 3 * 20
