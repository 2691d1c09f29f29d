"""Training episodes of a run as they end, and the numbers that a comparison reads from them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SECONDS_BETWEEN_LINES = 20


class ReportedReturns(deque[float]):
    """Returns of the latest episodes of a stream. `report` is called with every new return.

    Args:
        returns: those so far.
        report: function of one return.
    """

    def __init__(self, returns: deque[float], report: Callable[[float], None]) -> None:
        super().__init__(returns, maxlen=returns.maxlen)
        self._report = report

    def extend(self, returns: Iterable[float]) -> None:
        """Append returns, and report each of them."""
        for score in returns:
            self.append(score)
            self._report(score)


class EpisodeLog(pl.Callback):
    """Callback that records training episodes as they end, and ends the run when `is_over` says so.

    Episodes of the random prefill count too. The state of the log is part of a checkpoint.

    Args:
        is_over: function of this log. It is called after every update.
        describe: function of this log that returns a progress line, which is printed every 20 seconds.

    Attributes:
        frames: environment frames at the end of each episode.
        returns: raw, undiscounted return of each episode.
        now: environment frames so far.
    """

    def __init__(self, is_over: Callable[[EpisodeLog], bool], describe: Callable[[EpisodeLog], str]) -> None:
        self.is_over, self.describe = is_over, describe
        self.frames: list[int] = []
        self.returns: list[float] = []
        self.now = 0
        self._earlier_seconds = 0.0  # before the checkpoint that the run was resumed from
        self._start = self._shown = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock of the training, without time after the last checkpoint of an interrupted process."""
        return self._earlier_seconds + time.monotonic() - self._start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the stream, before it plays its first step."""
        stream = trainer.datamodule.stream  # type: ignore[attr-defined]
        frames_per_step = stream.envs.num_envs * stream.frame_skip

        def report(score: float) -> None:
            # A step is stored after the next step was sent, which is counted already. The last step has no next one.
            stored = stream.vector_steps - (stream._pending_actions is not None)
            self.frames.append(stored * frames_per_step)
            self.returns.append(score)

        stream.recent_returns = ReportedReturns(stream.recent_returns, report)
        self.now = stream.frames

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Print the progress line, and end the run if it is over."""
        stream = trainer.datamodule.stream  # type: ignore[attr-defined]
        self.now = stream.frames
        if time.monotonic() - self._shown > SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(self.describe(self), flush=True)
        if self.is_over(self):
            trainer.should_stop = True
            stream.batches_per_epoch = 1  # ends the epoch too

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes and the seconds so far."""
        return {"frames": self.frames, "returns": self.returns, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the episodes and the seconds of a checkpoint."""
        self.frames, self.returns = list(state_dict["frames"]), list(state_dict["returns"])
        self._earlier_seconds = state_dict["seconds"]


def first_above(scores: Sequence[float], bound: float) -> int | None:
    """Return the index of the first score above `bound`, or None."""
    return next((i for i, score in enumerate(scores) if score > bound), None)


def moving_means(scores: Sequence[float], window: int) -> Floats:
    """Return the mean of the last `window` scores after each episode, `[N]`; of all so far, where they are fewer."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(scores, float))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def first_solved(scores: Sequence[float], window: int, threshold: float) -> int | None:
    """Return the index of the first episode whose last `window` scores have at least the mean `threshold`, or None."""
    means = moving_means(scores, window)
    reached = np.flatnonzero(means[window - 1 :] >= threshold - 1e-9)  # sums of cumulated floats are not exact
    return int(reached[0]) + window - 1 if len(reached) else None


def curve_at(times: Sequence[float], frames: Sequence[int], scores: Sequence[float], window: int) -> Floats:
    """Return the training curve at `times`: the mean score of the last `window` episodes that ended by then.

    Before the first episode ends the curve is 0.

    Args:
        times: environment frames.
        frames: environment frames at the end of each episode, `[N]`, not decreasing.
        scores: of the episodes, `[N]`.
        window: number of episodes.
    """
    ended = np.searchsorted(np.asarray(frames), np.asarray(times), side="right")
    return np.concatenate([[0.0], moving_means(scores, window)])[ended]


def area_under_curve(frames: Sequence[int], scores: Sequence[float], window: int, budget: int) -> float:
    """Return the mean over the frames 0 to `budget` of the training curve (`curve_at`), exactly.

    The curve is constant between the ends of episodes. Its integral is divided by the budget, so that the area of a
    curve that is 1 all the time is 1.

    Args:
        frames: environment frames at the end of each episode, `[N]`, not decreasing.
        scores: of the episodes, `[N]`.
        window: episodes of the moving mean.
        budget: environment frames of the whole run. Later episodes do not count.
    """
    edges = np.minimum([0, *frames, budget], budget)
    heights = np.concatenate([[0.0], moving_means(scores, window)])
    return float(heights @ np.diff(edges)) / budget
