"""The playing half of the agent: greedy actions, posterior draws, value estimates, and the scores of whole games."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl.agent.behaviour import VALUE_DRAWS, Behaviour, critic_of_draw
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.bayes.draws import draws_by_seed
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.bayes.layers import BayesConv2d, linear
from bayes_rl.evaluation.games import Game, GameLoader, Games
from bayes_rl.evaluation.novel_states import KINDS
from bayes_rl.metrics.calibration import LEVELS, ReturnFit, fit_returns
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.types import Batch, Transition
from bayes_rl.utils.seeds import Domain, derived_seed
from tests.helpers import agents
from tests.helpers.agents import ACTIONS, FEATURES, PROCESS, make_constant
from tests.helpers.options import merged
from tests.helpers.replay_oracle import Rules
from tests.helpers.scripted_envs import IDLE_FRAMES, SCRIPTED, ScriptedGames, episode_of, returns_of

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

DOCUMENTED = Path(__file__).parents[2] / "docs/reference/metrics.md"
GAMMA = 0.9


def make_module(*options: Mapping[str, Any], **more: Any) -> VariationalActorCritic:
    """Make a small agent of a wide posterior, so that draws differ."""
    return agents.make_module({"posterior": {"init_log_var": -2.0}}, *options, **more)


# ------------------------------------------------------------------ by the mean weights
LOGITS = torch.tensor([[1.0, 0.0, -1.0], [-2.0, 0.5, 0.5]])
Q_VALUES = torch.tensor([[1.0, -2.0, 5.0], [-3.0, 0.5, 2.0]])


@pytest.mark.parametrize(
    ("probs", "action"),
    [
        # Either actor alone prefers 0 or 2; their mean prefers 1.
        ([[0.50, 0.45, 0.05], [0.01, 0.44, 0.55]], 1),
        # The mean of logits (a product of policies) would prefer 2.
        ([[0.90, 0.05, 0.05], [1e-6, 0.30, 0.70]], 0),
    ],
)
def test_greedy_action_is_the_argmax_of_the_mean_of_both_policies(probs: list[list[float]], action: int) -> None:
    module = make_module()
    make_constant(module.twin, torch.tensor(probs).log(), Q_VALUES)
    actions = module.act(torch.randn(5, FEATURES))
    assert actions.tolist() == [action] * 5
    assert actions.dtype == torch.int64
    assert actions.device.type == "cpu"


def test_greedy_action_of_members_is_the_argmax_of_the_mean_of_all_policies() -> None:
    """Two members of each actor; the mean of their weights, or of logits, would prefer 1."""
    probs = torch.tensor([[[0.90, 0.05, 0.05], [1e-6, 0.60, 0.40]], [[0.90, 0.06, 0.04], [1e-6, 0.40, 0.60]]])
    module = make_module(posterior={"family": "members", "size": 2})
    make_constant(module.twin, probs.log(), Q_VALUES[:, None])
    assert probs.log().mean((0, 1)).argmax() == 1
    assert module.act(torch.randn(5, FEATURES)).tolist() == [0] * 5


FAMILIES: dict[str, dict[str, Any]] = {
    "mean_field": {},
    "none": {"network": {"bayesian": "none"}},
    "ivon": {"network": {"bayesian": "none"}, "optimizer": {"family": "ivon"}},
    "process": PROCESS,
    "members": {"posterior": {"family": "members", "size": 3}, "network": {"prior_function_scale": 1.0}},
    "low_rank": {"posterior": {"family": "low_rank", "size": 2}, "network": {"prior_function_scale": 1.0}},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_acting_draws_no_random_numbers_and_leaves_no_graph(training: bool, family: str) -> None:
    torch.manual_seed(9)
    wide = {"posterior": {"init_log_var": 2.0}}  # draws would change actions
    module = make_module(FAMILIES[family], wide).train(training)
    observations = torch.randn(64, FEATURES)
    state = torch.get_rng_state()
    first, estimate = module.act(observations), module.estimate_values(observations)
    by_draw = module.act_by_draw(observations, list(range(64)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(module.act(observations), first)
    assert torch.equal(module.act_by_draw(observations, list(range(64))), by_draw)
    assert torch.equal(module.estimate_values(observations).q_std, estimate.q_std)
    assert torch.equal(torch.cat([module.act(o[None]) for o in observations]), first)
    assert module.training == training
    assert not any(part.requires_grad for part in estimate)
    assert len(first.unique()) > 1


# ------------------------------------------------------------------ by posterior draws
class AnyLinear(nn.Linear):
    """Linear layer whose input can be an integer that stands for its one-hot vector."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class DrawnNetwork:
    """Q-values by one draw of the weights: an ordinary network that has these weights."""

    def __init__(self, module: VariationalActorCritic, index: Tensor, noise: dict[str, Tensor]) -> None:
        self.twin = copy.deepcopy(module.twin)
        self.prior, self.index, self.actions = self.twin.prior, index, module.hparams.num_actions
        for name, layer in bayesian_layers(module.twin).items():
            weight, bias = layer.weight_mu, layer.bias
            if layer.settings.family == "members":
                weight, bias = weight[index.argmax()], bias[index.argmax()]
            if layer.settings.family == "low_rank":
                weight = weight + sum(z * column for z, column in zip(index, layer.weight_factor, strict=True))
            if name in noise:
                weight = weight + (0.5 * layer.weight_log_var).exp() * noise[name]
            out, into, *kernel = weight.shape
            conv = isinstance(layer, BayesConv2d)
            plain = nn.Conv2d(into, out, kernel[0], layer.stride, layer.padding) if conv else AnyLinear(into, out)
            plain.load_state_dict({"weight": weight, "bias": bias})
            self.twin.set_submodule(name, plain)
        settings = self.twin.settings
        self.twin.prior = None
        network = replace(settings.network, prior_function_scale=0.0)
        layers = replace(settings.layers, bayesian="none")
        self.twin.settings = replace(settings, network=network, layers=layers)

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """`[2, B, A]` each: Q-values of both critics, and standard deviations of a return."""
        output = self.twin(observations)
        q_values = output.q_values
        if self.prior is not None:
            parts = self.prior.values(self.prior.encoder(self.twin.prepare(observations)))
            q_values = q_values + torch.einsum("bja,j->ba", parts.unflatten(-1, (-1, self.actions)), self.index)
        return q_values, self.twin.likelihood.std(output.raw)


