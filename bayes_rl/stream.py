"""The training stream: act -> step -> store -> sample. It owns the counters and the exploration schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from bayes_rl.envs import Envs, History, ObservationStack, Step, episode_seed
from bayes_rl.exploration import Chance, EpsilonSchedule, draw_seed
from bayes_rl.replay import ReplayBuffer
from bayes_rl.types import Batch, ConfigError, DrawPolicy, Policy

SAMPLE = 0x53  # domain of the generators of minibatches


class ReplayStream(IterableDataset[Batch]):
    """Finite epochs of minibatches from an ever-growing experience.

    Environments step while the learner works: actions are sent before minibatches are handed out and the results
    fetched after. The order is fixed, so a run is a function of its seed. All randomness is drawn from generators
    keyed by (seed, rank, domain, counter): there is no generator state to save.

    Args:
        envs: not yet reset.
        replay: empty, or restored by `load_state_dict`.
        policy: greedy behaviour.
        epsilon: exploration.
        batch_size: transitions per minibatch.
        updates_per_step: minibatches per agent step (0.25: one per four steps), > 0.
        batches_per_epoch: length of one pass.
        min_replay_size: transitions collected uniformly at random before the first minibatch.
        frame_skip: frames per agent step.
        seed: of the run.
        rank: of this process; part of every seed.
        world_size: processes; frames are counted over all of them.
        refill_replay: collect a new replay when a state is loaded, instead of requiring the old one.
        draw_policy: acts instead of `policy`, by a posterior draw for each environment and episode.
    """

    def __init__(
        self,
        envs: Envs,
        replay: ReplayBuffer,
        policy: Policy,
        epsilon: EpsilonSchedule,
        *,
        batch_size: int,
        updates_per_step: float,
        batches_per_epoch: int,
        min_replay_size: int,
        frame_skip: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        refill_replay: bool = False,
        draw_policy: DrawPolicy | None = None,
    ) -> None:
        self.draw_policy = draw_policy
        self.envs, self.replay, self.policy, self.epsilon_schedule = envs, replay, policy, epsilon
        self.batch_size, self.updates_per_step = batch_size, updates_per_step
        self.batches_per_epoch, self.min_replay_size = batches_per_epoch, min_replay_size
        self.frame_skip, self.seed, self.rank, self.world_size = frame_skip, seed, rank, world_size
        self.refill_replay = refill_replay
        count = envs.num_envs
        self.stack = ObservationStack(count, replay.frame_stack, envs.screen_shape, envs.screen_dtype)
        self.vector_steps = 0  # steps of all environments together, prefill included
        self.learning_steps = 0  # the same, since the prefill
        self.updates = 0  # minibatches handed out
        self.episodes = np.zeros(count, np.int64)
        self.lives = np.zeros(count, np.int64)
        self.histories = [History() for _ in range(count)]
        self.seeded_episode = np.zeros(count, np.int64)  # the episode of the last seeded reset
        self.restarting = np.zeros(count, bool)  # whose next step is the beginning of an episode
        self.episode_return = np.zeros(count)
        self.recent_returns: deque[float] = deque(maxlen=100)
        self.finished_episodes = 0
        self._in_flight: NDArray[np.int64] | None = None
        self._screens: NDArray[Any] = np.zeros(0)  # the newest ones, once there are any
        self._started = False
        self._chance = Chance(seed, rank, count, envs.num_actions)

    @property
    def agent_steps(self) -> int:
        """Actions taken, over all environments and ranks."""
        return self.vector_steps * self.envs.num_envs * self.world_size

    @property
    def frames(self) -> int:
        """Environment frames, over all environments and ranks."""
        return self.agent_steps * self.frame_skip

    @property
    def epsilon(self) -> float:
        """Probability of a uniformly random action now; 1 during the prefill."""
        learning = self.learning_steps * self.envs.num_envs * self.world_size * self.frame_skip
        return self.epsilon_schedule(learning) if self.learning_steps else 1.0

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        self._prefill()
        # From counters alone, so that an epoch interrupted in its middle goes on where it was.
        epoch_end = (self.updates // self.batches_per_epoch + 1) * self.batches_per_epoch
        while self.updates < epoch_end:
            while self.updates >= int(self.learning_steps * self.envs.num_envs * self.updates_per_step):
                self.learning_steps += 1
                self.step_environments()
            rng = np.random.default_rng([self.seed, self.rank, SAMPLE, self.updates])
            self.updates += 1
            yield Batch(self.replay.sample(self.batch_size, rng), len(self.replay) * self.world_size, self.frames)

    def _prefill(self) -> None:
        size = min(self.min_replay_size, self.replay.ring * self.replay.num_envs)
        while len(self.replay) < size or self.replay.sampleable < 1:
            self.step_environments()

    def step_environments(self) -> None:
        """Fetch the step under way, act and send the next one; store the fetched one while that is emulated."""
        store = self._receive()
        if not self._started:
            self._reset(np.ones(self.envs.num_envs, bool))
            self._started = True
        actions = self._explore()
        self._send(actions)
        self.vector_steps += 1
        store()

    def _send(self, actions: NDArray[np.int64]) -> None:
        self._in_flight = self.envs.send(actions)
        for env, action in enumerate(self._in_flight.tolist()):
            if not self.restarting[env]:
                self.histories[env].actions.append(action)

    def _explore(self) -> NDArray[np.int64]:
        random_actions, u = self._chance(self.vector_steps)
        explore = u < self.epsilon
        if explore.all():
            return random_actions
        observations = self.stack.observations()
        if self.draw_policy is None:
            return np.where(explore, random_actions, self.policy(observations).numpy())
        episodes = enumerate(self.episodes.tolist())
        seeds = [draw_seed(self.seed, self.rank, env, episode) for env, episode in episodes]
        return np.where(explore, random_actions, self.draw_policy(observations, seeds).numpy())

    def finish_step(self) -> None:
        """Wait for the step under way, if any, and store it."""
        self._receive()()

    def _receive(self) -> Callable[[], None]:
        """Wait for the step under way, if any, and reset what ended; returns what stores that step."""
        if self._in_flight is None:
            return lambda: None
        step = self.envs.recv()
        store = partial(self._store, step, self._screens, self._in_flight, self.lives, self.restarting)
        self._in_flight = None
        self._screens, self.lives = step.screens, step.lives
        self.stack.push(step.screens)
        if self.restarting.any():
            self._begin(self.restarting, step.screens)
            self.restarting = np.zeros_like(self.restarting)
        ended = step.terminated | step.truncated
        if ended.any():
            self._end(ended)
        return store

    def _store(
        self,
        step: Step,
        screens: NDArray[Any],
        actions: NDArray[np.int64],
        lives: NDArray[np.int64],
        idle: NDArray[np.bool_],
    ) -> None:
        """Write a step and what it was taken from to the replay, and count its episodes."""
        life_lost = step.lives < lives
        self.replay.add(screens, actions, step.rewards, step.terminated, step.truncated, life_lost, step.screens, idle)
        self.episode_return += step.rewards
        ended = step.terminated | step.truncated
        if ended.any():
            self.recent_returns.extend(self.episode_return[ended].tolist())
            self.finished_episodes += int(ended.sum())
            self.episode_return[ended] = 0

    def _end(self, ended: NDArray[np.bool_]) -> None:
        """Reset what is due for a seed now; the others begin again by themselves, in place of their next step."""
        steps = np.array([len(h.actions) for h in self.histories])
        due = ended & (steps >= self.envs.steps_per_seed)
        self.restarting = ended & ~due
        if due.any():
            self._reset(due)

    def _seeds(self) -> NDArray[np.int64]:
        """The seed of every environment's last seeded reset, `[E]`."""
        episodes = enumerate(self.seeded_episode.tolist())
        return np.array([episode_seed(self.seed, self.rank, env, episode) for env, episode in episodes], np.int64)

    def _reset(self, mask: NDArray[np.bool_]) -> None:
        """Begin new episodes, named by their seeds, where `mask` is set."""
        self.seeded_episode[mask] = self.episodes[mask] + 1
        for env in np.flatnonzero(mask):
            self.histories[env] = History()
        screens, lives = self.envs.reset(self._seeds()[mask], mask)
        self.lives = np.where(mask, lives, self.lives)
        self._begin(mask, screens)
        self._screens = self.stack.array[:, -1].copy()

    def _begin(self, mask: NDArray[np.bool_], screens: NDArray[Any]) -> None:
        """Note that episodes began where `mask` is set."""
        self.episodes[mask] += 1
        self.stack.begin(screens, mask)
        for env in np.flatnonzero(mask):
            history = self.histories[env]
            if history.actions:
                history.resets.append(len(history.actions))

    def state_dict(self) -> dict[str, Any]:
        """Counters, and environments as (seed, what was done since): tensors and primitives only."""
        return {
            "vector_steps": self.vector_steps,
            "learning_steps": self.learning_steps,
            "updates": self.updates,
            "finished_episodes": self.finished_episodes,
            "episodes": torch.from_numpy(self.episodes.copy()),
            "lives": torch.from_numpy(self.lives.copy()),
            "episode_return": torch.from_numpy(self.episode_return.copy()),
            "recent_returns": list(self.recent_returns),
            "seeded_episode": torch.from_numpy(self.seeded_episode.copy()),
            "restarting": torch.from_numpy(self.restarting.copy()),
            "actions": [torch.tensor(h.actions, dtype=torch.int16) for h in self.histories],
            "resets": [torch.tensor(h.resets, dtype=torch.int32) for h in self.histories],
            "in_flight": self._in_flight is not None,  # then the last action of each history is under way, or a restart
            "stack": torch.from_numpy(self.stack.array.copy()),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild counters and environments; the replay too unless it is to be collected again."""
        for key in ("vector_steps", "learning_steps", "updates", "finished_episodes"):
            setattr(self, key, state[key])
        self.episodes[:] = state["episodes"].numpy()
        self.lives = state["lives"].numpy().copy()
        self.episode_return[:] = state["episode_return"].numpy()
        self.recent_returns.extend(state["recent_returns"])
        self.seeded_episode[:] = state["seeded_episode"].numpy()
        self.restarting = state["restarting"].numpy().copy()
        pairs = zip(state["actions"], state["resets"], strict=True)
        self.histories = [History(actions.tolist(), resets.tolist()) for actions, resets in pairs]
        if self.refill_replay:
            self._started = False
            self.restarting[:] = False
            return
        self.replay.load_state_dict(state["replay"])
        self._started = self.vector_steps > 0
        if self._started:
            self.stack.array[:] = state["stack"].numpy()
            self._screens = self.stack.array[:, -1].copy()
            under_way = None
            if state["in_flight"]:
                begins = zip(self.restarting.tolist(), self.histories, strict=True)
                under_way = [0 if restarting else h.actions.pop() for restarting, h in begins]
            screens = self.envs.restore(self._seeds(), self.histories)
            if not np.array_equal(screens, self.stack.array[:, -1]):
                raise ConfigError(
                    "ckpt_path",
                    str(self.replay.directory),
                    "the environments could not be rebuilt from their seeds and actions: was ale-py or gymnasium "
                    "updated since the checkpoint? --data.refill_replay true starts new games",
                )
            if under_way is not None:
                self._send(np.array(under_way, np.int64))
