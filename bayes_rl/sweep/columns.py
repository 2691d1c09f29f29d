"""Columns of a sweep on TensorBoard's page HParams."""

from __future__ import annotations

from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import SEED

SCORES = ("val/return_counted", "val/return_mean")
"""Tags whose newest values are columns; the first is the score of a trial."""


def write_columns(sweep: Sweep) -> None:
    """Write which options the page shows: those of the space.

    The runs of the fits hold all of their options, and leave the columns to the sweep.
    """
    from torch.utils.tensorboard import SummaryWriter

    from bayes_rl.training.tensorboard_options import columns

    if sweep.options.get("data.tasks") or "data.tasks" in sweep.space.options:
        return  # the tags have the names of the tasks
    if [*sweep.directory.glob("events.out.tfevents.*")]:
        return  # the sweep continues
    options = {name: values.values[0] for name, values in sweep.space.options.items()}
    with SummaryWriter(str(sweep.directory)) as writer:
        writer._get_file_writer().add_summary(columns({**options, SEED: 0}, options, SCORES))
