"""Settings of the process: threads and warnings."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import warnings

import torch

from bayes_rl.agent.low_overhead import flush_denormals_in_workers


def silence_warnings() -> None:
    """Hide an advertisement of Lightning, and messages that ask nothing of a user."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
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


def end_with_parent() -> None:
    """Let the system end this process when the process that started it is gone, which may not be able to tell."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of Linux


def share_cores() -> None:
    """Let torch use a quarter of the cores in each of the learner's two threads, unless OMP_NUM_THREADS is set.

    The other half is for the emulator's threads. Torch's threads wait for each other by spinning: one that shares its
    core with an emulator, or with another run, holds all of them up. The learner's second thread (`SIDE_THREAD`)
    waits without taking time.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 4))
    flush_denormals_in_workers()
