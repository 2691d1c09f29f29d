"""What happens around training: progress in frames, curves, stopping cleanly, the closing report."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from tqdm.auto import tqdm

from bayes_rl.checkpoints import FULL
from bayes_rl.datamodule import ReplayDataModule
from bayes_rl.files import DirectoryLock, remove_temporaries
from bayes_rl.summary import write_curve


def _data(trainer: pl.Trainer) -> ReplayDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ReplayDataModule)
    return data


def run_directory(trainer: pl.Trainer) -> Path:
    """Where the files of a run belong: beside its checkpoints, whatever the logger."""
    checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(checkpoints).parent if checkpoints else Path(trainer.log_dir or trainer.default_root_dir)


class FrameProgress(ProgressBar):
    """One bar for the whole run, in environment frames: rate, time left, epsilon, latest return and score.

    Args:
        refresh_seconds: least time between two redraws, in seconds.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = _data(trainer)
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        visits = 1 + data.curriculum.visit(epochs - 1) if epochs else 1
        prefill = visits * data.min_replay_size * data.settings.frame_skip
        total = prefill + epochs * data.frames_per_epoch if epochs else None
        self._bar = tqdm(
            total=total,
            initial=min(data.stream.frames, total or data.stream.frames),
            unit="frame",
            unit_scale=True,
            mininterval=self.refresh_seconds,
            disable=not self._enabled,
            dynamic_ncols=True,
            file=sys.stdout,
            desc=data.game,
        )
        self._drawn = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if time.monotonic() - self._drawn < self.refresh_seconds:
            return
        self._drawn = time.monotonic()
        stream = _data(trainer).stream
        data = _data(trainer)
        if data.num_tasks > 1:
            self._bar.set_description(f"{data.game} ({data.visit + 1} of {data.curriculum.visits})", refresh=False)
        status = {"epsilon": f"{stream.epsilon:.2f}"}
        if stream.recent_returns:
            status["return"] = f"{np.mean(stream.recent_returns):.1f}"
        score = trainer.callback_metrics.get("val/return_mean")
        if score is not None:
            status["score"] = f"{float(score):.1f}"
        self._bar.set_postfix(status, refresh=False)
        self._bar.update(max(0, min(stream.frames, self._bar.total or stream.frames) - self._bar.n))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or self._bar is None:
            return
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        data = _data(trainer)
        line = f"{data.stream.frames:>10,} frames: "
        if data.num_tasks > 1:
            played = [(name, scores.get(f"val/{name}/return_mean")) for name in data.curriculum.names]
            self._bar.write(line + ", ".join(f"{name} {score:.1f}" for name, score in played if score is not None))
            return
        line += f"score {scores['val/return_mean']:.1f} over {scores['val/games']:.0f} games"
        self._bar.write(f"{line} (median {scores['val/return_median']:.1f}, IQM {scores['val/return_iqm']:.1f})")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class StreamMetrics(Callback):
    """Logs what the stream knows: returns in training, epsilon, frames per second, counters, step sizes."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = (time.monotonic(), _data(trainer).stream.frames)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or trainer.global_step % every:
            return
        stream = _data(trainer).stream
        now, frames = time.monotonic(), stream.frames
        values = {
            "time/fps": (frames - self._mark[1]) / max(now - self._mark[0], 1e-9),
            "train/epsilon": stream.epsilon,
            "train/episodes": float(stream.finished_episodes),
            "train/agent_steps": float(stream.agent_steps),
            "train/updates": float(stream.updates),
        }
        self._mark = (now, frames)
        if stream.recent_returns:
            values["train/return_mean"] = float(np.mean(stream.recent_returns))
        for group in trainer.optimizers[0].param_groups:
            values[f"lr/{group['name']}"] = group["lr"]
        pl_module.log_dict(values)


class GracefulStop(Callback):
    """Ctrl+C and SIGTERM: finish the update, save `last.ckpt`, say where, and exit with 130 or 143.

    A second signal leaves at once, with the previous checkpoint intact.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        print("\nstopping after this step; once more to leave at once", flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # An epoch's last update is followed by its validation and checkpoint: those come first.
        if self._signal is None or batch_idx + 1 >= trainer.num_training_batches:
            return
        directory = getattr(trainer.checkpoint_callback, "dirpath", None)
        if directory is not None:
            path = Path(directory) / "last.ckpt"
            trainer.save_checkpoint(path)
            if getattr(trainer.strategy.checkpoint_io, "saved", True):
                print(f"saved {path}; go on with --ckpt_path last", flush=True)
        raise SystemExit(128 + self._signal)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._signal is not None:
            raise SystemExit(128 + self._signal)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class SoleWriter(Callback):
    """Locks a run's directory until its fit ends, however it ends, and removes what killed saves left in it.

    Args:
        directory: of the run.
        key: the option that chose it, for the error.

    Raises:
        ConfigError: if another fit writes to it.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self._lock = DirectoryLock(directory, key)
        remove_temporaries(directory)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._lock.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._lock.release()


class KeptCheckpoint(ModelCheckpoint):
    """Finds its files in its own directory, wherever a run was moved to and whatever paths a checkpoint holds."""

    @functools.cached_property
    def state_key(self) -> str:
        """Its name in checkpoints, which Lightning asks for at every hook of every update."""
        return super().state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else ""

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class TaskEnds(KeptCheckpoint):
    """Keeps the agent of each task's end. A class of its own, as Lightning tells the states of callbacks by it."""


class LearningCurve(Callback):
    """Keeps every validation, and writes `metrics.npy` and `learning_curve.png` into the run's directory.

    Of several tasks rows also say which `visit` was trained, -1 for a validation before any.

    The history is part of the checkpoint, so a resumed run draws the whole curve.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = _data(trainer)
        several = data.num_tasks > 1
        before = trainer.sanity_checking
        if trainer.state.fn != "fit" or (before and (not several or data.stream.frames)):
            return
        row = {k[4:]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        row["frames"] = float(data.stream.frames)
        if several:
            row["visit"] = -1.0 if before else float(data.visit)
        self.history = [r for r in self.history if r["frames"] < row["frames"]] + [row]
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            try:
                write_curve(self.history, data.game, run_directory(trainer), data.curriculum.names if several else ())
            except OSError as error:  # drawn again after the next validation; the checkpoint decides on stopping
                if error.errno not in FULL:
                    raise
                print("no room on the disk for the learning curve", file=sys.stderr, flush=True)
