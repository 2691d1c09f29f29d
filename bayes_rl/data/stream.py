"""Training stream: act, step, store, sample. The stream has all counters and the schedules of epsilon and of draws."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from bayes_rl.data.exploration import DrawSchedule, EpsilonSchedule, ExplorationNoise, draw_seed, episode_uniform
from bayes_rl.data.replay import ReplayBuffer, num_newest
from bayes_rl.envs.base import ActionHistory, Step, VectorEnvs, episode_seed
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.errors import ConfigError
from bayes_rl.types import Batch, DrawPolicy, Policy, Transition
from bayes_rl.utils.ranks import gather_from_ranks, sum_over_ranks
from bayes_rl.utils.seeds import Domain, seed_sequence
from bayes_rl.utils.side_thread import SIDE_THREAD
from bayes_rl.utils.version_0_1 import with_episode_seeds

COUNTERS = ("vector_steps", "task_began", "updates", "finished_episodes")
"""Attributes of a stream that its state holds as numbers, beside `steps_after_prefill`."""


ARRAYS = ("episodes", "lives", "episode_return", "episode_seeds", "restarting")
"""Attributes of a stream that its state holds as tensors, `[E]` each."""


UPDATES_PER_COUNT = 8
"""Updates between two counts of the transitions of all ranks."""

BYTES_BESIDE = 2**16
"""Least size of a step's screens that a second thread stores: smaller ones take less time than a change of thread."""


