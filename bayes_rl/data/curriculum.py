"""Order in which several games are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.shared_spaces import task_name, task_settings
from bayes_rl.errors import check


@dataclass(frozen=True)
class Curriculum:
    """The order of tasks. A visit is one stretch of training on one task.

    Args:
        settings: of each task.
        epochs: per visit.
        cycles: through all tasks.
    """

    settings: tuple[EnvSettings, ...]
    epochs: int
    cycles: int = 1

    @property
    def names(self) -> list[str]:
        """Of the tasks."""
        return [task_name(one.env) for one in self.settings]

    @property
    def visits(self) -> int:
        """In all."""
        return len(self.settings) * self.cycles

    def visit(self, epoch: int) -> int:
        """Number of the visit that `epoch`, counted from 0, belongs to; epochs beyond the plan belong to its last."""
        return min(epoch // self.epochs, self.visits - 1)

    def task(self, visit: int) -> int:
        """Number of the task that is trained in `visit`."""
        return visit % len(self.settings)

    def ends(self, epoch: int) -> bool:
        """Whether a visit ends with `epoch`."""
        return (epoch + 1) % self.epochs == 0 and (epoch + 1) // self.epochs <= self.visits


def make_curriculum(
    settings: EnvSettings, tasks: Sequence[str] | None, frames_per_task: int, frames_per_epoch: int, cycles: int
) -> Curriculum:
    """The curriculum of `tasks`; of the one game in `settings` without any.

    Raises:
        ConfigError: naming what does not fit.
    """
    if tasks is None:
        return Curriculum((settings,), epochs=1 << 60)
    check(frames_per_epoch >= 1, "data.frames_per_epoch", frames_per_epoch, "must be a positive number of frames")
    check(cycles >= 1, "data.cycles", cycles, "must be at least 1")
    check(frames_per_task >= 1, "data.frames_per_task", frames_per_task, "must be a positive number of frames")
    epochs = max(1, round(frames_per_task / frames_per_epoch))
    rule = f"must be a multiple of --data.frames_per_epoch, {frames_per_epoch}; nearest: {epochs * frames_per_epoch}"
    check(epochs * frames_per_epoch == frames_per_task, "data.frames_per_task", frames_per_task, rule)
    return Curriculum(tuple(task_settings(settings, tasks)), epochs, cycles)
