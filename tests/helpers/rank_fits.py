"""Commands that the ranks of a group run together, one after the other."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from bayes_rl.cli import app
from bayes_rl.utils.side_thread import SIDE_THREAD
from tests.helpers.command_line import SHORTEST
from tests.helpers.pictures import without_figures

TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu"]
SHORT = ["fit", *SHORTEST, *TWO, "--data.evaluation.games=4", "--trainer.log_every_n_steps=5"]
"""Words of a short fit of two ranks."""


class _Recording(app.BayesCLI):
    """Command line that records the agent at the end of training, before the best one takes its place."""

    digest = ""

    def after_fit(self) -> None:
        digest = hashlib.sha256()
        for value in self.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        self.digest = digest.hexdigest()
        super().after_fit()


def run_commands(commands: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    """Do what `bayes-rl WORDS` does for each (folder, words).

    Returns:
        Logged values, the `agent` at the end of training as a hash, and the `cores` of a rank, of each command.
    """
    warnings.simplefilter("ignore")
    found = []
    for folder, words in commands:
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        sys.argv = ["bayes-rl", *words]
        with without_figures():
            done = app.run(cls=_Recording)
        assert isinstance(done, _Recording)
        values = {key: float(value) for key, value in done.trainer.callback_metrics.items()}
        found.append({"agent": done.digest, "cores": SIDE_THREAD._cores, **values})
    return found


CALL = f"{run_commands.__module__}:{run_commands.__name__}"
