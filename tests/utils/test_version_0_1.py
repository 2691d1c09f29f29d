"""Options of version 0.1.0 in today's groups."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.utils.settings import GROUPS
from bayes_rl.utils.version_0_1 import (
    RENAMED,
    grouped,
    in_groups,
    in_present_groups,
    is_flat,
    present_name,
    with_episode_seeds,
)

CLASSES: dict[str, type[Any]] = {"model": VariationalActorCritic, "data": ReplayDataModule}
OPTIMIZER = ("family", "precision_rate", "schedule", "warmup_frames", "hold_frames", "decay_frames", "final_share")
NEW_IN_MODEL = {
    *(f"optimizer.{name}" for name in OPTIMIZER),
    *(
        "network.random_features",
        "network.length_scale",
        "network.width",
        "consolidation.fisher_newest",
    ),
}
NEWER = {
    "model": NEW_IN_MODEL,
    "data": {
        *(f"draws.{name}" for name in ("start", "end", "decay_frames")),
        *("replay.newest_share", "replay.newest"),
    },
}  # without an old name


@pytest.mark.parametrize("section", CLASSES)
def test_every_option_of_a_group_has_one_old_name(section: str) -> None:
    hints = get_type_hints(CLASSES[section].__init__)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    assert tuple(groups) == GROUPS[section]
    present = [f"{name}.{field.name}" for name, group in groups.items() for field in fields(group)]
    # `num_draws` and all others are listed once: no two old options meet in one present option.
    assert sorted([*RENAMED[section].values(), *NEWER[section]]) == sorted(present)


@pytest.mark.parametrize("section", CLASSES)
def test_old_names_are_no_present_names(section: str) -> None:
    """A present group may have the name of an old option, but then its value is a mapping."""
    ungrouped = set(inspect.signature(CLASSES[section]).parameters) - set(GROUPS[section])
    allowed = {"task_conditioning"} if section == "model" else set()  # decided by the data, never renamed
    assert not ungrouped & set(RENAMED[section]) - allowed


def test_flat_options_are_grouped_and_grouped_options_stay() -> None:
    flat = {"posterior": "members", "index_dim": 3, "exploration": "both", "game": "pong"}
    present = {"posterior": {"family": "members", "size": 3}, "exploration": "both", "game": "pong"}
    assert is_flat("model", flat)
    assert not is_flat("model", present)
    assert grouped("model", flat) == in_groups("model", flat) == in_groups("model", present) == present


def test_a_whole_configuration_is_grouped() -> None:
    config = {"seed_everything": 1, "trainer": {"max_epochs": 2}, "data": {"env": "pong", "n_step": 5}}
    expected = {**config, "data": {"env": "pong", "replay": {"n_step": 5}}}
    assert in_present_groups(config) == in_present_groups(expected) == expected
    assert in_present_groups(None) is None


def test_a_renamed_option_has_its_present_name() -> None:
    assert present_name("model.temperature") == "model.objective.kl_temperature"
    assert present_name("data.epsilon_start") == "data.epsilon.start"
    assert present_name("data.env") is None
    assert present_name("typo") is None


def test_vcl_of_version_0_1_keeps_the_strength_that_it_had_by_default() -> None:
    """0, so that its checkpoints hold no anchors."""
    for options, strength in (({}, 0.0), ({"ewc_lambda": None}, 0.0), ({"ewc_lambda": 0.5}, 0.5)):
        assert grouped("model", {"consolidation": "vcl", **options})["consolidation"]["ewc_lambda"] == strength
    assert "ewc_lambda" not in grouped("model", {"consolidation": "ewc"})["consolidation"]


def test_episode_seeds_that_version_0_1_did_not_save_are_computed() -> None:
    state = {"seeded_episode": torch.tensor([4, 9]), "updates": 3}
    expected = [
        np.random.SeedSequence([7, 0, env, episode]).generate_state(1)[0] >> 1 for env, episode in ((0, 4), (1, 9))
    ]
    assert with_episode_seeds(state, 7)["episode_seeds"].tolist() == expected
    present = {"episode_seeds": torch.tensor([1, 2])}
    assert with_episode_seeds(present, 7) is present