def drawn_by_seed(module: VariationalActorCritic, seed: int, index: Tensor | None = None) -> DrawnNetwork:
    shapes = {name: tuple(layer.weight_log_var.shape) for name, layer in bayesian_layers(module.twin).items()}
    draws = draws_by_seed(module.twin.posterior, shapes, [seed])
    noise = {name: values[0] for name, values in (draws.noise or {}).items()}
    return DrawnNetwork(module, draws.index[0] if index is None else index, noise)


def valuing_networks(module: VariationalActorCritic) -> list[DrawnNetwork]:
    """Return the networks of a value estimate: all members equally often, 16 draws, or the network itself."""
    layers = module.twin.settings.layers
    if layers.bayesian == "none":
        return [DrawnNetwork(module, torch.zeros(0), {})]
    seeds = [derived_seed(Domain.VALUE_DRAW, number) for number in range(18)]
    if layers.settings.family == "members":
        members = list(torch.eye(layers.settings.size)) * 6
        return [drawn_by_seed(module, seed, index) for seed, index in zip(seeds, members, strict=True)]
    return [drawn_by_seed(module, seed) for seed in seeds[:VALUE_DRAWS]]


def correction_of(module: VariationalActorCritic) -> int:
    """Return 0 where the draws of an estimate are all that there are, 1 where they are a sample."""
    layers = module.twin.settings.layers
    return 0 if layers.bayesian == "none" or layers.settings.family == "members" else 1


