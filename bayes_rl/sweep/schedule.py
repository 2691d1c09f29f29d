"""Schedule of a sweep: Ray Tune runs the trials, and Ray the fits of a trial."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pkgutil
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from bayes_rl.errors import ConfigError, check
from bayes_rl.sweep.fit import Fit
from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import Space, Values
from bayes_rl.sweep.trial import FAILED, FINISHED, PRUNED, RUNNING, running_means
from bayes_rl.utils.files import DirectoryLock
from bayes_rl.utils.stop_signals import Stopped

RETRIES = 20
"""How often a fit, or a trial, may lose its process or machine."""

POLL_SECONDS = 1.0
"""Time between two looks at the scores of the fits of a trial."""

REDUCTION = 3
"""Of the trials that reach a rung, this share continues: one in `REDUCTION` (Li et al. 2020, arXiv:1810.05934)."""

SEARCH_SEED = 1
"""Seed of the draws of options."""


# ------------------------------------------------------------------------------------------------------ one fit
def complete_fit(fit: Fit, sweep: Sweep, command: str) -> str:
    """Run a fit to its end in this process, with the output in `fit.log`.

    Args:
        fit: the fit.
        sweep: the sweep of the fit.
        command: `MODULE:NAME` of the function that runs the verbs of the command line. The processes of trials do not
            import the function, which takes seconds.

    Returns:
        An empty text, or an error of the fit in one line.
    """
    fit.directory.mkdir(parents=True, exist_ok=True)
    with open(fit.directory / "fit.log", "a", buffering=1) as log:
        for stream in (1, 2):  # also what libraries print
            os.dup2(log.fileno(), stream)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            lock = _wait_for_lock(fit)
            print(f"process {os.getpid()} on {platform.node()}")
            try:
                os.chdir(sweep.folder)
                fit.complete(pkgutil.resolve_name(command))
            except Stopped as stop:
                os._exit(stop.code)  # type: ignore[arg-type]  # the machine stops: Ray runs the fit again
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                return " ".join(str(error).split()) or type(error).__name__
            finally:
                lock.release()
    return ""


def _wait_for_lock(fit: Fit) -> DirectoryLock:
    """Return the lock of a fit, after a process that still writes to the fit has ended.

    The process of a lost machine may live for some seconds, and another trial may have the same options.
    """
    while True:
        try:
            return DirectoryLock(fit.directory, "output")
        except ConfigError:
            time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------------------------------------------- one trial
def run_trial(config: Mapping[str, Any], sweep: Sweep, command: str) -> None:
    """Run the fits of a trial that have not ended, and report the running means over its seeds to Ray Tune.

    Args:
        config: options of the trial, as Ray Tune draws them.
        sweep: the sweep of the trial.
        command: as in `complete_fit`.
    """
    import ray
    from ray import tune

    trial = sweep.trial(decode(config))
    trial.write_configs(sweep.options)
    threads = {f"{library}_NUM_THREADS": str(sweep.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    remote = ray.remote(max_calls=1, max_retries=RETRIES)(complete_fit).options(
        num_cpus=sweep.threads, num_gpus=sweep.gpus, runtime_env={"env_vars": threads}
    )
    left = [] if trial.state == PRUNED else [fit for fit in trial.fits if not fit.finished]
    waiting = [remote.remote(fit, sweep, command) for fit in left]
    reported, length = 0, sweep.validations or 1
    while True:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS) if waiting else ([], [])
        if problem := next(filter(None, map(_result, done)), ""):
            tune.report({"score": math.nan, "progress": reported + 1, "problem": problem})
            return
        means = running_means(trial.curves(sweep.validations), length)
        for number in range(reported, len(means)):
            tune.report({"score": means[number], "progress": number + 1})
        reported = len(means)
        if not waiting:
            break
    if trial.state != PRUNED and reported < length * len(trial.fits):
        problem = "a fit ended before its last validation" if sweep.validations else "a fit ended without a validation"
        tune.report({"score": math.nan, "progress": reported + 1, "problem": problem})


def _result(reference: Any) -> str:
    """Return the error of a fit in one line, or an empty text."""
    import ray

    try:
        return str(ray.get(reference))
    except ray.exceptions.RayError as error:
        return f"its process was lost {RETRIES + 1} times: {' '.join(str(error).split())[:300]}"


# -------------------------------------------------------------------------------------------------- all trials
def run_trials(sweep: Sweep, command: str, refresh: Callable[[], None]) -> None:
    """Run the trials of a sweep that have not ended.

    Trials that an earlier command has run report from their files.

    Args:
        sweep: the sweep.
        command: as in `complete_fit`.
        refresh: called every second or so.
    """
    from ray import tune

    resources = {"CPU": sweep.threads, "GPU": sweep.gpus}
    together = seeds_at_once(_slots(sweep), sweep.num_trials, len(sweep.seeds))
    bundles = tune.PlacementGroupFactory([{}, *[resources] * together])
    storage = sweep.directory / "ray"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, sweep=sweep, command=command), bundles),
        param_space=ray_space(sweep.space),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=sweep.num_trials // sweep.space.cells,
            search_alg=_searcher(sweep),
            scheduler=_scheduler(sweep),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[_recorder(sweep, refresh)],
            verbose=0,
        ),
    )
    shutil.rmtree(storage, ignore_errors=True)  # of an interrupted sweep; the files of the trials hold all results
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def seeds_at_once(slots: int, trials: int, seeds: int) -> int:
    """Return how many seeds of a trial run at the same time.

    Args:
        slots: number of fits that the cluster can run at the same time.
        trials: number of trials of the sweep.
        seeds: number of seeds of a trial.
    """
    return max(1, min(seeds, slots // trials))


def _machines() -> list[Mapping[str, float]]:
    """Return the resources of each machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_resources(sweep: Sweep) -> None:
    """Raise `ConfigError` if no machine of the cluster can run a fit."""
    for name, need, resource in (("threads", sweep.threads, "CPU"), ("gpus", sweep.gpus, "GPU")):
        most = max(machine.get(resource, 0) for machine in _machines())
        check(need <= most, name, need, f"is more than any machine of the cluster has; nearest: {most:g}")
    problem = f"are on no machine of the cluster that also has --gpus {sweep.gpus:g}"
    check(_slots(sweep) > 0, "threads", sweep.threads, problem)


