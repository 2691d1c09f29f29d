"""Spaces: what they hold, and what they refuse in one line."""

from __future__ import annotations

from typing import Any

import pytest

from bayes_rl.errors import ConfigError
from bayes_rl.sweep.space import Space, Values, parse_space

KNOWN = ("data.env", "data.replay.n_step", "model.optimizer.critic_lr", "model.optimizer", "seed_everything", "name")
KNOWN += ("trainer.max_epochs", "trainer.limit_train_batches")


def test_a_space_has_the_values_of_each_option() -> None:
    space = parse_space(
        {
            "data.env": {"grid": ["Breakout-v0", "Pong-v0"]},
            "data.replay.n_step": {"uniform": [1, 5]},
            "model.optimizer.critic_lr": {"log_uniform": [0.0001, 0.01]},
        },
        KNOWN,
    )
    assert space.options["data.env"] == Values("grid", ("Breakout-v0", "Pong-v0"))
    assert space.options["data.replay.n_step"].whole
    assert not space.options["model.optimizer.critic_lr"].whole
    assert (space.cells, space.seeds) == (2, None)


def test_a_grid_of_seeds_is_the_list_of_seeds_of_every_trial() -> None:
    space = parse_space({"data.env": {"grid": ["a", "b", "c"]}, "seed_everything": {"grid": [1, 2, 7]}}, KNOWN)
    assert (space.cells, space.seeds, list(space.options)) == (3, (1, 2, 7), ["data.env"])


def test_a_range_with_a_fraction_has_fractions() -> None:
    assert not Values("uniform", (1, 2.5)).whole
    assert not Values("uniform", (1.0, 2.0)).whole


def test_no_grid_is_one_cell() -> None:
    assert Space({"data.env": Values("choice", ("a", "b"))}).cells == 1


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("model.optimizer.critic_lrr", {"choice": [1]}, "is no option of fit; nearest: 'model.optimizer.critic_lr'"),
        ("model.optimizer", {"choice": [1]}, "is a group of options; nearest: 'model.optimizer.critic_lr'"),
        ("trainer.max_epochs", {"choice": [1, 2]}, "cannot differ between trials, which are compared at equal frames"),
        ("trainer.limit_train_batches", {"choice": [0.5, 1.0]}, "cannot differ between trials"),
        ("name", {"choice": ["a"]}, "cannot differ between trials"),
        ("data.env", "a", "--data.env: 'a' must be choice, uniform, log_uniform or grid"),
        ("data.env", {"choice": ["a"], "grid": ["a"]}, "must be choice, uniform, log_uniform or grid"),
        ("data.env", {"chose": ["a"]}, "'chose' is not one of choice, uniform, log_uniform, grid; nearest: 'choice'"),
        ("data.env", {"choice": "a"}, "'a' is no list of values; nearest: choice: [a]"),
        ("data.env", {"grid": []}, "[] is no list of values"),
        ("data.env", {"choice": ["a", "b", "a"]}, "lists 'a' twice"),
        ("data.replay.n_step", {"uniform": [5, 1]}, "[5, 1] is an empty range; nearest: [1, 5]"),
        ("data.replay.n_step", {"uniform": [2, 2]}, "[2, 2] is an empty range"),
        ("data.replay.n_step", {"uniform": [2]}, "must be two numbers, lowest and highest"),
        ("data.replay.n_step", {"uniform": [2, "x"]}, "must be two numbers"),
        ("data.replay.n_step", {"uniform": [False, True]}, "must be two numbers"),
        ("data.replay.n_step", {"uniform": [1, float("inf")]}, "must be two numbers"),
        ("model.optimizer.critic_lr", {"log_uniform": [0, 1]}, "must be greater than 0 for log_uniform"),
        ("seed_everything", {"choice": [1, 2]}, "must be a grid of whole numbers from 0 to 4294967295"),
        ("seed_everything", {"grid": [1.5]}, "must be a grid of whole numbers"),
        ("seed_everything", {"grid": [-1]}, "must be a grid of whole numbers"),
    ],
)
def test_wrong_entries_are_one_line(name: str, entry: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_space({name: entry}, KNOWN)
    line = str(refused.value)
    assert expected in line
    assert line.startswith(f"--{name}: ")
    assert "\n" not in line
