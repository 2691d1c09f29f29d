"""Random numbers of different purposes, over many environments: no two purposes share any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_rl.agent.behaviour import critic_of_draw
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.exploration import draw_seed
from bayes_rl.utils.seeds import Domain, derived_seed, seed_sequence
from tests.helpers.agents import make_module
from tests.helpers.scripted_envs import ScriptedEnvs, first_action, stream_of, take

ENVS, STAGES = 200, ("validate", "test", "predict")
RUN = 1000  # seed of the run, not the number of a purpose


def first_numbers(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], ReplayDataModule]:
    """Play with 200 environments, and return the first number of every generator that the stream has made."""
    numbers: list[int] = []
    make = np.random.default_rng

    def recorded(seed: Any) -> np.random.Generator:
        generator = make(seed)
        sequence = generator.bit_generator.seed_seq  # type: ignore[attr-defined]
        numbers.append(int(sequence.generate_state(1)[0] >> 1))
        assert sequence.entropy[0] in set(Domain), "the purpose comes first"
        return generator

    monkeypatch.setattr(np.random, "default_rng", recorded)
    envs = ScriptedEnvs(ENVS)

    def draw_policy(observations: Tensor, seeds: list[int]) -> Tensor:
        drawn.update(seeds)
        return first_action(observations)

    drawn: set[int] = set()
    stream = stream_of(envs, seed=RUN, draw_policy=draw_policy, batches_per_epoch=300, updates_per_step=0.1)
    take(stream, 300)
    data = ReplayDataModule("CartPole-v1", num_envs=2, frame_stack=1, rules={"frame_skip": 1}, seed=RUN)
    data.stream = stream
    for updates in range(300):
        stream.updates = updates
        data.sample_transitions(4, 0.25)
    episodes = [seed for seeds in envs.seeds for seed in seeds.values()]
    return numbers + episodes + sorted(drawn), data


def test_no_two_purposes_share_their_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments up to number 199, of whom some have the numbers that older versions had for purposes."""
    numbers, data = first_numbers(monkeypatch)
    numbers += [seed for stage in STAGES for seed in data.games(stage, 200).seeds]
    numbers += [derived_seed(Domain.VALUE_DRAW, number) for number in range(16)]
    numbers += [derived_seed(Domain.FISHER_OUTPUTS, update) for update in range(200)]
    numbers += [derived_seed(Domain.CRITIC_OF_DRAW, draw_seed(RUN, env, 1)) for env in range(ENVS)]
    assert len(numbers) > 3000
    assert len(set(numbers)) == len(numbers)


def test_value_draws_are_not_the_numbers_of_a_run_s_own_seed() -> None:
    """The seeds 0 to 15 are seeds of runs: initial weights and draws would be made of the same random numbers."""
    agent = make_module()
    draws = agent.twin.posterior.value_draws(agent.twin.draw_shapes(), 16)
    assert draws.noise is not None
    noise = {float(x) for values in draws.noise.values() for x in values.flatten()}
    for seed in range(16):
        numbers = torch.randn(24, generator=torch.Generator().manual_seed(seed))
        assert not noise & set(numbers.tolist())


def test_a_seed_is_a_function_of_purpose_and_name() -> None:
    assert derived_seed(Domain.EPISODE, 1, 2) == derived_seed(Domain.EPISODE, 1, 2)
    values = {derived_seed(domain, *name) for domain in Domain for name in ((1, 2), (2, 1), (1, 3))}
    assert len(values) == 3 * len(Domain)
    assert all(0 <= value < 2**31 for value in values)
    assert derived_seed(Domain.EPISODE, 1, 2) == seed_sequence(Domain.EPISODE, 1, 2).generate_state(1)[0] >> 1
    assert {critic_of_draw(seed) for seed in range(20)} == {0, 1}