class ReplayStream(IterableDataset[Batch]):
    """Stream of minibatches that steps environments between them. An epoch has a fixed number of minibatches.

    A screen is what an environment returns at one agent step: an image, planes, a vector or an integer. An observation
    is the last `frame_stack` screens. A frame is one step of the emulator; an agent step is `frame_skip` frames.

    Environments step while the learner works: the stream sends actions before it yields minibatches, and receives the
    results after them. Between the two, the step is pending. The order is fixed, so that a run is a function of its
    seed. All random numbers come from generators keyed by (purpose, seed, number, counter), so that there is no
    generator state to save. A resumed run continues from `state_dict`.

    Each rank of a run has a stream of its own environments and a replay of their steps. The environments are numbered
    over all ranks. All ranks take their vector steps together: the prefill ends by the steps of all of them, and every
    later step follows from counters. Ranks therefore play the games that one process with all environments would play.

    Args:
        envs: E environments of this rank, not yet reset.
        replay: empty, or restored by `load_state_dict`.
        policy: function from observations to greedy actions.
        epsilon: schedule of the probability of a random action.
        batch_size: transitions of this rank per minibatch.
        updates_per_step: minibatches per agent step of all ranks, > 0; 0.25 is one per four steps.
        batches_per_epoch: minibatches per epoch.
        replay_min_size: transitions of all ranks collected with random actions before the first minibatch (the
            prefill).
        frame_skip: frames per agent step.
        seed: seed of the run.
        rank: number of this process. Its environments are the numbers from `rank` x E on.
        world_size: number of processes, each with E environments; frames are counted over all of them.
        refill_replay: collect a new replay when a state is loaded, instead of requiring the old one.
        draw_policy: function from observations to greedy actions by one posterior draw per environment and episode,
            used instead of `policy` in the episodes of `draws`; None if no draw acts.
        draws: schedule of the probability that an episode is played by `draw_policy`.
        keep_replays: learn from the replays of finished tasks as well; each minibatch comes from one replay, drawn
            uniformly.
        restart_schedules: restart the schedules of epsilon and of draws at a task switch.
        newest_share: share of a minibatch that is drawn from the `newest` transitions of this rank.
        newest: number of the newest transitions of this rank.
        epoch_limit: minibatches after which the trainer ends an epoch early; None if it does not.

    Attributes:
        vector_steps: steps of all environments together. A vector step is one agent step of each environment.
        steps_after_prefill: vector steps without those of the prefills. Updates and schedules follow this number.
        task_began: `steps_after_prefill` at the start of the current task.
        updates: minibatches yielded.
        finished_episodes: episodes of this rank that ended.
        total_envs: number of environments of all ranks.
        env_numbers: numbers of this rank's environments among those of all ranks.
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
        replay_min_size: int,
        frame_skip: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        refill_replay: bool = False,
        draw_policy: DrawPolicy | None = None,
        draws: DrawSchedule = DrawSchedule(),
        keep_replays: bool = False,
        restart_schedules: bool = True,
        newest_share: float = 0.0,
        newest: int = 1,
        epoch_limit: int | None = None,
    ) -> None:
        self.policy, self.draw_policy, self.epsilon_schedule = policy, draw_policy, epsilon
        self.draws = draws
        self.keep_replays, self.restart_schedules = keep_replays, restart_schedules
        self.batch_size, self.updates_per_step = batch_size, updates_per_step
        self.newest, self.num_newest, self.epoch_limit = newest, num_newest(batch_size, newest_share), epoch_limit
        self.batches_per_epoch, self.replay_min_size = batches_per_epoch, replay_min_size
        self.frame_skip, self.seed, self.rank, self.world_size = frame_skip, seed, rank, world_size
        self.refill_replay = refill_replay
        self.vector_steps = self.steps_after_prefill = self.task_began = 0
        self.updates = self.finished_episodes = 0
        self.episodes = np.zeros(envs.num_envs, np.int64)
        self.total_envs = envs.num_envs * world_size
        self.env_numbers = range(rank * envs.num_envs, (rank + 1) * envs.num_envs)
        self._noise = ExplorationNoise(seed, self.total_envs, envs.num_actions, self.env_numbers)
        self.finished: list[tuple[int, ReplayBuffer]] = []  # earlier tasks and their replays, with `keep_replays`
        self._start_task(0, envs, replay)

    def _start_task(self, task: int, envs: VectorEnvs, replay: ReplayBuffer) -> None:
        """Start `task` with new environments and an empty replay, without a reset of the counters."""
        self.task, self.envs, self.replay = task, MonitoredEnvs(envs), replay
        count = envs.num_envs
        self.stack = ObservationStack(count, replay.frame_stack, envs.screen_shape, envs.screen_dtype)
        self.lives = np.zeros(count, np.int64)
        self.histories = [ActionHistory() for _ in range(count)]
        self.episode_seeds = np.zeros(count, np.int64)  # of the last seeded resets
        self.restarting = np.zeros(count, bool)  # environments that start an episode instead of the next step
        self.episode_return = np.zeros(count)
        self.recent_returns: deque[float] = deque(maxlen=max(1, 100 // self.world_size))
        self._pending_actions: NDArray[np.int64] | None = None  # None if no step is pending
        self._screens: NDArray[Any] = np.zeros(0)  # newest screens, `[E, *screen_shape]` after the first reset
        self._started = False
        self._num_data: int | None = None  # as last counted over all ranks
        self._next_minibatch: tuple[int, Transition, int] | None = None  # if it was made already
        # A copy of the replay on a device is written by one thread only.
        step_bytes = count * math.prod(envs.screen_shape) * envs.screen_dtype.itemsize
        self._stores_beside = type(replay) is ReplayBuffer and step_bytes >= BYTES_BESIDE

    def switch(self, task: int, envs: VectorEnvs, replay: ReplayBuffer) -> None:
        """Switch to the environments of `task`. Random actions fill `replay` before the next update."""
        self.finish_step()
        self.envs.close()
        if self.keep_replays:
            self.finished.append((self.task, self.replay))
        self.task_began = self.steps_after_prefill
        self._start_task(task, envs, replay)

    @property
    def agent_steps(self) -> int:
        """Agent steps, over all environments and ranks."""
        return self.vector_steps * self.total_envs

    @property
    def frames(self) -> int:
        """Environment frames, over all environments and ranks."""
        return self.agent_steps * self.frame_skip

    @property
    def epsilon(self) -> float:
        """Current probability of a uniformly random action.

        It is 1 during the prefill of a task. While a resumed run refills its replay, the schedule continues.
        """
        if self.steps_after_prefill == self.task_began:
            return 1.0
        return self.epsilon_schedule(self._scheduled_frames)

    @property
    def draw_share(self) -> float:
        """Current probability that an episode is played by a posterior draw."""
        return 0.0 if self.draw_policy is None else self.draws(self._scheduled_frames)

    @property
    def _scheduled_frames(self) -> int:
        """Environment frames of learning that the schedules count."""
        steps = self.steps_after_prefill - (self.task_began if self.restart_schedules else 0)
        return steps * self.total_envs * self.frame_skip

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        self._prefill()
        # The end of the epoch depends on counters alone, so that a resumed run finishes the epoch in which it stopped.
        length = min(self.batches_per_epoch, self.epoch_limit or self.batches_per_epoch)
        epoch_end = (self.updates // length + 1) * length
        while self.updates < epoch_end:
            while not self._update_is_due:
                self.steps_after_prefill += 1
                self.step_environments(learning=True)
            task, transition, newest = self._next_minibatch or self._minibatch()
            self._next_minibatch = None
            self.updates += 1
            learned = self.steps_after_prefill * self.total_envs * self.frame_skip
            yield Batch(transition, self._count_data(), self.frames, task, learned, newest)

    def _count_data(self) -> int:
        """Return the number of transitions in the replays of all ranks.

        With several ranks, the number is up to seven updates old. Otherwise every rank would wait for all others
        between its games and its update.
        """
        if self.world_size == 1 or self._num_data is None or self.updates % UPDATES_PER_COUNT == 0:
            own = len(self.replay) + sum(len(earlier) for _, earlier in self.finished)
            (self._num_data,) = sum_over_ranks(own)
        return self._num_data

    @property
    def _update_is_due(self) -> bool:
        return self.updates < int(self.steps_after_prefill * self.total_envs * self.updates_per_step)

    def _minibatch(self) -> tuple[int, Transition, int]:
        """Return the task of the next update, its minibatch, and how many of it come from the newest alone."""
        rng = self._minibatch_rng(self.rank)
        task, replay = self._choose_replay(rng if self.rank == 0 else self._minibatch_rng(0))
        from_newest = self.num_newest if replay is self.replay else 0  # a finished task has no new transitions
        return task, replay.sample(self.batch_size, rng, self.newest, from_newest), from_newest

    def _minibatch_rng(self, rank: int) -> np.random.Generator:
        """Return the generator of a rank's next minibatch."""
        return np.random.default_rng(seed_sequence(Domain.MINIBATCH, self.seed, rank, self.updates))

    def _choose_replay(self, rng: np.random.Generator) -> tuple[int, ReplayBuffer]:
        """Return the task of the next minibatch, and its replay. `rng` is that of rank 0: all ranks choose one task."""
        if self.finished and (index := int(rng.integers(len(self.finished) + 1))) < len(self.finished):
            return self.finished[index]
        return self.task, self.replay

    def _prefill(self) -> None:
        """Step until the replays of all ranks are large enough to learn from."""
        size = min(self.replay_min_size, self.replay.ring * self.total_envs)
        while True:
            stored, empty = sum_over_ranks(self.replay.stored, len(self.replay) < 1)
            if stored >= size and not empty:
                return
            self.step_environments()

    def step_environments(self, learning: bool = False) -> None:
        """Receive the pending step, act, send the next step, and store the received step while the next step runs.

        If screens are large, a second thread stores them while this one acts.

        Args:
            learning: make the minibatch of the next update as well, if one is due after this step.
        """
        random_actions, explore = self._exploration()  # needs no result: computed while the pending step runs
        store_received = self._receive_pending()
        if not self._started:
            self._reset(np.ones(self.envs.num_envs, bool))
            self._started = True
        finish: Callable[[], None] = partial(self._store_and_draw, store_received, learning)
        if self._stores_beside and not explore.all():
            finish = SIDE_THREAD.begin(finish).result  # or by this thread after `_send`
        self._send(random_actions if explore.all() else self._act(random_actions, explore))
        self.vector_steps += 1
        finish()

    def _store_and_draw(self, store_received: Callable[[], None], learning: bool) -> None:
        """Store the received step and, if an update is due, make its minibatch while the environments step on."""
        store_received()
        if learning and self._update_is_due:
            self._next_minibatch = self._minibatch()

    def _send(self, actions: NDArray[np.int64]) -> None:
        """Send actions, and record the actions that the environments execute."""
        self._pending_actions = self.envs.send(actions)
        # Lists, because reading one number of an array takes longer than all else in this loop.
        columns = self.histories, self._pending_actions.tolist(), self.restarting.tolist()
        for history, action, restarting in zip(*columns, strict=True):
            if not restarting:
                history.actions.append(action)

    def _exploration(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return random actions of the next step, and where to take them, `[E]` each."""
        random_actions, u = self._noise(self.vector_steps)
        return random_actions, u < self.epsilon

    def _act(self, random_actions: NDArray[np.int64], explore: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the policy's actions, replaced by `random_actions` where `explore` is set, `[E]`."""
        observations, share = self.stack.observations(), self.draw_share
        if self.draw_policy is None or not share:
            return np.where(explore, random_actions, self.policy(observations).numpy())
        episodes = zip(self.env_numbers, self.episodes.tolist(), strict=True)
        seeds = [draw_seed(self.seed, env, episode) for env, episode in episodes]
        # `draw_policy` keeps one draw for each environment, and therefore sees all observations.
        actions = self.draw_policy(observations, seeds).numpy()
        by_draw = np.array([episode_uniform(seed) < share for seed in seeds])  # `[E]`
        if not by_draw.all():
            actions = np.where(by_draw, actions, self.policy(observations).numpy())
        return np.where(explore, random_actions, actions)

    def finish_step(self) -> None:
        """Receive and store the pending step, if there is one."""
        store_received = self._receive_pending()
        store_received()

    def _receive_pending(self) -> Callable[[], None]:
        """Receive the pending step, reset ended environments, and return a function that stores the step.

        If no step is pending, the function does nothing.
        """
        actions = self._pending_actions
        if actions is None:
            return lambda: None
        step = self.envs.recv()
        ended = step.terminated | step.truncated
        store_received = partial(self._store, step, ended, self._screens, actions, self.lives, self.restarting)
        self._pending_actions = None
        self._screens, self.lives = step.screens, step.lives
        self.stack.push(step.screens)
        if self.restarting.any():
            self._record_starts(self.restarting, step.screens)
            self.restarting = np.zeros_like(self.restarting)
        if ended.any():
            self._reset_ended(ended)
        return store_received

    def _store(
        self,
        step: Step,
        ended: NDArray[np.bool_],
        screens: NDArray[Any],
        actions: NDArray[np.int64],
        lives: NDArray[np.int64],
        restarting: NDArray[np.bool_],
    ) -> None:
        """Add a step to the replay, and count the episodes that ended.

        `screens` and `lives` are those before the step. Environments that were `restarting` took no step.
        """
        life_lost = step.lives < lives
        outcome = (step.rewards, step.terminated, step.truncated, life_lost, step.screens)
        self.replay.add(screens, actions, *outcome, restarting)
        self.episode_return += step.rewards
        if ended.any():
            self.recent_returns.extend(self.episode_return[ended].tolist())
            self.finished_episodes += int(ended.sum())
            self.episode_return[ended] = 0

    def _reset_ended(self, ended: NDArray[np.bool_]) -> None:
        """Start the next episode of environments whose episodes ended.

        An environment with at least `steps_per_seed` steps since its last seed is reset by a new seed now. The other
        environments start their next episode by themselves, in place of their next step. A checkpoint holds the actions
        since the last seed, and a resumed run plays them again: new seeds keep this history short. Not every reset has
        a new seed, because a seeded reset takes longer.
        """
        needs_seed = np.zeros_like(ended)
        for env in np.flatnonzero(ended).tolist():
            needs_seed[env] = len(self.histories[env].actions) >= self.envs.steps_per_seed
        self.restarting = ended & ~needs_seed
        if needs_seed.any():
            self._reset(needs_seed)

    def _reset(self, mask: NDArray[np.bool_]) -> None:
        """Start episodes, each by its seed, where `mask` is set."""
        for env in np.flatnonzero(mask).tolist():
            self.episode_seeds[env] = episode_seed(self.seed, self.env_numbers[env], int(self.episodes[env]) + 1)
            self.histories[env] = ActionHistory()
        screens, lives = self.envs.reset(self.episode_seeds[mask], mask)
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
        """Return counters, environments and positions of the replays, as tensors and primitives.

        An environment is saved as its last seed and its actions since, the replay as positions in its files.
        """
        return {
            **{key: getattr(self, key) for key in COUNTERS},
            **{key: torch.from_numpy(getattr(self, key).copy()) for key in ARRAYS},
            "learning_steps": self.steps_after_prefill,  # the key of version 0.1.0
            "recent_returns": list(self.recent_returns),
            "actions": [torch.tensor(history.actions, dtype=torch.int16) for history in self.histories],
            "resets": [torch.tensor(history.resets, dtype=torch.int32) for history in self.histories],
            # Whether a step is pending. The last action of each history then belongs to the pending step, except where
            # the environment is `restarting`.
            "in_flight": self._pending_actions is not None,
            "num_data": self._num_data,
            "stack": torch.from_numpy(self.stack.array.copy()),
            "replay": self.replay.state_dict(),
            "finished": [replay.state_dict() for _, replay in self.finished],
        }

    def common_state(self) -> dict[str, Any]:
        """Return the counters of all ranks together, with which any number of ranks can go on and collect anew."""
        counters = {key: getattr(self, key) for key in COUNTERS}
        (counters["finished_episodes"],) = sum_over_ranks(self.finished_episodes)
        episodes = np.concatenate(gather_from_ranks(self.episodes))
        return {**counters, "learning_steps": self.steps_after_prefill, "episodes": torch.from_numpy(episodes)}

    def load_common_state(self, state: dict[str, Any]) -> None:
        """Restore the counters that `common_state`, or `state_dict` of a single process, has returned.

        New games begin, and the replay is collected again.
        """
        for key in COUNTERS:
            setattr(self, key, state[key])
        self.steps_after_prefill = state["learning_steps"]
        if self.rank > 0:
            self.finished_episodes = 0  # rank 0 has those of all
        self.episodes = state["episodes"].numpy()[list(self.env_numbers)].copy()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget the games and the replays of a checkpoint."""
        self._started = False
        self._num_data = None
        self.restarting[:] = False
        self.episode_return[:] = 0  # of games that are not continued
        self.finished.clear()  # replays of earlier tasks cannot be collected again

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore counters, environments and, without `refill_replay`, the replay.

        The stream must be at the task of the checkpoint already: the data module calls `switch` for earlier tasks.

        Raises:
            ConfigError: the replay is missing, or the environments show other screens than at the checkpoint.
        """
        state = with_episode_seeds(state, self.seed)
        for key in COUNTERS:
            setattr(self, key, state[key])
        self.steps_after_prefill = state["learning_steps"]
        for key in ARRAYS:
            setattr(self, key, state[key].numpy().copy())
        self.recent_returns.extend(state["recent_returns"])
        histories = zip(state["actions"], state["resets"], strict=True)
        self.histories = [ActionHistory(actions.tolist(), resets.tolist()) for actions, resets in histories]
        if self.refill_replay:
            self._begin_anew()
            return
        self._num_data = state.get("num_data")  # version 0.1.0 has none
        self.replay.load_state_dict(state["replay"])
        # A run that collected a new replay on an earlier resume has left out the replays of the tasks before.
        self.finished = self.finished[len(self.finished) - len(state["finished"]) :]
        for (_, replay), saved in zip(self.finished, state["finished"], strict=True):
            replay.load_state_dict(saved)
        self._started = self.vector_steps > 0
        if self._started and not self.envs.repeatable:
            self._end_episodes(state["stack"][:, -1].numpy())
        elif self._started:
            self.stack.array[:] = state["stack"].numpy()
            self._screens = self.stack.array[:, -1].copy()
            pending_actions = None
            if state["in_flight"]:
                pairs = zip(self.restarting.tolist(), self.histories, strict=True)
                pending_actions = [0 if restarting else history.actions.pop() for restarting, history in pairs]
            screens = self.envs.restore(self.episode_seeds, self.histories)
            if not np.array_equal(screens, self.stack.array[:, -1]):
                problem = (
                    f"the environments {self.envs.name} could not be rebuilt from their seeds and actions; perhaps a "
                    "package was updated, or the environment is random by itself; --data.refill_replay true starts "
                    "new games"
                )
                raise ConfigError("ckpt_path", str(self.replay.files.directory), problem)
            if pending_actions is not None:
                self._send(np.array(pending_actions, np.int64))

    def _end_episodes(self, screens: NDArray[Any]) -> None:
        """Truncate the stored episodes after their newest step, so that new games can begin.

        Args:
            screens: newest screens `[E, *screen_shape]`.
        """
        self.replay.truncate_episodes(screens)
        self._started = False
        self.restarting[:] = False
        self.episode_return[:] = 0


class StreamLoader:
    """Training loader around a stream.

    The data module saves the state of the stream, because Lightning restores the state of a loader in the middle of an
    epoch only. This loader has an empty state, because Lightning lets a run stop in the middle of an epoch only if the
    loader has a state.
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
