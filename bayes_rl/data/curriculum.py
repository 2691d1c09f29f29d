"""Order in which several games are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import resolve
from bayes_rl.envs.shared_spaces import task_name, task_settings
from bayes_rl.errors import check, check_choice

TASK_CONDITIONING = ("none", "gains", "heads")

EPSILON_AT_SWITCH = ("restart", "continue")


@dataclass(frozen=True)
class CurriculumSettings:
    """Settings of training on several tasks, one after the other.

    Args:
        frames_per_task: environment frames of training per visit of a task, a multiple of `frames_per_epoch`.
        cycles: number of passes through all tasks.
        task_conditioning: part of the networks that each task has for itself: none, gains (a gain and a bias for each
            feature and task, as Kirkpatrick et al. 2017), or heads (output layers for each task).
        epsilon_at_switch: restart or continue the schedules of epsilon and of draws at a task switch.
        keep_replays: learn from the replays of earlier tasks as well (rehearsal).

    Raises:
        ConfigError: a setting cannot work.
    """

    frames_per_task: int = 1_000_000
    cycles: int = 1
    task_conditioning: str = "none"
    epsilon_at_switch: str = "restart"
    keep_replays: bool = False

    def __post_init__(self) -> None:
        check_choice("data.curriculum.task_conditioning", self.task_conditioning, TASK_CONDITIONING)
        check_choice("data.curriculum.epsilon_at_switch", self.epsilon_at_switch, EPSILON_AT_SWITCH)
        check(self.cycles >= 1, "data.curriculum.cycles", self.cycles, "must be at least 1")
        frames = self.frames_per_task
        check(frames >= 1, "data.curriculum.frames_per_task", frames, "must be a positive number of frames")

    def check_single_task(self) -> None:
        """Raise `ConfigError` at a setting that only several tasks read."""
        problem = "is for several tasks: --data.tasks '[GAME, ...]'"
        for key, default in (("task_conditioning", "none"), ("keep_replays", False), ("cycles", 1)):
            check(getattr(self, key) == default, f"data.curriculum.{key}", getattr(self, key), problem)


@dataclass(frozen=True)
class Curriculum:
    """Order of the tasks. A visit is one stretch of training on one task.

    Args:
        settings: settings of each task's environments, `[T]`.
        epochs: number of epochs per visit.
        cycles: number of passes through all tasks.
    """

    settings: tuple[EnvSettings, ...]
    epochs: int
    cycles: int = 1

    @property
    def names(self) -> list[str]:
        """Short names of the tasks."""
        return [task_name(settings.env) for settings in self.settings]

    @property
    def visits(self) -> int:
        """Number of visits, over all tasks and cycles."""
        return len(self.settings) * self.cycles

    def visit(self, epoch: int) -> int:
        """Return the number of the visit that `epoch`, counted from 0, belongs to.

        Epochs after the end of the curriculum belong to its last visit.
        """
        return min(epoch // self.epochs, self.visits - 1)

    def task(self, visit: int) -> int:
        """Return the number of the task that is trained in `visit`."""
        return visit % len(self.settings)

    def ends(self, epoch: int) -> bool:
        """Return whether a visit ends with `epoch`."""
        return (epoch + 1) % self.epochs == 0 and (epoch + 1) // self.epochs <= self.visits


def make_curriculum(
    env_settings: EnvSettings, tasks: Sequence[str] | None, settings: CurriculumSettings, frames_per_epoch: int
) -> Curriculum:
    """Return the curriculum of `tasks`, or of the one game in `env_settings` if `tasks` is None.

    Args:
        env_settings: settings of every task's environments, except for the id.
        tasks: ids of the environments, in the order of training.
        settings: length and number of the visits.
        frames_per_epoch: environment frames per epoch.

    Raises:
        ConfigError: the settings do not fit together; the error names one of them.
    """
    if tasks is None:
        return Curriculum((resolve(env_settings),), epochs=1 << 60)
    check(frames_per_epoch >= 1, "data.frames_per_epoch", frames_per_epoch, "must be a positive number of frames")
    frames = settings.frames_per_task
    epochs = max(1, round(frames / frames_per_epoch))
    problem = f"must be a multiple of --data.frames_per_epoch, {frames_per_epoch}; nearest: {epochs * frames_per_epoch}"
    check(epochs * frames_per_epoch == frames, "data.curriculum.frames_per_task", frames, problem)
    return Curriculum(tuple(task_settings(env_settings, tasks)), epochs, settings.cycles)