MINATAR = {"network": {"encoder": "minatar", "hidden_dim": 5}, "observation_shape": (2, 8, 8), "pixel_scale": 1.0}
CATEGORIES = {"observation_shape": (1,), "num_categories": 9}
DRAWN: dict[str, dict[str, Any]] = {
    "mean_field": {},
    "mean_field, all, own trunks": {"network": {"bayesian": "all", "shared_trunk": False}},
    "members": FAMILIES["members"],
    "members, trunk": merged(FAMILIES["members"], {"network": {"bayesian": "trunk"}}),
    "low_rank": FAMILIES["low_rank"],
    "low_rank, images": merged(FAMILIES["low_rank"], MINATAR, {"network": {"bayesian": "all"}}),
    "members, images": {**FAMILIES["members"], **MINATAR},
    "members, numbers": {**FAMILIES["members"], **CATEGORIES},
    "low_rank, numbers, histogram": merged(
        FAMILIES["low_rank"], CATEGORIES, {"network": {"bayesian": "all"}, "likelihood": {"family": "hl_gauss"}}
    ),
}


def observations_of(module: VariationalActorCritic, count: int) -> Tensor:
    shape = tuple(module.hparams.observation_shape)
    if module.hparams.num_categories:
        return torch.randint(9, (count, *shape), dtype=torch.int32)
    return torch.randint(2, (count, *shape), dtype=torch.uint8) if len(shape) == 3 else torch.randn(count, *shape)


@pytest.mark.parametrize("settings", DRAWN.values(), ids=DRAWN)
def test_actions_by_draw_equal_a_loop_over_networks_with_drawn_weights(settings: dict[str, Any]) -> None:
    """Greedy for one critic by each environment's own draw."""
    module = make_module(settings)
    seeds = [5, 5, 9, 2**31 - 1, 0, *range(100, 125)]
    observations = observations_of(module, len(seeds))
    expected = [
        drawn_by_seed(module, seed)(observation[None])[0][critic_of_draw(seed)][0].argmax().item()
        for seed, observation in zip(seeds, observations, strict=True)
    ]
    actions = module.act_by_draw(observations, seeds)
    assert actions.tolist() == expected
    assert (actions.dtype, actions.device.type) == (torch.int64, "cpu")
    others = [module.act_by_draw(observations, [seed + k for seed in seeds]).tolist() for k in range(1, 4)]
    assert any(other != expected for other in others)


@pytest.mark.parametrize("family", ["mean_field", "members", "low_rank"])
def test_a_draw_stays_until_its_seed_changes_and_no_other_is_touched(family: str) -> None:
    """One environment's new episode changes its own actions; weights that were learned change all at once."""
    module, seeds = make_module(FAMILIES[family], network={"bayesian": "all"}), [1, 2, 3, 4]
    states = torch.randn(60, FEATURES)

    def table(seeds: list[int]) -> Tensor:
        """Actions of every environment in every state, `[60, E]`."""
        return torch.stack([module.act_by_draw(state.expand(len(seeds), -1), seeds) for state in states])

    def fresh(seeds: list[int]) -> Tensor:
        """The same by a player that never drew before."""
        module.behaviour = Behaviour(module.twin)
        return table(seeds)

    first = table(seeds)
    assert torch.equal(table(seeds), first)
    changed = [1, 2, 30, 4]
    second = table(changed)
    assert torch.equal(second[:, [0, 1, 3]], first[:, [0, 1, 3]])
    assert not torch.equal(second[:, 2], first[:, 2])
    assert torch.equal(second, fresh(changed))
    assert torch.equal(table(seeds), first)  # and back again
    assert torch.equal(table([4, 3, 2, 1]), first.flip(1))
    assert torch.equal(table([1, 2]), first[:, :2])
    with torch.no_grad():
        for critic in module.twin.critics:
            critic.bias[..., 0] += 100.0
    assert (table(seeds) == 0).all()


