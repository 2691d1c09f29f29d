"""Run of a sweep, from its settings to its report."""

from __future__ import annotations

from bayes_rl.errors import ConfigError
from bayes_rl.sweep.cluster import connected
from bayes_rl.sweep.columns import write_columns
from bayes_rl.sweep.progress import Progress
from bayes_rl.sweep.report import write_report
from bayes_rl.sweep.schedule import check_resources, run_trials
from bayes_rl.sweep.settings import Sweep
from bayes_rl.utils.files import DirectoryLock


def run_sweep(sweep: Sweep, command: str, address: str | None) -> None:
    """Run the fits of a sweep that have not ended, and write and print its report.

    Args:
        sweep: the sweep.
        command: `MODULE:NAME` of the function that runs the verbs of the command line in a process of its own.
        address: of a Ray cluster; None starts Ray on this machine.

    Raises:
        ConfigError: if the directory holds another sweep, another command writes to it, or no cluster answers.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.check()
    if sweep.complete:
        print(f"all {sweep.num_trials} trials in {sweep.directory} have ended: nothing is left to run")
    else:
        with connected(address):
            check_resources(sweep)
            lock = _lock(sweep)
            sweep.write()
            write_columns(sweep)
            with Progress(sweep) as progress:
                run_trials(sweep, command, progress.refresh)
            sweep.write_complete()
            lock.release()
    written = write_report(sweep)
    print(written.text, *written.files, sep="\n")


def _lock(sweep: Sweep) -> DirectoryLock:
    """Return the lock of the sweep's directory; the kernel releases the lock when this process ends."""
    try:
        return DirectoryLock(sweep.directory, "output")
    except ConfigError as error:
        raise ConfigError("output", error.value, "is being written by another sweep; wait for it or stop it") from None