def _slots(sweep: Sweep) -> int:
    """Return how many fits the cluster can run at the same time."""
    count = 0
    for machine in _machines():
        gpus = machine.get("GPU", 0) / sweep.gpus if sweep.gpus else math.inf
        count += int(min(machine.get("CPU", 0) / sweep.threads, gpus))
    return count


def _searcher(sweep: Sweep) -> Any:
    """Return Optuna's sampler for a space without a grid, else draws at random for each combination of the grids.

    Without a grid, the options of earlier trials come first. Their scores are read from files, not measured again.
    """
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    if sweep.space.grids:
        return BasicVariantGenerator(random_state=SEARCH_SEED)
    known = [encode(trial.options, sweep.space) for trial in sweep.known_trials()]
    # With the seed of the first command, the first new draws would be those of the known trials.
    return OptunaSearch(seed=SEARCH_SEED + len(known), points_to_evaluate=known)


def _scheduler(sweep: Sweep) -> Any:
    """Return ASHA with rungs at a ninth of all validations of a trial, rounded up, and at three times as many."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not sweep.pruning:
        return FIFOScheduler()
    length = len(sweep.seeds) * (sweep.validations or 1)
    grace = math.ceil(length / REDUCTION**2)
    return ASHAScheduler(time_attr="progress", max_t=length, grace_period=grace, reduction_factor=REDUCTION)


def _recorder(sweep: Sweep, refresh: Callable[[], None]) -> Any:
    """Return the callback of Ray Tune that stores the states of trials."""
    from ray import tune

    class Recorder(tune.Callback):
        def on_trial_start(self, trial: Any, **_: Any) -> None:
            own = sweep.trial(decode(trial.config))
            if own.state not in (FINISHED, PRUNED):
                own.write(RUNNING)

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            own, problem = sweep.trial(decode(trial.config)), str((trial.last_result or {}).get("problem", ""))
            ended = all(fit.finished for fit in own.fits)
            if ended and not problem and own.score(sweep.validations) is None:
                problem = "a fit ended before its last validation"
            if ended and not problem:
                own.write(FINISHED)
            else:
                own.write(FAILED if problem else PRUNED, problem)

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            sweep.trial(decode(trial.config)).write(FAILED, f"Ray lost the trial {RETRIES + 1} times")

        def on_step_end(self, **_: Any) -> None:
            refresh()

        def __reduce__(self) -> Any:
            return (
                tune.Callback,
                (),
            )  # Ray Tune pickles its callbacks, and `refresh` holds the terminal, which cannot be pickled

    return Recorder()


# -------------------------------------------------------------------------------------------- options of Ray Tune
def ray_space(space: Space) -> dict[str, Any]:
    """Return a space as Ray Tune takes it. Values of lists are JSON texts, because Optuna takes no lists."""
    return {name: _domain(values) for name, values in space.options.items()}


def _domain(values: Values) -> Any:
    from ray import tune

    if values.kind in ("choice", "grid"):
        texts = [json.dumps(value) for value in values.values]
        return tune.choice(texts) if values.kind == "choice" else tune.grid_search(texts)
    low, high = values.values
    if values.whole:  # Ray Tune leaves out the highest whole number
        return tune.randint(low, high + 1) if values.kind == "uniform" else tune.lograndint(low, high + 1)
    return tune.uniform(low, high) if values.kind == "uniform" else tune.loguniform(low, high)


def encode(options: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return the options of a trial as Ray Tune draws them."""
    lists = [name for name, values in space.options.items() if values.kind in ("choice", "grid")]
    return {name: json.dumps(value) if name in lists else value for name, value in options.items()}


def decode(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a trial from what Ray Tune draws."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in config.items()}
