"""TensorBoard logger that leaves out points of curves while the disk is full, and pictures beside the curves."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch.utils.tensorboard import SummaryWriter

from bayes_rl.training.checkpoint_io import FULL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoardLog(TensorBoardLogger):
    """Logger that leaves out points of curves while the disk is full, and writes on when there is room again.

    Whether the run goes on is decided by the next checkpoint, with `--on_full_disk`. After a failure, the logger begins
    a new file, because TensorBoard's writer cannot be used any more.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._warned = False
        _ignore_writers_on_a_full_disk()

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, or a writer that does nothing while the disk is full."""
        with self._while_there_is_room():
            return super().experiment
        return DummyLogger().experiment

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        """Log the values of a step."""
        with self._while_there_is_room():
            super().log_metrics(*arguments, **options)

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """Log the options of the run."""
        with self._while_there_is_room():
            super().log_hyperparams(*arguments, **options)

    def add_summary(self, summary: Any, step: int) -> None:
        """Write a summary that is no scalar, such as a picture.

        Args:
            summary: of TensorBoard.
            step: horizontal position, in environment frames.
        """
        with self._while_there_is_room():
            writer = self.experiment
            if isinstance(writer, SummaryWriter):  # there is room
                writer._get_file_writer().add_summary(summary, step)

    def save(self) -> None:
        """Write what is buffered."""
        with self._while_there_is_room():
            super().save()

    def finalize(self, status: str) -> None:
        """Write what is buffered, and close the file."""
        with self._while_there_is_room():
            super().finalize(status)

    @contextlib.contextmanager
    def _while_there_is_room(self) -> Iterator[None]:
        """Print one line, once, at the first error of a full disk in this block, and begin a new file afterwards."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not _is_full(error):
                raise
            writer, self._experiment = self._experiment, None
            with contextlib.suppress(OSError):
                if writer is not None:
                    writer.close()
            if not self._warned:
                line = "no room on the disk for TensorBoard's curves: points are left out until there is room"
                print(f"bayes-rl: warning: {line}", file=sys.stderr, flush=True)
            self._warned = True


def picture_loggers(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """Return the loggers that show pictures: those of TensorBoard in the first process, none in a quick trial."""
    if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def add_picture(logger: TensorBoardLogger, tag: str, content: bytes, step: int) -> None:
    """Write a picture for TensorBoard's page Images.

    Args:
        logger: of TensorBoard.
        tag: of the picture.
        content: of a PNG file, which is not encoded again.
        step: horizontal position, in environment frames.
    """
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    encoded = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
    summary = Summary(value=[Summary.Value(tag=tag, image=encoded)])
    if isinstance(logger, TensorBoardLog):
        logger.add_summary(summary, step)
    else:
        logger.experiment._get_file_writer().add_summary(summary, step)


def as_png(figure: Figure, dots_per_inch: int) -> bytes:
    """Return a figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dots_per_inch, format="png")
    return content.getvalue()


def _is_full(error: BaseException | None) -> bool:
    """Return whether an error, or the error that caused it, says that the disk is full."""
    return error is not None and ((isinstance(error, OSError) and error.errno in FULL) or _is_full(error.__cause__))


def _ignore_writers_on_a_full_disk() -> None:
    """Print no stack trace of TensorBoard's thread on a full disk: the thread hands its error over as well."""
    before = threading.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not _is_full(arguments.exc_value):
            before(arguments)

    threading.excepthook = hook
