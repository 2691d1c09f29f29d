"""The objective: targets, the terms of the loss and their gradients, by hand and by brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.distributions import kl_divergence as distribution_kl

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.agent.objective import Targets, critic_nll, objective_terms, td_targets, total_loss
from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.kl import kl_divergence
from bayes_rl.networks.layer_factory import PLAIN
from bayes_rl.types import Batch, Transition
from bayes_rl.utils.side_thread import SIDE_THREAD
from tests.helpers.agents import (
    ACTIONS,
    FAMILIES,
    FEATURES,
    LOW_RANK,
    MEMBERS,
    PROCESS,
    WITH_DRAWS,
    EachUpdate,
    SampleData,
    equal,
    fit,
    gradients,
    make_batch,
    make_constant,
    make_module,
    of_actors,
    of_critics,
    step,
)
from tests.helpers.options import merged, title

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

# A head whose input is zero draws with the layer's variance floor of 1e-8: a standard deviation of 1e-4.
FLOOR_STD = 1e-4
LOGITS = torch.tensor([[1.0, 0.0, -1.0], [-2.0, 0.5, 0.5]])
Q_VALUES = torch.tensor([[1.0, -2.0, 5.0], [-3.0, 0.5, 2.0]])


def critic_bias_gradients(module: VariationalActorCritic, batch: Batch) -> Tensor:
    """`[2, A]`: gradients of the loss with respect to the critics' biases (neither KL nor actor loss reach them)."""
    step(module, batch)
    return torch.stack([critic.bias.grad for critic in module.twin.critics])


def expected_bias_gradients(batch: Batch, targets: Tensor, noise_std: float) -> Tensor:
    """The same by hand: mean over the batch of (Q_i(a) - target_i) / noise^2 at the executed action."""
    t = batch.transition
    expected = torch.zeros(2, ACTIONS)
    for pair in range(2):
        for b, action in enumerate(t.action.tolist()):
            expected[pair, action] += (Q_VALUES[pair, action] - targets[pair, b]) / noise_std**2 / len(t.action)
    return expected


