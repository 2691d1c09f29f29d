"""What a sweep asks of Ray Tune and Optuna, without a cluster."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bayes_rl.errors import ConfigError
from bayes_rl.sweep import schedule
from bayes_rl.sweep.schedule import _scheduler, decode, encode, ray_space, seeds_at_once
from bayes_rl.sweep.space import Space, Values
from bayes_rl.sweep.trial import FAILED, FINISHED, RUNNING
from tests.helpers.sweeps import RATE, STEPS, make_sweep, write_finished, write_trial

pytest.importorskip("ray")
pytest.importorskip("optuna")

VALUES = {
    "data.crop": Values("choice", ([0, 10, 0, 10], None)),
    "data.env": Values("choice", ("CartPole-v1", "Acrobot-v1")),
    "data.steps": Values("uniform", (1, 4)),
    "model.width": Values("log_uniform", (1, 8)),
    "model.rate": Values("log_uniform", (1e-4, 1e-2)),
    "model.tau": Values("uniform", (0.25, 0.5)),
}


def draws(name: str) -> list[object]:
    domain = ray_space(Space({name: VALUES[name]}))[name]
    return [decode({name: domain.sample(random_state=np.random.RandomState(i))})[name] for i in range(400)]


@pytest.mark.parametrize(("name", "expected"), [("data.steps", {1, 2, 3, 4}), ("model.width", {*range(1, 9)})])
def test_ranges_of_whole_numbers_have_both_ends(name: str, expected: set[int]) -> None:
    assert {*draws(name)} == expected  # type: ignore[arg-type]


def test_fractions_are_inside_their_range_and_logarithms_are_uniform() -> None:
    rates = np.array(draws("model.rate"), float)
    assert ((rates >= 1e-4) & (rates <= 1e-2)).all()
    assert abs(np.log10(rates).mean() + 3) < 4 * (2 / math.sqrt(12)) / math.sqrt(len(rates))
    assert all(0.25 <= float(str(tau)) <= 0.5 for tau in draws("model.tau"))


def test_values_of_lists_may_be_lists_and_nothing() -> None:
    assert {str(crop) for crop in draws("data.crop")} == {"[0, 10, 0, 10]", "None"}


def test_options_are_encoded_as_they_are_drawn() -> None:
    options = {"data.crop": [0, 10, 0, 10], "data.env": "CartPole-v1", "data.steps": 2, "model.rate": 0.1}
    config = encode(options, Space(VALUES))
    assert config["data.crop"] in ray_space(Space(VALUES))["data.crop"].categories
    assert decode(config) == options


@pytest.mark.parametrize(
    ("slots", "trials", "seeds", "expected"), [(2, 40, 5, 1), (64, 3, 5, 5), (64, 20, 5, 3), (0, 1, 5, 1), (4, 1, 2, 2)]
)
def test_seeds_run_together_where_trials_leave_room(slots: int, trials: int, seeds: int, expected: int) -> None:
    assert seeds_at_once(slots, trials, seeds) == expected


@pytest.mark.parametrize(
    ("seeds", "validations", "expected"), [(5, 10, [18, 6]), (1, 10, [6, 2]), (5, None, [3, 1]), (1, 1, [1])]
)
def test_pruning_is_after_a_ninth_and_a_third(
    seeds: int, validations: int | None, expected: list[int], tmp_path: Path
) -> None:
    sweep = make_sweep(tmp_path, seeds=range(seeds), validations=validations, pruning=True)
    assert [milestone for milestone, _ in _scheduler(sweep)._brackets[0]._rungs] == expected


def test_threads_and_gpus_have_to_be_on_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_machines", lambda: [{"CPU": 16}, {"CPU": 2, "GPU": 1}])
    schedule.check_resources(make_sweep(tmp_path, threads=2, gpus=1.0))
    with pytest.raises(ConfigError, match="threads: 8 are on no machine of the cluster that also has --gpus 1"):
        schedule.check_resources(make_sweep(tmp_path, threads=8, gpus=1.0))
    with pytest.raises(ConfigError, match=r"gpus: 2\.0 is more than any machine of the cluster has; nearest: 1"):
        schedule.check_resources(make_sweep(tmp_path, threads=1, gpus=2.0))


def test_a_trial_that_ended_before_its_last_validation_has_failed(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    for rate, scores in ((0.001, [1.0, 2.0]), (0.002, [1.0])):
        options = {RATE: rate, STEPS: 1}
        write_trial(sweep, options, [scores] * len(sweep.seeds), RUNNING)
        for fit in sweep.trial(options).fits:
            write_finished(fit, 1.0)
        schedule._recorder(sweep, lambda: None).on_trial_complete(
            SimpleNamespace(config=encode(options, sweep.space), last_result={})
        )
        assert sweep.trial(options).state == (FINISHED if len(scores) == 2 else FAILED)
    assert sweep.trial(options).problem == "a fit ended before its last validation"
