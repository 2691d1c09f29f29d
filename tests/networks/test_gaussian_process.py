"""Gaussian process beside plain networks: its posterior by the formula of regression, its draws, its divergence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_rl.agent.module import STATES_OF_UNITS, UPDATES_PER_OBSERVATION, UPDATES_PER_POSTERIOR
from bayes_rl.bayes.draws import Draws
from bayes_rl.errors import ConfigError
from bayes_rl.networks.gaussian_process import GaussianProcess
from tests.helpers.agents import FEATURES, fit, make_batch, make_module, step
from tests.helpers.options import merged

ACTIONS, INPUTS, DATA = 3, 5, 40
PROCESS: dict[str, Any] = {
    "network": {"bayesian": "gaussian_process", "prior_function_scale": 2.0, "random_features": 16}
}


def make_process(scale: float = 2.0, features: int = 12) -> GaussianProcess:
    return GaussianProcess((INPUTS,), ACTIONS, features, 1.0, scale)


def std_of(process: GaussianProcess, x: Tensor, noise_std: Tensor) -> Tensor:
    """Return the standard deviation of the deviations, with the error of each state, `[B, A]`."""
    one_draw = Draws(torch.zeros(1, process.root.shape[0] * process.root.shape[1]), {})
    variance = process(x[None], one_draw)[1][0]
    return process.total_std(process.unit(noise_std, variance), variance)


def data() -> tuple[Tensor, Tensor, Tensor]:
    """States, actions and noises of their returns."""
    return torch.randn(DATA, INPUTS), torch.randint(ACTIONS, (DATA,)), 0.3 + torch.rand(DATA)


def variance_by_regression(process: GaussianProcess, known: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    """Posterior variance of w_a . phi in the space of states, `[B, A]` in float64.

    Deviations and noise have one unit, so that every datum has noise 1: k(x, x) - k(x, X) (K + 1)^-1 k(X, x), divided
    by scale^2.
    """
    states, actions, _ = known
    of_x = process.scale * process.features(x).double()
    columns = []
    for action in range(ACTIONS):
        of_data = process.scale * process.features(states[actions == action]).double()
        covariance = of_data @ of_data.T + torch.eye(len(of_data)).double()
        cross = of_x @ of_data.T
        columns.append(of_x.square().sum(1) - (cross @ torch.linalg.inv(covariance) * cross).sum(1))
    return torch.stack(columns, 1) / process.scale**2


def test_the_posterior_is_that_of_gaussian_process_regression() -> None:
    """With a noise that is the same everywhere."""
    process, (states, actions, _) = make_process(), data()
    known = states, actions, torch.full((DATA,), 0.7)
    process.observe(*known)
    process.update_posterior(DATA)
    x = torch.randn(20, INPUTS)
    variance, noise = variance_by_regression(process, known, x), torch.full((20, ACTIONS), 0.7)
    _, found = process(x[None], Draws(torch.zeros(1, ACTIONS * 12), {}))
    torch.testing.assert_close(found[0].double(), variance, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(process.unit(noise, found[0]), 2 * noise)
    of_replay = variance_by_regression(process, known, states)[torch.arange(DATA), actions].mean()
    expected = (2.0 * 0.7) ** 2 * (variance + of_replay)
    torch.testing.assert_close(std_of(process, x, noise).double().square(), expected, rtol=1e-3, atol=1e-5)


def test_the_deviation_is_in_proportion_to_a_noise_that_the_data_know() -> None:
    """By hand: log noise is a mean of that of the state and that of the replay, by the numbers of data."""
    process, known = make_process(), data()
    states, actions, noise = known
    process.observe(*known)
    process.update_posterior(DATA)
    x, own = torch.randn(20, INPUTS), 0.1 + torch.rand(20, ACTIONS)
    variance = variance_by_regression(process, known, x)
    of_replay = variance_by_regression(process, known, states)[torch.arange(DATA), actions].mean()
    weight = 0.1 * variance / of_replay
    expected_noise = ((own.double().log() + weight * noise.double().log().mean()) / (1 + weight)).exp()
    expected = process.scale * expected_noise
    torch.testing.assert_close(process.unit(own, variance.float()).double(), expected, rtol=1e-3, atol=1e-5)
    assert expected_noise.log().std() > 0.3


def test_the_noise_of_a_state_unlike_all_others_is_that_of_the_replay() -> None:
    process = make_process(1.0, 256)
    process.observe(0.1 * torch.randn(5000, INPUTS), torch.randint(ACTIONS, (5000,)), torch.full((5000,), 0.5))
    process.update_posterior(1e6)
    far = 3 * torch.randn(10, INPUTS)
    low, high = (std_of(process, far, torch.full((10, ACTIONS), noise)) for noise in (0.1, 2.0))
    torch.testing.assert_close(low, high, rtol=0.1, atol=0)


def test_before_the_first_datum_the_posterior_is_the_prior() -> None:
    process = make_process(features=1000)
    found = std_of(process, torch.randn(50, INPUTS), torch.ones(50, ACTIONS))
    torch.testing.assert_close(found, torch.full((50, ACTIONS), 2.0), rtol=0.1, atol=0)
    process.update_posterior(1e6)
    assert process.mean_variance == 0
    assert process.divergence == 0
    torch.testing.assert_close(process.root, torch.eye(1000).repeat(ACTIONS, 1, 1))


def test_a_temperature_of_four_counts_every_fourth_datum() -> None:
    process, other, known = make_process(), make_process(), data()
    other.load_state_dict(process.state_dict())
    process.observe(*known)
    process.update_posterior(DATA / 4.0)
    other.observe(*known)
    other.moments.div_(4)
    other.update_posterior(DATA)
    torch.testing.assert_close(process.root, other.root)


def test_moments_are_the_mean_of_all_minibatches() -> None:
    process, whole, (states, actions, noise) = make_process(), make_process(), data()
    whole.load_state_dict(process.state_dict())
    for part in range(4):
        chosen = slice(10 * part, 10 * part + 10)
        process.observe(states[chosen], actions[chosen], noise[chosen])
    whole.observe(states, actions, noise)
    torch.testing.assert_close(process.moments, whole.moments)
    torch.testing.assert_close(process.mean_log_noise, noise.log().mean())


def test_a_noise_that_is_not_finite_does_not_change_the_mean() -> None:
    process, (states, actions, noise) = make_process(), data()
    process.observe(states, actions, noise)
    before = process.mean_log_noise.clone()
    process.observe(states, actions, torch.tensor([torch.nan, torch.inf]).repeat(DATA // 2))
    torch.testing.assert_close(process.mean_log_noise, before)
    assert process.moments.isfinite().all()


def test_a_noise_without_a_finite_logarithm_is_left_out_of_the_first_minibatch_too() -> None:
    process, (states, actions, _) = make_process(), data()
    noise = torch.tensor([0.01, 0.0, 0.01, torch.inf]).repeat(DATA // 4)
    process.observe(states, actions, noise)
    assert process.mean_log_noise.item() == pytest.approx(math.log(0.01), rel=1e-6)


def test_a_restart_forgets_moments_that_are_not_finite() -> None:
    process, (states, actions, noise) = make_process(), data()
    process.observe(torch.full_like(states, torch.nan), actions, noise)
    assert not process.moments.isfinite().any()
    process.update_posterior(DATA)  # does not end the training: a restart comes
    process.restart([states])
    process.observe(states, actions, noise)
    assert process.moments.isfinite().all()


@pytest.mark.parametrize("data_weight", [1e5, 1e7, 1e9])
def test_many_data_leave_a_finite_doubt_and_the_greater_one_where_data_are_few(data_weight: float) -> None:
    """The moments' errors of rounding, about 1e-7, times the number of data are much greater than the prior's 1."""
    process = GaussianProcess((INPUTS,), ACTIONS, 256, 5.0, 1.0)  # smooth: most of the moments' eigenvalues are 0
    for _ in range(50):
        process.observe(torch.randn(32, INPUTS), torch.randint(ACTIONS, (32,)), torch.full((32,), 0.5))
    process.update_posterior(data_weight)
    assert process.mean_variance > 0
    assert math.isfinite(process.divergence)
    near, far = (
        std_of(process, x, torch.ones(20, ACTIONS)) for x in (torch.randn(20, INPUTS), 9 * torch.randn(20, INPUTS))
    )
    assert near.isfinite().all()
    assert far.mean() > 2 * near.mean()


def test_deviations_have_float32_under_mixed_precision() -> None:
    process, (states, actions, noise) = make_process(), data()
    process.observe(states, actions, noise)
    process.update_posterior(DATA)
    size = process.root.shape[0] * process.root.shape[1]
    for x in (states[None], torch.stack([states] * 3)):
        draws = Draws(torch.randn(3, size), {})
        expected = process(x, draws)
        with torch.autocast("cpu", torch.bfloat16):
            found = process(x, draws)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)


def test_the_divergence_is_that_of_torch_distributions() -> None:
    process = make_process()
    process.observe(*data())
    process.update_posterior(DATA)
    root, size = process.root.double(), process.root.shape[-1]
    covariances = root.transpose(1, 2) @ root
    prior = MultivariateNormal(torch.zeros(size).double(), torch.eye(size).double())
    zero = torch.zeros(size).double()
    expected = sum(kl_divergence(MultivariateNormal(zero, covariance), prior) for covariance in covariances)
    torch.testing.assert_close(process.divergence.double(), expected, rtol=1e-4, atol=0)


def test_draws_have_the_posterior_s_moments_and_are_functions() -> None:
    process = make_process()
    process.observe(*data())
    process.update_posterior(DATA)
    x = torch.randn(6, INPUTS)
    draws = Draws(torch.randn(20_000, ACTIONS * 12), {})
    deviations, variance = process(x[None], draws)
    assert deviations.shape == (20_000, 6, ACTIONS)
    assert variance.shape == (1, 6, ACTIONS)
    torch.testing.assert_close(deviations.mean(0), torch.zeros(6, ACTIONS), rtol=0, atol=0.06)
    torch.testing.assert_close(deviations.var(0), variance[0], rtol=0.06, atol=0)
    between = torch.corrcoef(deviations[:, 0].T)  # of the actions of one state
    torch.testing.assert_close(between, torch.eye(ACTIONS), rtol=0, atol=0.03)
    features = process.features(x)
    weights = torch.einsum("amn,dam->dan", process.root, draws.index.unflatten(1, (ACTIONS, 12)))
    torch.testing.assert_close(deviations[:5], torch.einsum("dan,bn->dba", weights[:5], features))


def test_a_draw_for_each_state_is_the_draw_for_all_states() -> None:
    process = make_process()
    x, draws = torch.randn(4, INPUTS), Draws(torch.randn(4, ACTIONS * 12), {})
    (of_all, variance), (of_each, variances) = process(x[None], draws), process(x[:, None], draws)
    for number in range(4):
        torch.testing.assert_close(of_each[number, 0], of_all[number, number])
    torch.testing.assert_close(variances[:, 0], variance[0])


def test_networks_learn_as_plain_ones() -> None:
    module, plain = make_module(PROCESS), make_module(network={"bayesian": "none"})
    shared = plain.twin.state_dict().keys()
    weights = {name: value for name, value in module.twin.state_dict().items() if name in shared}
    plain.twin.load_state_dict(weights)
    plain.target_twin.load_state_dict(weights)
    batch = make_batch()
    step(module, batch)
    step(plain, batch)
    of_module = dict(module.twin.named_parameters())
    for name, parameter in plain.twin.named_parameters():
        torch.testing.assert_close(of_module[name].grad, parameter.grad)


def test_training_makes_the_posterior_of_what_was_seen() -> None:
    """By hand: the posterior is computed at each multiple of its interval, of all that was observed until then."""
    module = make_module(PROCESS)
    fit(module, [make_batch(num_data=100) for _ in range(UPDATES_PER_POSTERIOR + 1)])
    process = module.twin.process
    assert module.target_twin.process is None
    by_hand = GaussianProcess((FEATURES,), ACTIONS, 16, 1.0, 2.0)
    by_hand.load_state_dict(process.state_dict())
    by_hand.update_posterior(100)
    torch.testing.assert_close(process.root, by_hand.root)
    assert process.divergence > 0


def test_observations_begin_anew_each_time_the_age_of_the_replay_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sample of the replay, by features of new units; every eighth minibatch follows."""
    module, updates, counts = make_module(PROCESS), [], []
    process = module.twin.process
    restart, posterior = process.restart, process.update_posterior
    monkeypatch.setattr(process, "restart", lambda x: (updates.append(module.global_step), restart(x)))
    monkeypatch.setattr(process, "update_posterior", lambda n: (counts.append(int(process.count)), posterior(n)))
    fit(module, [make_batch()] * (4 * UPDATES_PER_POSTERIOR + 1))
    assert updates == [UPDATES_PER_POSTERIOR * k for k in (0, 1, 2, 4)]
    sample, between = STATES_OF_UNITS // 64, UPDATES_PER_POSTERIOR // UPDATES_PER_OBSERVATION
    assert counts == [sample, sample, sample, sample + between, sample]


