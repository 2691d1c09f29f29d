"""A naive recorder that keeps whole episodes in lists and recomputes everything from the definition, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass
class Episode:
    """What happened from one reset to the next: T steps, T screens seen before them and one after the last."""

    screens: list[NDArray[Any]] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    life_lost: list[bool] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Expected(NamedTuple):
    """The transition that the definition gives, and how many steps it spans."""

    observation: NDArray[Any]
    action: int
    reward: float
    discount: float
    next_observation: NDArray[Any]
    steps: int
    realised_return: float


@dataclass(frozen=True)
class Rules:
    """How stored steps become transitions."""

    n_step: int = 4
    gamma: float = 0.99
    life_loss: str = "none"
    reward_clip: float | None = None
    frame_stack: int = 1


class Recorder:
    """Remembers everything that was ever added, of every environment.

    `slots[env][number]` says what the `number`-th slot ever written for `env` holds: `(episode, t)`, the screen
    before step t of that episode; t equal to the episode's length is its final screen, from which no step starts.
    """

    def __init__(self, num_envs: int) -> None:
        self.episodes: list[list[Episode]] = [[] for _ in range(num_envs)]
        self.slots: list[list[tuple[Episode, int]]] = [[] for _ in range(num_envs)]

    def add(
        self,
        screens: NDArray[Any],
        actions: NDArray[np.int64],
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        life_lost: NDArray[np.bool_],
        next_screens: NDArray[Any],
    ) -> None:
        """The same call as `ReplayBuffer.add`."""
        for e, episodes in enumerate(self.episodes):
            if not episodes or episodes[-1].over:
                episodes.append(Episode())
            episode = episodes[-1]
            self.slots[e].append((episode, len(episode.actions)))
            episode.screens.append(screens[e].copy())
            episode.actions.append(int(actions[e]))
            episode.rewards.append(float(rewards[e]))
            episode.life_lost.append(bool(life_lost[e]))
            episode.terminated, episode.truncated = bool(terminated[e]), bool(truncated[e])
            if episode.over:
                self.slots[e].append((episode, len(episode.actions)))
                episode.screens.append(next_screens[e].copy())

    def is_step(self, env: int, number: int) -> bool:
        """Whether a step was taken from this slot (it is not an episode's final screen)."""
        episode, t = self.slots[env][number]
        return t < len(episode.actions)

    def chosen(self, env: int, ring: int, rules: Rules) -> list[int]:
        """Slots that a transition may start from when only the newest `ring` slots are kept.

        The whole stack must not reach back over what is gone, and the n-step window must lie in what is written.
        """
        written = len(self.slots[env])
        oldest = max(0, written - ring)
        first = oldest + rules.frame_stack - 1 if oldest else 0
        return [m for m in range(first, written) if m + rules.n_step < written and self.is_step(env, m)]

    def needed(self, env: int, number: int, rules: Rules) -> range:
        """Slot numbers that the transition from `number` is made of."""
        _, t = self.slots[env][number]
        steps = self.expected(env, number, rules).steps
        return range(number - min(t, rules.frame_stack - 1), number + steps + 1)

    def expected(self, env: int, number: int, rules: Rules) -> Expected:
        """The n-step transition from a slot, by the definition."""
        episode, start = self.slots[env][number]
        total, t = 0.0, start
        while True:
            total += rules.gamma ** (t - start) * _learner_reward(episode, t, rules)
            last = episode.over and t == len(episode.actions) - 1
            dead = (last and episode.terminated) or (rules.life_loss == "discount" and episode.life_lost[t])
            t += 1
            if dead or last or t - start == rules.n_step:
                break
        discount = 0.0 if dead else rules.gamma ** (t - start)
        return Expected(
            _stack(episode, start, rules.frame_stack),
            episode.actions[start],
            total,
            discount,
            _stack(episode, t, rules.frame_stack),
            t - start,
            _realised_return(episode, start, rules),
        )


def _realised_return(episode: Episode, start: int, rules: Rules) -> float:
    """The sum of all rewards from a step to the end of its return; NaN if the end is not known."""
    total = 0.0
    for t in range(start, len(episode.actions)):
        total += rules.gamma ** (t - start) * _learner_reward(episode, t, rules)
        last = t == len(episode.actions) - 1
        life_ends = rules.life_loss == "discount" and episode.life_lost[t]
        if episode.over and (life_ends or (last and episode.terminated)):
            return total
    return float("nan")


def _learner_reward(episode: Episode, t: int, rules: Rules) -> float:
    """The reward of step t as the learner sees it: clipped; then one less for a lost life or a lost game."""
    reward = episode.rewards[t]
    if rules.reward_clip is not None:
        reward = max(-rules.reward_clip, min(rules.reward_clip, reward))
    if rules.life_loss == "penalty":
        game_lost = episode.terminated and t == len(episode.actions) - 1
        reward -= 1.0 if episode.life_lost[t] or game_lost else 0.0
    return reward


def _stack(episode: Episode, t: int, frame_stack: int) -> NDArray[Any]:
    """The last `frame_stack` screens up to t, oldest first along the channels, zeros before the first screen."""
    blank = np.zeros_like(episode.screens[0])
    screens = [episode.screens[i] if i >= 0 else blank for i in range(t - frame_stack + 1, t + 1)]
    return np.concatenate(screens)