# ------------------------------------------------------------------ targets
NOISE = 0.5
TOLERANCE = 6 * FLOOR_STD / NOISE**2  # six standard deviations of one draw; the mean over a batch is closer


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_targets_of_other_cross_the_pairs(shared_trunk: bool) -> None:
    module = make_module(
        objective={"target": "other"}, likelihood={"noise_std": NOISE}, network={"shared_trunk": shared_trunk}
    )
    make_constant(module.twin, LOGITS, Q_VALUES)
    batch = make_batch()
    probs = LOGITS.softmax(-1)
    bootstrap = [(probs[other] * Q_VALUES[other]).sum() for other in (1, 0)]
    t = batch.transition
    targets = torch.stack([t.reward + t.discount * b for b in bootstrap])
    expected = expected_bias_gradients(batch, targets, NOISE)
    torch.testing.assert_close(critic_bias_gradients(module, batch), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_targets_of_ema_come_from_the_moving_average_of_both(shared_trunk: bool) -> None:
    module = make_module(
        objective={"target": "ema"}, likelihood={"noise_std": NOISE}, network={"shared_trunk": shared_trunk}
    )
    make_constant(module.twin, LOGITS, Q_VALUES)
    averaged_logits, averaged_q = torch.randn(2, ACTIONS), 3 * torch.randn(2, ACTIONS)
    make_constant(module.target_twin, averaged_logits, averaged_q)
    batch = make_batch()
    bootstrap = (averaged_logits.softmax(-1).mean(0) * averaged_q.mean(0)).sum()
    target = batch.transition.reward + batch.transition.discount * bootstrap
    expected = expected_bias_gradients(batch, torch.stack([target, target]), NOISE)
    torch.testing.assert_close(critic_bias_gradients(module, batch), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("target", ["other", "ema"])
def test_targets_come_from_mean_weights_and_carry_no_gradient(target: str) -> None:
    """Defect 6: with a discount the loss gradient equals that of the same step on constant targets."""
    module = make_module(objective={"target": target}, network={"shared_trunk": False})
    batch = make_batch()
    loss = step(module, batch)
    with_bootstrap = gradients(module.twin)

    t = batch.transition
    with torch.no_grad():
        source = module.twin if target == "other" else module.target_twin
        output = source(t.next_observation)
    if target == "other":
        # One constant cannot serve both pairs: compare pair by pair below.
        probs, q = output.action_logits.softmax(-1), output.q_values
        bootstraps = [(probs[1] * q[1]).sum(-1), (probs[0] * q[0]).sum(-1)]
    else:
        bootstraps = [(output.mean_action_probs() * output.q_values.mean(0)).sum(-1)] * 2
    for pair, bootstrap in enumerate(bootstraps):
        constant = t._replace(reward=t.reward + t.discount * bootstrap, discount=torch.zeros_like(t.discount))
        step(module, batch._replace(transition=constant))
        own = (f"trunks.{pair + 2}.", f"critics.{pair}.")
        for name, gradient in gradients(module.twin).items():
            if name.startswith(own):
                torch.testing.assert_close(gradient, with_bootstrap[name])
    assert torch.isfinite(loss)
    if module.target_twin is not None:
        assert not any(p.requires_grad or p.grad is not None for p in module.target_twin.parameters())


@pytest.mark.parametrize("target", ["other", "ema"])
def test_a_terminal_transition_ignores_the_next_observation(target: str) -> None:
    """Defect 4: the original bootstraps across episode ends."""
    module = make_module(objective={"target": target})
    for discount, same in ((0.0, True), (0.9, False)):
        batch = make_batch(discount=discount)
        elsewhere = batch.transition._replace(next_observation=100 * torch.randn(6, FEATURES))
        losses_of = [step(module, batch), step(module, batch._replace(transition=elsewhere))]
        assert torch.equal(*losses_of) == same


def test_the_executed_action_reaches_the_critic() -> None:
    """Defect 3: the error of a transition trains the value of its stored action and of no other."""
    module = make_module(objective={"target": "other"}, likelihood={"noise_std": NOISE})
    make_constant(module.twin, LOGITS, Q_VALUES)
    for action in range(ACTIONS):
        batch = make_batch(action=torch.full((6,), action), discount=0.0, reward=torch.full((6,), 20.0))
        touched = critic_bias_gradients(module, batch) != 0
        assert touched.tolist() == [[a == action for a in range(ACTIONS)]] * 2


@pytest.mark.parametrize("value", [-40.0, 40.0])
def test_returns_outside_the_unit_interval_reach_the_critic(value: float) -> None:
    """Defect 2: neither Q nor the targets are squashed or clipped."""
    module = make_module(objective={"target": "other"}, likelihood={"noise_std": NOISE})
    make_constant(module.twin, LOGITS, Q_VALUES)
    batch = make_batch(discount=0.0, reward=torch.full((6,), value))
    expected = expected_bias_gradients(batch, torch.full((2, 6), value), NOISE)
    tolerance = TOLERANCE + 6 * 2**-22 * 160  # rounding of a float32 sum of gradients of size 160
    torch.testing.assert_close(critic_bias_gradients(module, batch), expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------ the objective
def weights_of(module: VariationalActorCritic) -> WeightMode:
    return module.twin.posterior.training_mode(module.device)


def targets_of(module: VariationalActorCritic, transition: Transition, weights: WeightMode) -> Targets:
    return td_targets(module.twin, module.target_twin, transition, weights, 0, module.objective)


@FAMILIES
def test_the_kl_enters_the_loss_divided_by_the_number_of_data(family: dict[str, Any]) -> None:
    """Defect 1: between two N under the same noise, the loss differs by T KL (1/N - 1/M), summed over layers."""
    module = make_module(family, objective={"kl_temperature": 0.7}, network={"shared_trunk": False})
    batch = make_batch()
    kl = kl_divergence(module.twin).item()
    few, many = step(module, batch._replace(num_data=100)), step(module, batch._replace(num_data=10_000))
    expected = 0.7 * kl * (1 / 100 - 1 / 10_000)
    assert (few - many).item() == pytest.approx(expected, rel=1e-4)  # float32 losses of size 10


@FAMILIES
def test_temperature_zero_leaves_out_the_kl(family: dict[str, Any]) -> None:
    module = make_module(family, objective={"kl_temperature": 0.0})
    batch = make_batch()
    assert torch.equal(step(module, batch._replace(num_data=1)), step(module, batch._replace(num_data=10**6)))


@pytest.mark.parametrize("actor_loss", ["dpg", "cross_entropy"])
def test_the_loss_is_the_sum_of_its_named_parts(actor_loss: str) -> None:
    """Constant networks: -log N(target | Q) of both pairs, KL / N, and both actors' losses, by hand."""
    module = make_module(
        objective={"target": "other", "actor_loss": actor_loss, "entropy_weight": 0.3}, likelihood={"noise_std": NOISE}
    )
    make_constant(module.twin, LOGITS, Q_VALUES)
    batch = make_batch(discount=0.0)
    t = batch.transition
    q = Q_VALUES[:, t.action]
    nll = -torch.distributions.Normal(q, NOISE).log_prob(t.reward.expand(2, -1)).mean(1).sum()
    mean_q = Q_VALUES.mean(0)
    if actor_loss == "dpg":
        actor = -sum(LOGITS[i].softmax(-1) @ mean_q for i in range(2))
    else:
        goal = (mean_q / module.objective.policy_temperature).softmax(-1)
        actor = -sum(goal @ LOGITS[i].log_softmax(-1) for i in range(2))
    entropy = sum(torch.distributions.Categorical(logits=LOGITS[i]).entropy() for i in range(2))
    expected = nll + kl_divergence(module.twin).detach() / batch.num_data + actor - 0.3 * entropy
    # The slope of the nll in Q is at most |Q - r| / noise^2 < 40; noise of 1e-4 in each of 12 draws.
    torch.testing.assert_close(step(module, batch), expected, rtol=1e-5, atol=6 * 40 * FLOOR_STD)


@FAMILIES
@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("actor_loss", ["dpg", "cross_entropy"])
def test_in_the_summed_loss_each_part_trains_its_own_networks(
    shared_trunk: bool, actor_loss: str, family: dict[str, Any]
) -> None:
    """The reward moves only critic gradients; the entropy weight, a matter of the actors, only actor gradients."""
    settings = merged({"network": {"shared_trunk": shared_trunk}, "objective": {"actor_loss": actor_loss}}, family)
    torch.manual_seed(8)
    module = make_module(settings, objective={"entropy_weight": 0.1})
    torch.manual_seed(8)
    twin_sister = make_module(settings, objective={"entropy_weight": 0.9})
    batch = make_batch()
    richer = batch._replace(transition=batch.transition._replace(reward=batch.transition.reward + 5))
    results = []
    for agent, data in ((module, batch), (module, richer), (twin_sister, batch)):
        step(agent, data)
        results.append(gradients(agent.twin))
    base, rewarded, spread = results
    actors, critics = of_actors(base, shared_trunk), of_critics(base, shared_trunk)
    assert len(actors) + len(critics) == len(base)
    assert equal(actors, rewarded)
    assert not equal(critics, rewarded)
    assert equal(critics, spread)
    assert not equal(actors, spread)


def test_actor_gradient_is_the_exact_policy_gradient_on_the_mean_of_both_critics() -> None:
    module = make_module(objective={"actor_loss": "dpg", "kl_temperature": 0.0})
    make_constant(module.twin, LOGITS, Q_VALUES)
    step(module, make_batch())
    mu, mean_q = LOGITS.softmax(-1), Q_VALUES.mean(0)
    expected = -mu * (mean_q - (mu * mean_q).sum(-1, keepdim=True))
    ours = torch.stack([actor.bias.grad for actor in module.twin.actors])
    torch.testing.assert_close(ours, expected, rtol=0, atol=6 * 5 * FLOOR_STD)


# ------------------------------------------------------------------ the whole objective, by brute force
def features(trunk: Any, x: Tensor) -> Tensor:
    """An mlp's features, layer by layer."""
    for linear, norm in ((trunk.layers[1], trunk.layers[2]), (trunk.project, trunk.norm)):
        x = F.relu(F.layer_norm(x @ linear.weight.T + linear.bias, (8,), norm.weight, norm.bias))
    return x


def head(layer: Any, x: Tensor, index: Tensor | None, noise: Tensor | None) -> Tensor:
    """A Bayesian layer by one index: its mean weights, or with given noise of its outputs."""
    weight, bias = layer.weight_mu, layer.bias
    if layer.settings.family == "members":
        weight, bias = weight[index.argmax()], bias[index.argmax()]
    elif layer.settings.family == "low_rank":
        weight = weight + sum(z * column for z, column in zip(index, layer.weight_factor, strict=True))
    y = x @ weight.T + bias
    if noise is None:
        return y
    return y + (x.square() @ layer.weight_log_var.exp().T).clamp_min(1e-8).sqrt() * noise


def answer(
    twin: Any, observation: Tensor, index: Tensor | None, noise: list[list[Tensor | None]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[2, B, A]`, numbers of the likelihood `[2, B, A, n]` and prior values `[B, A]`, by one index."""
    logits, raw = [], []
    for pair in range(2):
        of_actor, of_critic = (0, 0) if twin.shared_trunk else (pair, 2 + pair)
        below = features(twin.trunks[of_actor], observation)
        below = below.detach() if twin.shared_trunk else below
        logits.append(head(twin.actors[pair], below, index, noise[0][pair]))
        numbers = head(twin.critics[pair], features(twin.trunks[of_critic], observation), index, noise[1][pair])
        raw.append(numbers.unflatten(-1, (ACTIONS, -1)))
    prior = torch.zeros(len(observation), ACTIONS)
    if twin.prior is not None:
        parts = twin.prior.values(twin.prior.encoder(observation)).unflatten(-1, (-1, ACTIONS))
        prior = sum(z * parts[:, j] for j, z in enumerate(index))
    return torch.stack(logits), torch.stack(raw), prior


def kl_by_distributions(heads: list[Any], prior_precision: float) -> Tensor:
    """KL between `torch.distributions`; that of `low_rank` from the dense covariance of all weights together."""
    prior_std = prior_precision**-0.5
    if heads[0].settings.family != "low_rank":
        total = torch.zeros(())
        for layer in heads:
            means = layer.weight_mu if layer.settings.family == "members" else layer.weight_mu[None]
            posterior = Normal(means, (0.5 * layer.weight_log_var).exp().expand_as(means))
            total = total + distribution_kl(posterior, Normal(0.0, prior_std)).sum() / len(means)
        return total
    mean = torch.cat([h.weight_mu.flatten() for h in heads]).double()
    log_var = torch.cat([h.weight_log_var.flatten() for h in heads]).double()
    factor = torch.cat([h.weight_factor.flatten(1) for h in heads], 1).double()
    posterior = MultivariateNormal(mean, log_var.exp().diag() + factor.T @ factor)
    prior = MultivariateNormal(torch.zeros_like(mean), prior_std**2 * torch.eye(len(mean), dtype=torch.float64))
    return distribution_kl(posterior, prior).float()


def brute_force_loss(module: VariationalActorCritic, batch: Batch, seed: int) -> Tensor:
    """The objective in a loop over draws and pairs, from the same random numbers in the same order."""
    t, twin, objective = batch.transition, module.twin, module.objective
    posterior, shared_trunk = twin.settings.layers.settings, twin.settings.network.shared_trunk
    torch.manual_seed(seed)
    indices: Any = {
        "mean_field": lambda: [None],
        "low_rank": lambda: torch.randn(posterior.num_draws, posterior.size),
        "members": lambda: torch.eye(posterior.size),
    }[posterior.family]()
    pairs = [0, 1] if objective.update_pairs == "both" else [int(torch.randint(2, ()))]
    shape = (len(indices), len(t.action))

    def noise_of(width: int) -> list[Tensor]:  # heads on one trunk are one layer
        joint = torch.randn(*shape, 2 * width).split(width, -1) if shared_trunk else None
        return list(joint) if joint else [torch.randn(*shape, width) for _ in range(2)]

    numbers = ACTIONS * twin.likelihood.outputs
    if posterior.family == "mean_field" and shared_trunk:  # then actors and critics are one, too
        actors, critics = torch.randn(*shape, 2 * ACTIONS + 2 * numbers).split([2 * ACTIONS, 2 * numbers], -1)
        noise = [list(actors.split(ACTIONS, -1)), list(critics.split(numbers, -1))]
    else:
        noise = [noise_of(ACTIONS), noise_of(numbers)]
    rows, d_count = torch.arange(len(t.action)), len(indices)
    total = torch.zeros(())
    for d, index in enumerate(indices):
        with torch.no_grad():
            source = twin if objective.target == "other" else module.target_twin
            logits, raw, prior = answer(source, t.next_observation, index, [[None] * 2] * 2)
            probs, q = logits.softmax(-1), source.likelihood.value(raw) + prior
            bootstraps = []
            for pair in range(2):
                mu, value = (
                    (probs[1 - pair], q[1 - pair]) if objective.target == "other" else (probs.mean(0), q.mean(0))
                )
                bootstraps.append(value.max(-1).values if objective.bootstrap == "greedy" else (mu * value).sum(-1))
        logits, raw, prior = answer(twin, t.observation, index, [[n[d] for n in kind] for kind in noise])
        values = (twin.likelihood.value(raw) + prior).mean(0).detach()
        for pair in pairs:
            goal = t.reward + t.discount * bootstraps[pair] - prior[rows, t.action]
            total = total + twin.likelihood.nll(raw[pair][rows, t.action], goal).mean() / d_count
            log_mu = logits[pair].log_softmax(-1)
            if objective.actor_loss == "dpg":
                actor = -(log_mu.exp() * values).sum(-1)
            else:
                actor = -((values / objective.policy_temperature).softmax(-1) * log_mu).sum(-1)
            actor = actor + objective.entropy_weight * (log_mu.exp() * log_mu).sum(-1)
            total = total + actor.mean() / d_count
    heads = [heads[pair] for heads in (twin.actors, twin.critics) for pair in pairs]
    return total + objective.kl_temperature / batch.num_data * kl_by_distributions(heads, posterior.prior_precision)


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"objective": {"target": "other", "actor_loss": "dpg", "entropy_weight": 0.2}, "network": {"shared_trunk": False}},
    {"objective": {"bootstrap": "greedy"}},
    {
        "objective": {"bootstrap": "greedy", "target": "other", "kl_temperature": 0.3},
        "likelihood": {"family": "learned_gaussian"},
    },
    {"objective": {"update_pairs": "random", "entropy_weight": 0.2}, "network": {"shared_trunk": False}},
    merged(MEMBERS, {"network": {"prior_function_scale": 2.0}, "objective": {"bootstrap": "greedy"}}),
    merged(
        MEMBERS,
        {
            "objective": {"target": "other", "actor_loss": "dpg", "entropy_weight": 0.2},
            "network": {"shared_trunk": False},
        },
    ),
    merged(
        MEMBERS,
        {
            "likelihood": {"family": "hl_gauss", "num_bins": 9},
            "network": {"prior_function_scale": 1.0},
            "objective": {"update_pairs": "random"},
        },
    ),
    merged(LOW_RANK, {"network": {"prior_function_scale": 1.0}}),
    merged(
        LOW_RANK,
        {
            "objective": {"target": "other", "bootstrap": "greedy"},
            "likelihood": {"family": "learned_gaussian"},
            "network": {"prior_function_scale": 0.5},
        },
    ),
    merged(
        LOW_RANK,
        {
            "posterior": {"num_draws": 1},
            "network": {"shared_trunk": False},
            "likelihood": {"family": "two_hot", "num_bins": 7, "value_range": (-3, 3)},
        },
    ),
    merged(LOW_RANK, {"objective": {"update_pairs": "random", "kl_temperature": 0.0, "actor_loss": "dpg"}}),
]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=title)
def test_loss_and_gradients_equal_a_loop_over_draws_and_pairs(settings: dict[str, Any]) -> None:
    """A wide posterior and few data, so that noise and KL weigh; the moving average is another network."""
    defaults = {
        "posterior": {"init_log_var": -3.0},
        "objective": {"policy_temperature": 0.5},
        "likelihood": {"noise_std": 0.7},
    }
    module = make_module(defaults, settings)
    if module.target_twin is not None:
        with torch.no_grad():
            for parameter in module.target_twin.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    batch = make_batch(num_data=50)
    for seed in range(3):  # both pairs get their turn
        loss = step(module, batch, seed)
        ours = gradients(module.twin)
        module.zero_grad()
        expected = brute_force_loss(module, batch, seed)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
        for name, gradient in gradients(module.twin).items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@WITH_DRAWS
@pytest.mark.parametrize("target", ["other", "ema"])
def test_the_greedy_bootstrap_is_the_best_value_of_the_same_draw(family: dict[str, Any], target: str) -> None:
    module = make_module(
        family, objective={"target": target, "bootstrap": "greedy"}, network={"prior_function_scale": 3.0}
    )
    t = make_batch().transition
    weights = weights_of(module)
    assert isinstance(weights, Draws)
    targets = targets_of(module, t, weights)
    best = []
    for index in weights.index:
        q = module.twin(t.next_observation[None], Draws(index[None], {})).q_values[:, 0]  # weights of the average too
        values = [q[1], q[0]] if target == "other" else [q.mean(0)] * 2
        best.append(torch.stack([v.max(-1).values for v in values]))
    bootstrap = torch.stack(best, 1).detach()
    assert bootstrap.std(1).min() > 0.1  # draws differ
    torch.testing.assert_close(targets.values, t.reward + t.discount * bootstrap)


@WITH_DRAWS
@pytest.mark.parametrize("target", ["other", "ema"])
def test_what_the_prior_function_explains_is_not_learned(family: dict[str, Any], target: str) -> None:
    """One action, s' = s, no reward, no discount: the target of every draw is its prior, and a learned part of zero
    is the best one, with the least nll that there is and no gradient.
    """
    module = make_module(
        family,
        objective={"target": target},
        num_actions=1,
        network={"prior_function_scale": 50.0},
        likelihood={"noise_std": 0.5},
    )
    for twin in {module.twin, module.target_twin} - {None}:
        make_constant(twin, torch.zeros(2, 1), torch.zeros(2, 1))
    t = make_batch(action=torch.zeros(6, dtype=torch.int64), reward=torch.zeros(6), discount=1.0).transition
    t = t._replace(next_observation=t.observation)
    weights = weights_of(module)
    assert isinstance(weights, Draws)
    output, targets = module.twin(t.observation[None], weights), targets_of(module, t, weights)
    assert targets.values.abs().max() > 10
    least = 2 * -Normal(0.0, 0.5).log_prob(torch.tensor(0.0))
    nll = critic_nll(module.twin, output, t, targets, [0, 1])
    torch.testing.assert_close(nll, least, rtol=1e-6, atol=2 * (6 * FLOOR_STD / 0.5) ** 2)
    nll.backward()
    for critic in module.twin.critics:
        assert critic.bias.grad.abs().max() < 6 * FLOOR_STD / 0.5**2
    shifted = t._replace(reward=torch.full((6,), 1.5))
    more = critic_nll(module.twin, output, shifted, targets_of(module, shifted, weights), [0, 1])
    torch.testing.assert_close(more - least, torch.tensor(2 * 0.5 * (1.5 / 0.5) ** 2), rtol=1e-2, atol=0)


def test_learned_noise_becomes_the_scatter_of_the_targets() -> None:
    """One state, one action, terminal rewards that scatter by 2: the mean is learned, and what is left is noise."""
    reward = 3 + 2 * torch.randn(256)
    state = torch.ones(256, FEATURES)
    action = torch.zeros(256, dtype=torch.int64)
    batch = make_batch(256, 0.0, 10**6, observation=state, next_observation=state, action=action, reward=reward)
    module = make_module(likelihood={"family": "learned_gaussian", "noise_std": 3.0}, optimizer={"critic_lr": 2e-2})
    average = module.target_twin.likelihood.log_noise.clone()
    logged = fit(module, [batch] * 150, log_every=150).callback_metrics
    noise_std = module.twin.likelihood.log_noise.exp().item()
    assert noise_std == pytest.approx(reward.std(correction=0).item(), rel=0.05)
    assert logged["train/noise_std"].item() == pytest.approx(noise_std, rel=0.02)  # before the last update
    assert not torch.equal(module.target_twin.likelihood.log_noise, average)


@pytest.mark.parametrize(
    ("likelihood", "family"),
    [
        pytest.param("hl_gauss", {}, id="hl_gauss mean_field"),
        pytest.param("hl_gauss", MEMBERS, id="hl_gauss members", marks=pytest.mark.slow),
        pytest.param("hl_gauss", LOW_RANK, id="hl_gauss low_rank", marks=pytest.mark.slow),
        pytest.param("two_hot", {}, id="two_hot mean_field"),
    ],
)
def test_histograms_learn_a_fixed_batch(likelihood: str, family: dict[str, Any]) -> None:
    nlls = []
    module = make_module(
        family,
        likelihood={"family": likelihood, "num_bins": 21, "value_range": (-4.0, 4.0)},
        optimizer={"critic_lr": 1e-2},
    )
    note = EachUpdate(lambda trainer, _: nlls.append(float(trainer.callback_metrics["train/nll"])))
    fit(module, [make_batch(discount=0.0, num_data=10**6)] * 50, note, log_every=1)
    assert nlls[0] > 2 * 2.5  # of two critics; log 21 = 3 in ignorance
    assert nlls[-1] < 0.6 * nlls[0]


# ------------------------------------------------------------------ the variance of returns
def test_variance_of_targets_by_hand() -> None:
    module = make_module(likelihood={"family": "return_gaussian", "noise_std": 0.8}, network={"bayesian": "none"})
    t = make_batch().transition
    output = module.target_twin(t.next_observation)
    probs, q_values = output.mean_action_probs(), output.q_values.mean(0)
    std = 0.8 * output.raw[..., 1].exp().mean(0)
    mean = (probs * q_values).sum(-1, keepdim=True)
    second_moment = (probs * (std.square() + q_values.square())).sum(-1)
    expected = t.discount.square() * (second_moment - mean.square().squeeze(-1))
    variance = targets_of(module, t, "mean").variance
    torch.testing.assert_close(variance, expected.expand(2, 6).detach(), rtol=1e-4, atol=1e-5)
    assert targets_of(make_module(), t, "mean").variance is None


def test_return_noise_becomes_the_scatter_of_the_targets_of_its_state() -> None:
    """Two states, one action, terminal rewards that scatter by 2 and by 0.5: each state has its own noise."""
    state = torch.cat([torch.ones(128, FEATURES), -torch.ones(128, FEATURES)])
    reward = torch.cat([3 + 2 * torch.randn(128), -1 + 0.5 * torch.randn(128)])
    action = torch.zeros(256, dtype=torch.int64)
    batch = make_batch(256, 0.0, 10**6, observation=state, next_observation=state, action=action, reward=reward)
    module = make_module(likelihood={"family": "return_gaussian"}, optimizer={"critic_lr": 2e-2})
    fit(module, [batch] * 200, log_every=200)
    estimate = module.estimate_values(state[[0, -1]])
    scatter = torch.stack([reward[:128].std(correction=0), reward[128:].std(correction=0)])
    torch.testing.assert_close(estimate.noise_std[:, 0], scatter, rtol=0.1, atol=0)
    means = torch.stack([reward[:128].mean(), reward[128:].mean()])
    torch.testing.assert_close(estimate.q_mean[:, 0], means, rtol=0, atol=0.2)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_noise_learns_from_realised_returns(scale: float) -> None:
    """By hand: Q is learned value plus prior function, and the square of return minus Q replaces the bootstrap."""
    module = make_module(LOW_RANK, likelihood={"family": "return_gaussian"}, network={"prior_function_scale": scale})
    t = make_batch().transition
    realised = torch.tensor([1.0, -2.0, torch.nan, 3.0, torch.nan, 0.5])
    weights = weights_of(module)
    output, targets = module.twin(t.observation[None], weights), targets_of(module, t, weights)
    nll = critic_nll(module.twin, output, t._replace(realised_return=realised), targets, [0, 1])
    action = t.action.expand(targets.values.shape)[..., None]
    q = output.q_values.gather(-1, action).squeeze(-1)
    raw = output.raw.gather(-2, action[..., None].expand(*action.shape, 2)).squeeze(-2)
    squares = torch.where(realised.isnan(), (targets.values - q).square() + targets.variance, (realised - q).square())
    expected = 0.5 * squares * (-2 * raw[..., 1]).exp() + raw[..., 1] + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(nll, 2 * expected.mean(), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ one pair at random
PAIRS: list[dict[str, Any]] = [
    {},
    {"network": {"bayesian": "all"}},
    {"network": {"bayesian": "trunk"}},
    {"network": {"bayesian": "none"}},
    {"network": {"bayesian": "all", "shared_trunk": False}},
    {
        "network": {"bayesian": "all"},
        "objective": {"actor_loss": "dpg", "entropy_weight": 0.2, "target": "other"},
    },
    {"likelihood": {"family": "return_gaussian"}, "objective": {"target": "other"}},
    {**MEMBERS, "network": {"bayesian": "all"}, "likelihood": {"family": "learned_gaussian"}},
    {**LOW_RANK, "network": {"bayesian": "all"}},
    LOW_RANK,
    {
        **LOW_RANK,
        "network": {"bayesian": "all", "shared_trunk": False},
        "likelihood": {"family": "hl_gauss", "num_bins": 9},
    },
    PROCESS,
    {**PROCESS, "likelihood": {"family": "return_gaussian"}},
]


@pytest.mark.parametrize("settings", PAIRS, ids=title)
def test_the_loss_of_a_random_pair_is_half_of_the_loss_of_both_in_expectation(settings: dict[str, Any]) -> None:
    """Value and gradients of every term, by equal noise; a KL that outweighs the rest."""
    wide = {"posterior": {"init_log_var": -3.0}, "likelihood": {"noise_std": 0.7}}
    module = make_module(wide, settings, {"objective": {"update_pairs": "random"}})
    batch = make_batch(num_data=5)
    weight_mode = module.twin.posterior.training_mode(module.device)

    def terms_and_gradients(pairs: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        module.zero_grad()
        torch.manual_seed(3)
        networks = module.twin, module.target_twin
        terms = objective_terms(*networks, batch.transition, weight_mode, pairs, 0, module.objective)
        total_loss(terms, batch.num_data, module.objective).backward()
        values = terms.nll, terms.kl, terms.actor_loss
        return torch.stack(values).detach(), gradients(module.twin)

    (values_0, gradients_0), (values_1, gradients_1) = terms_and_gradients((0,)), terms_and_gradients((1,))
    values, both = terms_and_gradients((0, 1))
    torch.testing.assert_close(0.5 * (values_0 + values_1), 0.5 * values, rtol=1e-5, atol=1e-6)
    for name, gradient in both.items():
        mean = 0.5 * (gradients_0[name] + gradients_1[name])
        torch.testing.assert_close(mean, 0.5 * gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert (values[1] > 1) == (module.hparams.network["bayesian"] not in PLAIN)
    for pair, own in enumerate((gradients_0, gradients_1)):  # nothing of the other pair learns
        assert not any(g.any() for n, g in own.items() if n.startswith((f"actors.{1 - pair}.", f"critics.{1 - pair}.")))


@pytest.mark.parametrize(
    "options",
    [PROCESS, {}, MEMBERS, {"objective": {"target": "other"}}, {"objective": {"update_pairs": "random"}}],
    ids=title,
)
def test_updates_and_actions_have_the_same_bits_with_a_second_thread(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (4, 84, 84)
    screens = torch.randint(256, (3, 4, *shape), dtype=torch.uint8)
    results = []
    for cores in (1, 2):
        monkeypatch.setattr(SIDE_THREAD, "_cores", cores)
        torch.manual_seed(0)
        target = {"objective": {"target": "ema"}}
        module = make_module({"network": {"encoder": "nature"}}, target, options, observation_shape=shape)
        batch = make_batch(4, observation=screens[0], next_observation=screens[1])
        monkeypatch.setattr(SampleData, "sample_own_transitions", None)  # its states are vectors
        fit(module, [batch] * 3)
        results.append((module.state_dict(), module.behaviour.values_by_draw(screens[2], [1, 2, 3, 4], 0)))
    (one, values), (other, other_values) = results
    assert equal(one, other)
    assert torch.equal(values, other_values)