def test_an_update_of_several_minibatches_is_observed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, updates = make_module(PROCESS), []
    observe = module.twin.process.observe
    monkeypatch.setattr(module.twin.process, "observe", lambda *x: (updates.append(module.global_step), observe(*x)))
    fit(module, [make_batch()] * 30, accumulate_grad_batches=3)
    assert updates == [0] * (STATES_OF_UNITS // 64) + [UPDATES_PER_OBSERVATION]


def test_transitions_that_were_drawn_from_the_newest_alone_are_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would count as often as the replay is larger than the newest part of it."""
    module, sizes = make_module(PROCESS), []
    observe, batch = module.twin.process.observe, make_batch(6)._replace(num_newest=2)
    monkeypatch.setattr(module.twin.process, "observe", lambda *x: (sizes.append([len(y) for y in x]), observe(*x)))
    fit(module, [batch] * (UPDATES_PER_OBSERVATION + 1))
    assert sizes[-1] == [4, 4, 4]


def test_a_restart_forgets_what_was_observed() -> None:
    process, once, (first, second) = make_process(), make_process(), (data(), data())
    process.observe(*first)
    once.load_state_dict(process.state_dict())
    for each in (process, once):
        each.restart([second[0]])
        each.observe(*second)
    assert process.count == 1
    once.moments.zero_()
    once.restart([second[0]])
    once.observe(*second)
    torch.testing.assert_close(process.moments, once.moments, rtol=0, atol=0)
    assert (process.features.inverse_unit != 1).all()


def test_draws_of_the_twin_have_the_reported_deviation_without_the_error_of_each_state() -> None:
    module = make_module(PROCESS)
    fit(module, [make_batch()] * (UPDATES_PER_POSTERIOR + 1))
    states, process = torch.randn(7, FEATURES), module.twin.process
    with torch.no_grad():
        output = module.twin(states[None], Draws(torch.randn(20_000, ACTIONS * 16), {}))
    deviations = output.draw_q_values() - output.q_values
    of_states = process.scale * module.twin.likelihood.std(output.raw).mean(0)[0] * process.mean_variance.sqrt()
    # The noise of these networks is fixed, and so it is that of the replay.
    torch.testing.assert_close(deviations[0].std(0).hypot(of_states), output.deviations_std[0], rtol=0.03, atol=0)
    torch.testing.assert_close(deviations[0], deviations[1], rtol=1e-4, atol=1e-5)


def test_the_reported_deviation_is_that_of_process_and_critics() -> None:
    """Without a sample: the variance over draws and critics is the sum of both."""
    module = make_module(PROCESS)
    fit(module, [make_batch()] * (UPDATES_PER_POSTERIOR + 1))
    states = torch.randn(7, FEATURES)
    estimate = module.estimate_values(states)
    with torch.no_grad():
        critics = module.twin(states).q_values
        noise = module.twin.likelihood.std(module.twin(states).raw).mean(0)
        expected = (critics[0] - critics[1]).square() / 4 + std_of(module.twin.process, states, noise).square()
    torch.testing.assert_close(estimate.q_std, expected.sqrt())
    torch.testing.assert_close(estimate.q_mean, critics.mean(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": {"prior_function_scale": 0.0}}, "prior_function_scale: 0.0 must be positive .*nearest: 1"),
        ({"objective": {"kl_temperature": 0.0}}, "kl_temperature: 0.0 must be positive .*nearest: 1"),
    ],
)
def test_what_a_process_cannot_have_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_module(merged(PROCESS, options))


def test_states_of_the_replay_are_known_and_others_are_not() -> None:
    """Ten thousand data near one another, and states three times as far away as any of them."""
    process = make_process(1.0, 256)
    known = 0.3 * torch.randn(10_000, INPUTS)
    process.observe(known, torch.randint(ACTIONS, (10_000,)), torch.full((10_000,), 0.5))
    process.update_posterior(10_000)
    noise = torch.full((200, ACTIONS), 0.5)
    near, far = (std_of(process, spread * torch.randn(200, INPUTS), noise) for spread in (0.3, 3))
    assert near.mean() < 0.1
    assert far.mean() > 5 * near.mean()


def test_a_process_of_screens_under_mixed_precision_is_that_in_full_precision() -> None:
    torch.manual_seed(4)
    process = GaussianProcess((4, 84, 84), 2, 8, 1.0, 1.0)
    screens = torch.rand(3, 4, 84, 84)
    process.features.measure([screens])
    with torch.autocast("cpu", torch.bfloat16):
        process.observe(screens, torch.tensor([0, 1, 1]), torch.ones(3))
        process.update_posterior(100.0)
        mixed = std_of(process, screens, torch.ones(3, 2))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, std_of(process, screens, torch.ones(3, 2)))
    whole = process.features(screens).double()
    precision = torch.eye(8).double() + 100 * whole[:1].T @ whole[:1] / 3
    variance = (whole @ torch.linalg.inv(precision) * whole).sum(1)
    expected = (variance + process.mean_variance).sqrt()
    torch.testing.assert_close(mixed[:, 0].double(), expected, rtol=1e-4, atol=1e-6)


def test_several_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.network.bayesian: .*one task only; nearest: heads"):
        make_module(PROCESS, num_tasks=2)


def test_numbers_of_states_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.network.bayesian: .*arrays.*nearest: heads"):
        make_module(PROCESS, observation_shape=(1,), num_categories=9)
