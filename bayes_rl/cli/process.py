"""Settings of the process: threads, warnings, and the words that start a program."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from bayes_rl.agent.low_overhead import flush_denormals_in_workers
from bayes_rl.utils.side_thread import SIDE_THREAD


def silence_warnings() -> None:
    """Hide an advertisement of Lightning, and messages that ask nothing of a user."""
    # The end of a fit, which the closing table shows, is said behind the progress bar, on its line.
    hidden = re.compile(r"litlogger|^`Trainer\.fit` stopped: ")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda r: not hidden.search(r.getMessage()))
    # It is said at every save, although it is about loading.
    connector = logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector")
    connector.addFilter(lambda r: "weights_only" not in r.getMessage())
    # A resumed run continues in its own directory.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Short epochs are fine: a curve has a point every `log_every_n_steps` updates.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # A run that ends by `max_steps`, before its first validation, has no best checkpoint, only the last.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key in the returned metrics")
    # The table of layers counts parameters; nobody needs its estimate of their size in MB.
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
    # A deprecation inside Lightning 2.6.6.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", module="pytorch_lightning.*")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide Lightning's two lines on loading a checkpoint, each longer than a terminal is wide, in this block."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("Restoring states from", "Loaded model weights from"))

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def shortest(path: str | Path) -> str:
    """Return a path from the current folder, or the absolute path where that is shorter."""
    return min(os.path.relpath(path), os.path.abspath(path), key=len)


def command_of(script: str, module: str) -> str:
    """Return the words that start a program of this environment: its name alone if the environment is active.

    Args:
        script: name of the program, beside the interpreter.
        module: of the program, for an environment without the script.
    """
    beside, found = Path(sys.executable).with_name(script), shutil.which(script)
    if found is not None and beside.exists() and os.path.samefile(found, beside):
        return script
    return shortest(beside) if beside.exists() else f"{shortest(sys.executable)} -m {module}"


def end_with_parent() -> None:
    """Let the system end this process when the process that started it is gone, which may not be able to tell."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of Linux


def share_cores(ranks: int = 1) -> None:
    """Let torch use a quarter of a rank's cores in each of the learner's two threads, unless OMP_NUM_THREADS is set.

    With several ranks the number is written to OMP_NUM_THREADS, because Lightning would give torch all cores of a rank.

    The other half is for the emulator's threads. Torch's threads wait for each other by spinning: one that shares its
    core with an emulator, or with another run, holds all of them up. The learner's second thread (`SIDE_THREAD`)
    waits without taking time.

    Args:
        ranks: processes of this run on this machine.
    """
    SIDE_THREAD.count_cores(ranks)
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 2) // (4 * ranks))
        torch.set_num_threads(threads)
        if ranks > 1:
            os.environ["OMP_NUM_THREADS"] = str(threads)
    flush_denormals_in_workers()
