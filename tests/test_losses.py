"""The objective's pure functions against closed forms, by hand and in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from bayes_rl import losses
from bayes_rl.bayes.likelihoods import gaussian_nll

B, A = 6, 4


def normal(*shape: int) -> Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, dtype=torch.float64)


def probabilities(*shape: int) -> Tensor:
    """Points of the simplex, float64."""
    return normal(*shape).softmax(-1)


# ------------------------------------------------------------------ values and targets
def test_expected_value_is_the_inner_product_with_the_action() -> None:
    probs, q = probabilities(B, A), normal(B, A)
    expected = torch.stack([sum(probs[b, a] * q[b, a] for a in range(A)) for b in range(B)])
    torch.testing.assert_close(losses.expected_value(probs, q), expected, rtol=1e-14, atol=1e-14)


def test_expected_value_at_a_corner_of_the_simplex_is_that_action_s_value() -> None:
    q, actions = normal(B, A), torch.tensor([0, 1, 2, 3, 1, 0])
    corners = torch.nn.functional.one_hot(actions, A).double()
    assert torch.equal(losses.expected_value(corners, q), q[torch.arange(B), actions])


def test_td_target_by_hand() -> None:
    reward = torch.tensor([1.0, -0.5, 0.25])
    discount = torch.tensor([0.9, 0.81, 0.0])
    probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    q = torch.tensor([[2.0, 4.0], [-1.0, 9.0], [100.0, 100.0]])
    expected = torch.tensor([1.0 + 0.9 * 3.0, -0.5 - 0.81, 0.25])
    torch.testing.assert_close(losses.td_target(reward, discount, probs, q), expected)


def test_td_target_of_a_terminal_transition_is_the_reward_alone() -> None:
    reward = normal(B)
    assert torch.equal(losses.td_target(reward, torch.zeros_like(reward), probabilities(B, A), normal(B, A)), reward)


def test_bootstrapped_variance_is_that_of_the_mixture_over_actions() -> None:
    """By the moments of a Gaussian mixture of torch.distributions, times the discount squared."""
    discount, probs, q, std = torch.rand(B).double(), probabilities(B, A), normal(B, A), normal(B, A).exp()
    mixture = MixtureSameFamily(Categorical(probs), Normal(q, std))
    variance = losses.bootstrapped_variance(discount, probs, q, std)
    torch.testing.assert_close(variance, discount.square() * mixture.variance)
    assert not losses.bootstrapped_variance(torch.zeros(B).double(), probs, q, std).any()


def test_the_variance_of_returns_is_the_fixed_point_of_bootstrapping() -> None:
    """A loop of two states with random rewards and ends: means and variances of 200 000 returns, by simulation."""
    gamma, end = 0.9, 0.2
    rewards = torch.tensor([[0.0, 2.0], [1.0, -3.0]], dtype=torch.float64)  # of each state, equally probable
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(400):
        following = mean.flip(0)[:, None], variance.flip(0).sqrt()[:, None]
        outcomes = []  # (target, variance of what follows) of each outcome of a state
        for discount, probability in ((gamma, 1 - end), (0.0, end)):
            discounts = torch.full((2,), discount, dtype=torch.float64)
            certain = torch.ones(2, 1, dtype=torch.float64)
            spread = losses.bootstrapped_variance(discounts, certain, *following)
            for reward in rewards.T:
                target = losses.td_target(reward, discounts, certain, following[0])
                outcomes.append((probability / 2, target, spread))
        mean = sum(weight * target for weight, target, _ in outcomes)
        variance = sum(weight * ((target - mean) ** 2 + spread) for weight, target, spread in outcomes)
    generator = torch.Generator().manual_seed(1)
    count, state = 200_000, 0
    returns, scale = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    while scale.any():
        chosen = torch.randint(2, (count,), generator=generator)
        returns += scale * rewards[state][chosen]
        scale *= gamma * (torch.rand(count, generator=generator) >= end)
        scale[scale < 1e-6] = 0
        state = 1 - state
    assert mean[0].item() == pytest.approx(returns.mean().item(), abs=5 * returns.std().item() / count**0.5)
    assert variance[0].item() == pytest.approx(returns.var().item(), rel=0.02)


def test_no_gradient_flows_through_the_target() -> None:
    """Defect 6 of the original: targets that carry a graph."""
    leaves = [t.requires_grad_() for t in (normal(B), normal(B), probabilities(B, A), normal(B, A))]
    assert not losses.td_target(*leaves).requires_grad


@pytest.mark.parametrize("value", [-7.5, 0.0, 1.0, 42.0])
def test_targets_and_values_outside_the_unit_interval_are_representable(value: float) -> None:
    """Defect 2 of the original: Q through a sigmoid."""
    q = torch.full((B, A), value)
    target = losses.td_target(torch.zeros(B), torch.ones(B), torch.full((B, A), 1 / A), q)
    torch.testing.assert_close(target, torch.full((B,), value))
    best = gaussian_nll(target, target, noise_std=1.0)
    assert (best <= gaussian_nll(torch.full((B,), 0.5), target, noise_std=1.0)).all()


@pytest.mark.parametrize("shape", [(A,), (B, A), (2, 3, B, A)])
def test_greedy_is_the_corner_of_the_greatest_value(shape: tuple[int, ...]) -> None:
    """Of each draw, pair and row by itself; the value there is the greatest."""
    q = normal(*shape)
    corners = losses.greedy(q)
    assert corners.shape == q.shape
    assert corners.dtype == q.dtype
    for corner, row in zip(corners.view(-1, A), q.view(-1, A), strict=True):
        assert corner.tolist() == [float(value == max(row.tolist())) for value in row.tolist()]
    assert torch.equal(losses.expected_value(corners, q), q.max(-1).values)


def test_greedy_takes_one_action_of_equal_ones() -> None:
    assert losses.greedy(torch.zeros(B, A)).sum(-1).tolist() == [1.0] * B


def test_td_target_of_the_greedy_corner_is_that_of_the_best_action() -> None:
    reward, discount, q = normal(2, 3, B), probabilities(2, 3, B), normal(2, 3, B, A)
    expected = reward + discount * q.max(-1).values
    torch.testing.assert_close(losses.td_target(reward, discount, losses.greedy(q), q), expected, rtol=1e-14, atol=0)


# ------------------------------------------------------------------ likelihood
@pytest.mark.parametrize("noise_std", [0.05, 1.0, 3.0])
def test_gaussian_nll_equals_torch_distributions(noise_std: float) -> None:
    q, target = normal(B), normal(B)
    expected = -Normal(q, noise_std).log_prob(target)
    torch.testing.assert_close(gaussian_nll(q, target, noise_std), expected, rtol=1e-12, atol=1e-12)


def test_gaussian_nll_gradient_is_the_td_error_over_the_noise_variance() -> None:
    q, target = normal(B).requires_grad_(), normal(B)
    (gradient,) = torch.autograd.grad(gaussian_nll(q, target, 0.5).sum(), q)
    torch.testing.assert_close(gradient, (q - target).detach() / 0.25, rtol=1e-12, atol=1e-12)


def test_negative_elbo_is_linear_in_its_parts() -> None:
    nll, kl = normal(()), 1e4 * normal(()).abs()
    for num_data, temperature in ((1, 1.0), (10, 1.0), (12345, 0.3), (7, 0.0)):
        expected = nll + temperature * kl / num_data
        torch.testing.assert_close(losses.negative_elbo(nll, kl, num_data, temperature), expected, rtol=1e-13, atol=0)


def test_negative_elbo_of_the_whole_data_set_is_minus_elbo_over_n() -> None:
    nll_of_each, kl = normal(50).abs(), torch.tensor(123.0, dtype=torch.float64)
    minus_elbo = nll_of_each.sum() + kl
    torch.testing.assert_close(losses.negative_elbo(nll_of_each.mean(), kl, 50, 1.0), minus_elbo / 50)


# ------------------------------------------------------------------ actors
def test_dpg_gradient_is_the_exact_all_action_policy_gradient() -> None:
    logits, q = normal(B, A).requires_grad_(), 5 * normal(B, A)
    (gradient,) = torch.autograd.grad(losses.dpg_loss(logits, q), logits)
    mu = logits.detach().softmax(-1)
    expected = torch.zeros(B, A, dtype=torch.float64)
    for b in range(B):
        for k in range(A):
            for a in range(A):  # d mu_a / d logit_k = mu_a (1[a = k] - mu_k)
                expected[b, k] -= mu[b, a] * (float(a == k) - mu[b, k]) * q[b, a] / B
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_dpg_loss_is_minus_the_mean_value_of_the_policy() -> None:
    logits, q = normal(B, A), normal(B, A)
    expected = -sum(Categorical(logits=logits[b]).probs @ q[b] for b in range(B)) / B
    torch.testing.assert_close(losses.dpg_loss(logits, q), expected)


@pytest.mark.parametrize("policy_temperature", [0.02, 0.5, 2.0])
def test_cross_entropy_gradient_is_policy_minus_softmax_of_values(policy_temperature: float) -> None:
    logits, q = normal(B, A).requires_grad_(), normal(B, A)
    (gradient,) = torch.autograd.grad(losses.cross_entropy_loss(logits, q, policy_temperature), logits)
    expected = (logits.detach().softmax(-1) - (q / policy_temperature).softmax(-1)) / B
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_cross_entropy_of_a_saturated_actor_still_has_a_gradient_where_dpg_has_none() -> None:
    logits = torch.tensor([[200.0, 0.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    (dpg,) = torch.autograd.grad(losses.dpg_loss(logits, q), logits)
    (cross,) = torch.autograd.grad(losses.cross_entropy_loss(logits, q, 0.02), logits)
    assert dpg.abs().max() < 1e-80  # mu_1 = exp(-200)
    torch.testing.assert_close(cross, torch.tensor([[1.0, -1.0]], dtype=torch.float64))


def test_actor_losses_send_no_gradient_into_the_values() -> None:
    logits, q = normal(B, A).requires_grad_(), normal(B, A).requires_grad_()
    for loss in (losses.dpg_loss(logits, q), losses.cross_entropy_loss(logits, q, 0.1)):
        to_logits, to_q = torch.autograd.grad(loss, (logits, q), allow_unused=True)
        assert to_logits.abs().max() > 0
        assert to_q is None


def test_entropy_equals_torch_distributions_and_is_log_a_when_uniform() -> None:
    logits = normal(2, B, A)
    torch.testing.assert_close(losses.entropy(logits), Categorical(logits=logits).entropy().mean())
    uniform = losses.entropy(torch.zeros(B, A, dtype=torch.float64))
    torch.testing.assert_close(uniform, torch.tensor(float(A), dtype=torch.float64).log())


# ------------------------------------------------------------------ EWC
def test_quadratic_penalty_by_hand() -> None:
    parameter, anchor = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    fisher = torch.tensor([[9.0, 2.0], [0.5, 0.0]])
    assert losses.quadratic_penalty(parameter, anchor, fisher).item() == 0.5 * (2.0 * 1.0 + 0.5 * 4.0)


def test_quadratic_penalty_gradient_is_fisher_times_displacement() -> None:
    parameter, anchor, fisher = normal(3, 2).requires_grad_(), normal(3, 2), normal(3, 2).square()
    (gradient,) = torch.autograd.grad(losses.quadratic_penalty(parameter, anchor, fisher), parameter)
    torch.testing.assert_close(gradient, fisher * (parameter.detach() - anchor), rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------ shapes
WRONG_SHAPES: dict[str, Callable[[], Tensor]] = {
    "expected_value": lambda: losses.expected_value(normal(B, 1), normal(B)),
    "expected_value, one row for all": lambda: losses.expected_value(normal(1, A), normal(B, A)),
    "td_target, reward": lambda: losses.td_target(normal(B, 1), normal(B), normal(B, A), normal(B, A)),
    "td_target, discount": lambda: losses.td_target(normal(B), normal(B, 1), normal(B, A), normal(B, A)),
    "td_target, both": lambda: losses.td_target(normal(B, 1), normal(B, 1), normal(B, A), normal(B, A)),
    "td_target, values": lambda: losses.td_target(normal(B), normal(B), normal(B, A), normal(B, 1)),
    "gaussian_nll, q": lambda: gaussian_nll(normal(B, 1), normal(B), 1.0),
    "gaussian_nll, target": lambda: gaussian_nll(normal(B), normal(B, 1), 1.0),
    "dpg_loss": lambda: losses.dpg_loss(normal(B, A), normal(B, 1)),
    "cross_entropy_loss": lambda: losses.cross_entropy_loss(normal(B, A), normal(B, 1), 0.1),
    "quadratic_penalty, anchor": lambda: losses.quadratic_penalty(normal(B), normal(B, 1), normal(B)),
    "quadratic_penalty, fisher": lambda: losses.quadratic_penalty(normal(B), normal(B), normal(B, 1)),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_shapes_that_would_broadcast_are_refused(case: str) -> None:
    with pytest.raises(ValueError, match="shapes must be equal"):
        WRONG_SHAPES[case]()
