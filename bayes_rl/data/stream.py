"""Training stream: act, step, store, sample. The stream owns all counters and the schedule of epsilon."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from bayes_rl.data.exploration import EpsilonSchedule, ExplorationNoise, draw_seed
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.envs.base import ActionHistory, Step, VectorEnvs, episode_seed
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.errors import ConfigError
from bayes_rl.types import Batch, DrawPolicy, Policy

SAMPLE = 0x53
"""Domain of the generators of minibatches."""


COUNTERS = ("vector_steps", "learning_steps", "task_began", "updates", "finished_episodes")
"""Attributes of a stream that its state holds as numbers."""


ARRAYS = ("episodes", "lives", "episode_return", "seeded_episode", "restarting")
"""Attributes of a stream that its state holds as tensors, `[E]` each."""


class ReplayStream(IterableDataset[Batch]):
    """Stream of minibatches that steps environments between them. An epoch has a fixed number of minibatches.

    Environments step while the learner works: the stream sends actions before it yields minibatches, and receives the
    results after them. The order is fixed, so that a run is a function of its seed. All random numbers come from
    generators keyed by (seed, rank, domain, counter), so that there is no generator state to save.

    Args:
        envs: E environments, not yet reset.
        replay: empty, or restored by `load_state_dict`.
        policy: greedy behaviour.
        epsilon: schedule of the probability of a random action.
        batch_size: transitions per minibatch.
        updates_per_step: minibatches per agent step, > 0; 0.25 is one per four steps.
        batches_per_epoch: minibatches per epoch.
        min_replay_size: transitions collected uniformly at random before the first minibatch.
        frame_skip: frames per agent step.
        seed: of the run.
        rank: of this process; part of every seed.
        world_size: number of processes; frames are counted over all of them.
        refill_replay: collect a new replay when a state is loaded, instead of requiring the old one.
        draw_policy: behaviour by one posterior draw per environment and episode, used instead of `policy`.
        keep_replays: learn from the replays of finished tasks as well; each minibatch comes from one replay, drawn
            uniformly.
        restart_epsilon: restart the schedule of epsilon at a task switch.
    """

    def __init__(
        self,
        envs: VectorEnvs,
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
        keep_replays: bool = False,
        restart_epsilon: bool = True,
    ) -> None:
        self.policy, self.draw_policy, self.epsilon_schedule = policy, draw_policy, epsilon
        self.keep_replays, self.restart_epsilon = keep_replays, restart_epsilon
        self.batch_size, self.updates_per_step = batch_size, updates_per_step
        self.batches_per_epoch, self.min_replay_size = batches_per_epoch, min_replay_size
        self.frame_skip, self.seed, self.rank, self.world_size = frame_skip, seed, rank, world_size
        self.refill_replay = refill_replay
        self.vector_steps = 0  # steps of all environments together, prefill included
        self.learning_steps = 0  # vector steps without those of the prefills
        self.task_began = 0  # learning steps before the current task
        self.updates = self.finished_episodes = 0  # minibatches yielded, episodes that ended
        self.episodes = np.zeros(envs.num_envs, np.int64)
        self._noise = ExplorationNoise(seed, rank, envs.num_envs, envs.num_actions)
        self.finished: list[tuple[int, ReplayBuffer]] = []  # earlier tasks and their replays, with `keep_replays`
        self._start_task(0, envs, replay)

    def _start_task(self, task: int, envs: VectorEnvs, replay: ReplayBuffer) -> None:
        """Start `task` with new environments and an empty replay. Counters are not reset."""
        self.task, self.envs, self.replay = task, MonitoredEnvs(envs), replay
        count = envs.num_envs
        self.stack = ObservationStack(count, replay.frame_stack, envs.screen_shape, envs.screen_dtype)
        self.lives = np.zeros(count, np.int64)
        self.histories = [ActionHistory() for _ in range(count)]
        self.seeded_episode = np.zeros(count, np.int64)  # the episode of the last seeded reset
        self.restarting = np.zeros(count, bool)  # environments whose next step is a reset
        self.episode_return = np.zeros(count)
        self.recent_returns: deque[float] = deque(maxlen=100)
        self._in_flight: NDArray[np.int64] | None = None
        self._screens: NDArray[Any] = np.zeros(0)  # newest screens, `[E, *screen_shape]` after the first reset
        self._started = False

    def switch(self, task: int, envs: VectorEnvs, replay: ReplayBuffer) -> None:
        """Switch to the environments of `task`. Random actions fill `replay` before the next update."""
        self.finish_step()
        self.envs.close()
        if self.keep_replays:
            self.finished.append((self.task, self.replay))
        self.task_began = self.learning_steps
        self._start_task(task, envs, replay)

    @property
    def agent_steps(self) -> int:
        """Agent steps, over all environments and ranks."""
        return self.vector_steps * self.envs.num_envs * self.world_size

    @property
    def frames(self) -> int:
        """Environment frames, over all environments and ranks."""
        return self.agent_steps * self.frame_skip

    @property
    def epsilon(self) -> float:
        """Current probability of a uniformly random action; 1 during each prefill."""
        steps = self.learning_steps - self.task_began
        elapsed = steps if self.restart_epsilon else self.learning_steps
        return self.epsilon_schedule(elapsed * self.envs.num_envs * self.world_size * self.frame_skip) if steps else 1.0

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        self._prefill()
        # The end follows from counters alone, so that an interrupted epoch resumes where it was.
        epoch_end = (self.updates // self.batches_per_epoch + 1) * self.batches_per_epoch
        while self.updates < epoch_end:
            while self.updates >= int(self.learning_steps * self.envs.num_envs * self.updates_per_step):
                self.learning_steps += 1
                self.step_environments()
            rng = np.random.default_rng([self.seed, self.rank, SAMPLE, self.updates])
            self.updates += 1
            task, replay = self.task, self.replay
            if self.finished and (earlier := int(rng.integers(len(self.finished) + 1))) < len(self.finished):
                task, replay = self.finished[earlier]
            num_data = sum(len(data) for data in (self.replay, *(data for _, data in self.finished)))
            yield Batch(replay.sample(self.batch_size, rng), num_data * self.world_size, self.frames, task)

    def _prefill(self) -> None:
        """Step with random actions until the replay is large enough to learn from."""
        size = min(self.min_replay_size, self.replay.ring * self.replay.num_envs)
        while len(self.replay) < size or self.replay.sampleable < 1:
            self.step_environments()

    def step_environments(self) -> None:
        """Receive the pending step, act, send the next step, and store the received step while the next one runs."""
        random_actions, explore = self._exploration()  # depends on no result: drawn while the pending step runs
        store = self._receive()
        if not self._started:
            self._reset(np.ones(self.envs.num_envs, bool))
            self._started = True
        self._send(random_actions if explore.all() else self._act(random_actions, explore))
        self.vector_steps += 1
        store()

    def _send(self, actions: NDArray[np.int64]) -> None:
        """Send actions, and record those that the environments execute."""
        self._in_flight = self.envs.send(actions)
        for env, action in enumerate(self._in_flight.tolist()):
            if not self.restarting[env]:
                self.histories[env].actions.append(action)

    def _exploration(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return random actions of the next step, and where to take them, `[E]` each."""
        random_actions, u = self._noise(self.vector_steps)
        return random_actions, u < self.epsilon

    def _act(self, random_actions: NDArray[np.int64], explore: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the policy's actions, replaced by `random_actions` where `explore` is set, `[E]`."""
        observations = self.stack.observations()
        if self.draw_policy is None:
            return np.where(explore, random_actions, self.policy(observations).numpy())
        seeds = [draw_seed(self.seed, self.rank, env, episode) for env, episode in enumerate(self.episodes.tolist())]
        return np.where(explore, random_actions, self.draw_policy(observations, seeds).numpy())

    def finish_step(self) -> None:
        """Receive and store the pending step, if there is one."""
        self._receive()()

    def _receive(self) -> Callable[[], None]:
        """Receive the pending step, reset finished environments, and return a function that stores the step."""
        if self._in_flight is None:
            return lambda: None
        step = self.envs.recv()
        ended = step.terminated | step.truncated
        store = partial(self._store, step, ended, self._screens, self._in_flight, self.lives, self.restarting)
        self._in_flight = None
        self._screens, self.lives = step.screens, step.lives
        self.stack.push(step.screens)
        if self.restarting.any():
            self._record_starts(self.restarting, step.screens)
            self.restarting = np.zeros_like(self.restarting)
        if ended.any():
            self._reset_ended(ended)
        return store

    def _store(
        self,
        step: Step,
        ended: NDArray[np.bool_],
        screens: NDArray[Any],
        actions: NDArray[np.int64],
        lives: NDArray[np.int64],
        idle: NDArray[np.bool_],
    ) -> None:
        """Add a step to the replay, with the screens that it was taken from, and count the episodes that ended."""
        life_lost = step.lives < lives
        self.replay.add(screens, actions, step.rewards, step.terminated, step.truncated, life_lost, step.screens, idle)
        self.episode_return += step.rewards
        if ended.any():
            self.recent_returns.extend(self.episode_return[ended].tolist())
            self.finished_episodes += int(ended.sum())
            self.episode_return[ended] = 0

    def _reset_ended(self, ended: NDArray[np.bool_]) -> None:
        """Reset environments whose next seed is due. The others restart by themselves, in place of their next step."""
        steps = np.array([len(h.actions) for h in self.histories])
        due = ended & (steps >= self.envs.steps_per_seed)
        self.restarting = ended & ~due
        if due.any():
            self._reset(due)

    def _seeds(self) -> NDArray[np.int64]:
        """Return the seed of every environment's last seeded reset, `[E]`."""
        episodes = enumerate(self.seeded_episode.tolist())
        return np.array([episode_seed(self.seed, self.rank, env, episode) for env, episode in episodes], np.int64)

    def _reset(self, mask: NDArray[np.bool_]) -> None:
        """Start episodes by their seeds where `mask` is set."""
        self.seeded_episode[mask] = self.episodes[mask] + 1
        for env in np.flatnonzero(mask):
            self.histories[env] = ActionHistory()
        screens, lives = self.envs.reset(self._seeds()[mask], mask)
        self.lives = np.where(mask, lives, self.lives)
        self._record_starts(mask, screens)
        self._screens = self.stack.array[:, -1].copy()

    def _record_starts(self, mask: NDArray[np.bool_], screens: NDArray[Any]) -> None:
        """Record that episodes started where `mask` is set."""
        self.episodes[mask] += 1
        self.stack.begin(screens, mask)
        for env in np.flatnonzero(mask):
            history = self.histories[env]
            if history.actions:
                history.resets.append(len(history.actions))

    def state_dict(self) -> dict[str, Any]:
        """Return counters, and environments as their seeds and actions since. Only tensors and primitives."""
        return {
            **{key: getattr(self, key) for key in COUNTERS},
            **{key: torch.from_numpy(getattr(self, key).copy()) for key in ARRAYS},
            "recent_returns": list(self.recent_returns),
            "actions": [torch.tensor(h.actions, dtype=torch.int16) for h in self.histories],
            "resets": [torch.tensor(h.resets, dtype=torch.int32) for h in self.histories],
            # If so, the last action of each history belongs to the pending step, or the pending step is a restart.
            "in_flight": self._in_flight is not None,
            "stack": torch.from_numpy(self.stack.array.copy()),
            "replay": self.replay.state_dict(),
            "finished": [replay.state_dict() for _, replay in self.finished],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore counters, environments and, without `refill_replay`, the replay.

        Raises:
            ConfigError: the replay is missing, or the environments do not come back as they were.
        """
        for key in COUNTERS:
            setattr(self, key, state[key])
        for key in ARRAYS:
            setattr(self, key, state[key].numpy().copy())
        self.recent_returns.extend(state["recent_returns"])
        pairs = zip(state["actions"], state["resets"], strict=True)
        self.histories = [ActionHistory(actions.tolist(), resets.tolist()) for actions, resets in pairs]
        if self.refill_replay:
            self._started = False
            self.restarting[:] = False
            self.finished.clear()  # replays of earlier tasks cannot be collected again
            return
        self.replay.load_state_dict(state["replay"])
        for (_, replay), saved in zip(self.finished, state["finished"], strict=True):
            replay.load_state_dict(saved)
        self._started = self.vector_steps > 0
        if self._started:
            self.stack.array[:] = state["stack"].numpy()
            self._screens = self.stack.array[:, -1].copy()
            pending = None
            if state["in_flight"]:
                restarts = zip(self.restarting.tolist(), self.histories, strict=True)
                pending = [0 if restarting else h.actions.pop() for restarting, h in restarts]
            screens = self.envs.restore(self._seeds(), self.histories)
            if not np.array_equal(screens, self.stack.array[:, -1]):
                raise ConfigError(
                    "ckpt_path",
                    str(self.replay.files.directory),
                    "the environments could not be rebuilt from their seeds and actions: was ale-py or gymnasium "
                    "updated since the checkpoint? --data.refill_replay true starts new games",
                )
            if pending is not None:
                self._send(np.array(pending, np.int64))


class StreamLoader:
    """Training loader around a stream.

    The data module saves the stream's state, because Lightning restores a loader's state in the middle of an epoch
    only. The loader's own state is empty, which tells Lightning that a stop in the middle of an epoch is safe.
    """

    def __init__(self, stream: ReplayStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the empty state."""