@pytest.mark.parametrize("settings", [s for name, s in DRAWN.items() if "images" not in name])
def test_the_variance_of_a_draw_s_values_is_the_variance_that_is_reported(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both by 3000 draws, within 5 standard errors of their difference. The critics disagree about one action."""
    draws = 3000
    monkeypatch.setattr("bayes_rl.agent.behaviour.VALUE_DRAWS", draws)
    module = make_module(settings)
    with torch.no_grad():
        module.twin.critics[1].bias[..., 0] += 1.0
    states = observations_of(module, 2)
    by_draw = [module.behaviour.values_by_draw(s.expand(draws, *s.shape), list(range(draws)), 0) for s in states]
    thompson = torch.stack(by_draw, 1)  # `[draws, states, A]`
    estimate = module.estimate_values(states)
    deviation = (thompson - thompson.mean(0)).square()
    variance, error = deviation.mean(0), deviation.std(0) / draws**0.5
    assert (variance > 0.02).all()
    # The draws behind the report are a sample of their own, with as large an error.
    assert ((variance - estimate.q_std.square()).abs() < 5 * 2**0.5 * error).all()
    assert ((thompson.mean(0) - estimate.q_mean).abs() < 5 * (2 * variance / draws).sqrt()).all()


def test_a_draw_of_a_process_deviates_from_one_critic_and_the_report_is_its_variance() -> None:
    """By 3000 draws; the report itself needs none."""
    draws = 3000
    module = make_module(PROCESS)
    states = torch.randn(2, FEATURES)
    seeds = list(range(draws))
    thompson = torch.stack([module.behaviour.values_by_draw(s.expand(draws, FEATURES), seeds, 0) for s in states], 1)
    critics = module.twin(states).q_values
    estimate = module.estimate_values(states)
    torch.testing.assert_close(estimate.q_mean, critics.mean(0))
    deviation = (thompson - thompson.mean(0)).square()
    variance, error = deviation.mean(0), deviation.std(0) / draws**0.5
    assert (variance > 0.02).all()
    assert ((variance - estimate.q_std.square()).abs() < 5 * error).all()
    drawn = draws_by_seed(module.twin.posterior, module.twin.draw_shapes(), seeds[:20])
    deviations, variance = module.twin.process(states[None], drawn)
    unit = module.twin.process.unit(module.twin.likelihood.std(module.twin(states).raw).mean(0), variance)
    expected = unit * deviations + critics[[critic_of_draw(seed) for seed in seeds[:20]]]
    torch.testing.assert_close(thompson[:20], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_without_a_posterior_the_reported_spread_is_that_of_two_critics(shared_trunk: bool) -> None:
    """Values a and b with equal probability have the standard deviation |a - b| / 2, as draws of a critic have."""
    module = make_module(FAMILIES["none"], {"network": {"shared_trunk": shared_trunk}})
    states = observations_of(module, 5)
    q_values = module.twin(states).q_values
    half_gap = (q_values[0] - q_values[1]).abs() / 2
    estimate = module.estimate_values(states, measure=True)
    torch.testing.assert_close(estimate.q_std, half_gap)
    greedy = q_values.mean(0).argmax(-1, keepdim=True)
    reported = module.scores[0].uncertainty.compute()["epistemic_std"]
    torch.testing.assert_close(reported, half_gap.gather(-1, greedy).mean())
    seeds = [next(s for s in range(100) if critic_of_draw(s) == critic) for critic in range(2)]
    acted = torch.stack([module.behaviour.values_by_draw(states, [seed] * 5, 0) for seed in seeds])
    torch.testing.assert_close(acted.std(0, correction=0), estimate.q_std)


def test_both_critics_get_their_turn_and_an_episode_keeps_its_own() -> None:
    chosen = torch.tensor([critic_of_draw(seed) for seed in range(4000)])
    assert abs(chosen.float().mean() - 0.5) < 4 * 0.5 / 4000**0.5
    module, states = make_module({"posterior": {"init_log_var": -11.0}}), torch.randn(20, FEATURES)
    make_constant(module.twin, LOGITS, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    for seed in (3, 4, 5, 6):
        assert set(module.act_by_draw(states, [seed] * 20).tolist()) == {2 * critic_of_draw(seed)}


def drawn_everywhere(module: VariationalActorCritic, seed: int) -> TwinActorCritic:
    """The plain network whose weights are all drawn from the optimizer's Gaussian."""
    twin, weights = copy.deepcopy(module.twin), module.weight_posterior
    assert weights is not None
    shapes = {name: tuple(p.shape) for name, p in twin.named_parameters()}
    noise = draws_by_seed(twin.posterior, shapes, [seed]).noise or {}
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p += noise[name][0] / weights.precision(name).sqrt()
    return twin


@pytest.mark.parametrize("settings", [{}, {"network": {"shared_trunk": False}}, MINATAR], ids=["mlp", "own", "images"])
@torch.no_grad()
def test_draws_of_every_weight_are_those_of_plain_networks(settings: dict[str, Any]) -> None:
    """Values that act, each by the draw and the critic of its episode, and the mean and spread over 16 named draws."""
    module = make_module(FAMILIES["ivon"], settings)
    assert module.weight_posterior is not None
    for precision in module.weight_posterior.buffers():
        precision.mul_(torch.rand(precision.shape) + 0.5)
    seeds, states = [5, 5, 9, 2**31 - 1, 0, 7], observations_of(module, 6)
    expected = [
        drawn_everywhere(module, seed)(state[None]).q_values[critic_of_draw(seed), 0]
        for seed, state in zip(seeds, states, strict=True)
    ]
    by_draw = module.behaviour.values_by_draw(states, seeds, 0)
    torch.testing.assert_close(by_draw, torch.stack(expected), rtol=1e-5, atol=1e-6)
    named = [derived_seed(Domain.VALUE_DRAW, number) for number in range(VALUE_DRAWS)]
    q_values = torch.cat([drawn_everywhere(module, seed)(states).q_values for seed in named])
    estimate = module.estimate_values(states)
    torch.testing.assert_close(estimate.q_mean, q_values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(estimate.q_std, q_values.std(0), rtol=1e-4, atol=1e-6)
    assert (estimate.q_std > 0.01).all()


# ------------------------------------------------------------------ value estimates
@pytest.mark.parametrize("settings", [*DRAWN.values(), FAMILIES["none"]], ids=[*DRAWN, "none"])
def test_value_estimates_equal_those_of_explicit_draws(settings: dict[str, Any]) -> None:
    module = make_module(settings)
    observations = observations_of(module, 6)
    answers = [network(observations) for network in valuing_networks(module)]
    q, noise = (torch.cat(part) for part in zip(*answers, strict=True))
    estimate = module.estimate_values(observations)
    assert all(part.device.type == "cpu" and part.dtype == torch.float32 for part in estimate)
    torch.testing.assert_close(estimate.q_mean, q.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(estimate.q_std, q.std(0, correction=correction_of(module)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(estimate.noise_std, noise.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(estimate.value, q.mean(0).max(-1).values, rtol=1e-4, atol=1e-5)
    for row in range(6):  # whatever the others
        for part, alone in zip(estimate, module.estimate_values(observations[row][None]), strict=True):
            torch.testing.assert_close(part[row], alone[0], rtol=1e-4, atol=1e-5)


def test_value_estimates_follow_the_weights() -> None:
    module, state = make_module(), torch.randn(1, FEATURES)
    before = module.estimate_values(state)
    with torch.no_grad():
        for critic in module.twin.critics:
            critic.bias += 7.0
    torch.testing.assert_close(module.estimate_values(state).q_mean, before.q_mean + 7.0)


# ------------------------------------------------------------------ whole games
class Updates:
    """Two batches, again and again."""

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(2):
            observation, action = torch.randn(6, FEATURES), torch.randint(ACTIONS, (6,))
            yield Batch(Transition(observation, action, torch.randn(6), torch.full((6,), 0.9), observation), 100, 4)

    def __len__(self) -> int:
        return 2


@dataclass(eq=False)
class Data(pl.LightningDataModule):
    """Scripted games: those of seeds 1 to 6 to validate on, others to test and to show."""

    return_bounds = (-math.inf, math.inf)
    life_loss: str = "none"
    reward_clip: float | None = None
    gamma: float = GAMMA
    every: int = 4

    def __post_init__(self) -> None:
        super().__init__()

    def games(self, seeds: range, every: int) -> GameLoader:
        options = (self.life_loss, self.reward_clip, every)
        return GameLoader([Games(SCRIPTED, list(seeds), 2, IDLE_FRAMES, *options, parallel=4)])

    def train_dataloader(self) -> Updates:
        return Updates()

    def val_dataloader(self) -> GameLoader:
        return self.games(range(1, 7), self.every)

    def test_dataloader(self) -> GameLoader:
        return self.games(range(7, 12), self.every)

    def predict_dataloader(self) -> GameLoader:
        return self.games(range(12, 15), 1)


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_rl.evaluation.games.make_envs", ScriptedGames)


def make_trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """Make a trainer that plays all games of a validation."""
    return agents.make_trainer(*callbacks, **{"num_sanity_val_steps": 0, "limit_val_batches": 1.0, **settings})


@dataclass
class Residuals:
    """What was expected and what came, at every state of some games that has a value estimate."""

    mean: Tensor
    epistemic: Tensor
    noise: Tensor
    realised: Tensor
    game: Tensor
    q_draws: Tensor  # of all states that were asked about, `[D, M, A]`
    correction: int
    bias: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, module: VariationalActorCritic, data: Data, seeds: range) -> Residuals:
        """Play the games alone, one after the other, and ask explicit draws."""
        rules = Rules(10**6, data.gamma, data.life_loss, data.reward_clip, frame_stack=2)
        networks, rows, states = valuing_networks(module), [], []

        def ask(observations: Tensor) -> tuple[Tensor, Tensor]:
            answers = [network(observations) for network in networks]
            q, noise = (torch.cat(part) for part in zip(*answers, strict=True))
            return q, noise.mean(0)

        for number, seed in enumerate(seeds):
            script = episode_of(seed, [0] * 100)[0]
            screens = [torch.from_numpy(s) for s in script.screens]
            stacks = [torch.cat(two) for two in zip([0 * screens[0], *screens[:-1]], screens, strict=True)]
            actions = [int(module.act(stack[None])) for stack in stacks[:-1]]
            episode, _ = episode_of(seed, actions)
            came = returns_of(episode, rules, lambda o: ask(o)[0].mean(0).max(-1).values)
            due = list(range(0, len(actions), data.every))
            for t in due:
                q, noise = ask(stacks[t][None])
                q, noise = q[:, 0, actions[t]], noise[0, actions[t]]
                rows.append([q.mean(), q.std(correction=correction_of(module)), noise, came[t], number])
            states += [stacks[t] for t in due] + ([] if episode.terminated else [stacks[-1]])
        columns = torch.tensor(rows, dtype=torch.float64).T
        return cls(*columns, ask(torch.stack(states))[0].double(), correction_of(module))

    def fitted_by(self, fit: Tensor) -> Residuals:
        bias, noise, scale = fit.tolist()
        return replace(self, noise=torch.full_like(self.noise, noise), bias=bias, scale=scale)

    def fitted(self) -> list[float]:
        return list(fit_returns(self.mean, self.epistemic, self.realised, self.game))

    def metrics(self) -> dict[str, float]:
        """Everything that is logged of them, by the definitions in `docs/reference/metrics.md`."""
        counts = [int((self.game == g).sum()) for g in self.game]
        weight = torch.tensor([1 / n for n in counts]) / len(self.game.unique())
        std = self.scale * (self.epistemic**2 + self.noise**2).sqrt()
        error = self.mean - self.realised

        def coverage(level: float) -> float:
            z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2))
            return float(weight @ ((error - self.bias).abs() <= z * std).float())

        def centred(values: Tensor) -> Tensor:
            return values - (weight * values).sum()

        m, y = centred(self.mean), centred(self.realised)
        mean_q = self.q_draws.mean(0)
        best, second = mean_q.topk(2).values.T
        star = mean_q.argmax(-1)
        at_star = torch.stack([q[torch.arange(len(star)), star] for q in self.q_draws])
        return {
            "coverage_50": coverage(0.5),
            "coverage_90": coverage(0.9),
            "calibration_error": sum(abs(coverage(level) - level) for level in LEVELS) / 19,
            "return_rmse": float((weight * error**2).sum() ** 0.5),
            "return_bias": float((weight * error).sum()),
            "return_correlation": float(
                (weight * m * y).sum() / ((weight * m * m).sum() * (weight * y * y).sum()) ** 0.5
            ),
            "epistemic_std_mean": float((weight * self.epistemic).sum()),
            "interval_width_90": float((weight * 2 * 1.6448536 * std).sum()),
            "epistemic_std": float(at_star.std(0, correction=self.correction).mean()),
            "greedy_disagreement": float((self.q_draws.argmax(-1) != star).double().mean()),
            "q_gap": float((best - second).mean()),
        }


def assert_logged(logged: Any, stage: str, expected: dict[str, float]) -> None:
    for key, value in expected.items():
        assert float(logged[f"{stage}/{key}"]) == pytest.approx(value, rel=1e-4, abs=1e-5), key


def named(fit: list[float]) -> dict[str, float]:
    return {f"fitted_{key}": value for key, value in zip(ReturnFit._fields, fit, strict=True)}


class EachValidation(pl.Callback):
    """Compares what a validation logs with the oracle, under the fit that was known when it began."""

    def __init__(self) -> None:
        self.fits: list[list[float]] = []

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.before = module.scores[0].return_fit.clone()

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        residuals = Residuals.of(module, trainer.datamodule, range(1, 7))
        known = residuals if self.before.isnan().any() else residuals.fitted_by(self.before)
        assert_logged(trainer.callback_metrics, "val", known.metrics() | named(residuals.fitted()))
        assert module.scores[0].return_fit.tolist() == pytest.approx(residuals.fitted(), rel=1e-4, abs=1e-5)
        self.fits.append(module.scores[0].return_fit.tolist())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param("mean_field", ("none", None), marks=pytest.mark.slow),
        ("none", ("penalty", 1.0)),
        pytest.param("members", ("discount", 1.0), marks=pytest.mark.slow),
        pytest.param("low_rank", (), marks=pytest.mark.slow),
    ],
)
def test_validations_and_test_say_what_the_definitions_say(
    family: str, options: tuple[Any, ...], tmp_path: Path
) -> None:
    """The first states its intervals by the likelihood, each later one by the fit of the one before; the fit is
    in the checkpoint, and the intervals of the test games use it and leave it as it is.
    """
    likelihood = {"likelihood": {"family": "hl_gauss"}} if family == "members" else {"likelihood": {"noise_std": 0.6}}
    module = make_module(FAMILIES[family], likelihood, optimizer={"critic_lr": 0.1, "actor_lr": 0.1})
    data, watch = Data(*options), EachValidation()
    trainer = make_trainer(watch, max_epochs=3)
    trainer.fit(module, datamodule=data)
    assert len({tuple(fit) for fit in watch.fits}) == 3
    assert all(scale > 0 for _, _, scale in watch.fits)
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    loaded = VariationalActorCritic.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    assert loaded.scores[0].return_fit.tolist() == watch.fits[-1]
    trainer = make_trainer()
    trainer.test(loaded, datamodule=data, verbose=False)
    expected = Residuals.of(loaded, data, range(7, 12)).fitted_by(loaded.scores[0].return_fit).metrics()
    assert_logged(trainer.callback_metrics, "test", expected | named(watch.fits[-1]))
    assert loaded.scores[0].return_fit.tolist() == watch.fits[-1]


@pytest.mark.slow
def test_bias_noise_and_scale_are_fitted_in_training_only() -> None:
    """Neither by a validation alone, nor by the sanity check before the first update."""
    module, data = make_module(), Data()
    trainer = make_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    assert module.scores[0].return_fit.isnan().all()
    assert trainer.callback_metrics["val/fitted_noise_std"].isnan()
    residuals = Residuals.of(module, data, range(1, 7))
    assert_logged(trainer.callback_metrics, "val", residuals.metrics())

    class BeforeTraining(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
            seen.append(module.scores[0].return_fit.isnan().all().item())

    seen: list[bool] = []
    make_trainer(BeforeTraining(), num_sanity_val_steps=1).fit(module, datamodule=data)
    assert seen == [True]
    assert module.scores[0].return_fit[2] > 0
    module.scores[0].return_fit[2] *= 1.01  # the fitted interval ends exactly at one of these games' returns
    fitted = module.scores[0].return_fit.clone()
    trainer = make_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    assert torch.equal(module.scores[0].return_fit, fitted)
    residuals = Residuals.of(module, data, range(1, 7)).fitted_by(fitted)
    assert_logged(trainer.callback_metrics, "val", residuals.metrics())


def test_games_to_be_shown_have_a_value_estimate_at_every_step_and_measure_nothing() -> None:
    """Nor do value estimates outside of a validation, before or after one."""
    module, data = make_module(), Data()
    observations = torch.randn(50, FEATURES)
    module.estimate_values(observations)
    trainer = make_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    first = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    module.estimate_values(observations)
    (games,) = make_trainer().predict(module, datamodule=data)
    assert [game.seed for game in games] == [12, 13, 14]
    for game in games:
        assert isinstance(game, Game)
        assert len(game.estimates) == len(game.actions)
        assert all(estimate.q_mean.shape == (ACTIONS,) for estimate in game.estimates)
    trainer.validate(module, datamodule=data, verbose=False)
    assert {tag: float(value) for tag, value in trainer.callback_metrics.items()} == pytest.approx(first, nan_ok=True)


def test_the_same_tags_are_logged_whatever_the_agent_and_all_are_documented() -> None:
    text = DOCUMENTED.read_text()
    documented = {stage: set(re.findall(rf"`{stage}/(\w+)`", text)) for stage in ("val", "test")}
    assert documented["val"] == documented["test"]
    # The scripted games name no novel states: a data module does.
    of_data_module = {tag for tag in documented["val"] if tag.startswith("novelty_auroc_")}
    assert len(of_data_module) == len(KINDS)
    for settings in (*FAMILIES.values(), {"game": "tennis"}, {"likelihood": {"family": "two_hot"}}):
        logged = []

        class Each(pl.Callback):
            def on_validation_end(self, trainer: pl.Trainer, module: Any, logged: Any = logged) -> None:
                logged.append({t.removeprefix("val/") for t in trainer.callback_metrics if t.startswith("val/")})

        module, data = make_module(settings), Data()
        make_trainer(Each(), max_epochs=2).fit(module, datamodule=data)
        trainer = make_trainer()
        trainer.test(module, datamodule=data, verbose=False)
        logged.append({t.removeprefix("test/") for t in trainer.callback_metrics if t.startswith("test/")})
        atari_only = set() if "game" in settings else {"human_normalised", "points_won", "points_lost"}
        assert logged == [documented["val"] - atari_only - of_data_module] * 3
