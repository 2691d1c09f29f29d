"""The twin: outputs of both pairs in every mode, gradient routing, number formats and the divergence."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as distribution_kl

from bayes_rl import losses
from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.kl import bayesian_layers, kl_divergence
from bayes_rl.bayes.layers import BayesLayer
from bayes_rl.bayes.likelihoods import LikelihoodSettings, make_likelihood
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput, TwinSettings
from bayes_rl.networks.encoders import ENCODERS
from bayes_rl.networks.layer_factory import BAYESIAN, LayerFactory
from bayes_rl.networks.settings import NetworkSettings
from tests.helpers.networks import (
    ACTIONS,
    BATCH,
    BINS,
    DRAWS,
    HIGH,
    LOW,
    SHAPES,
    every_mode,
    make,
    make_draws,
    make_twin,
    move,
    observations,
)


def plain_twin(twin: TwinActorCritic, index: Tensor, noise: dict[str, Tensor]) -> TwinActorCritic:
    """The oracle: plain layers whose weights are one draw `[d]`, `[*weight shape]`, written out."""
    layers = replace(twin.settings.layers, bayesian="none")
    network = replace(twin.settings.network, prior_function_scale=0.0)
    plain = TwinActorCritic(replace(twin.settings, network=network, layers=layers), twin.likelihood)
    state = {key: value for key, value in twin.state_dict().items() if key in plain.state_dict()}
    for key, layer in bayesian_layers(twin).items():
        weight: Tensor = layer.weight_mu
        bias: Tensor = layer.bias
        if layer.settings.family == "members":
            weight, bias = weight[int(index.nonzero())], bias[int(index.nonzero())]
        if layer.settings.family == "low_rank":
            weight = weight + sum(z * column for z, column in zip(index, layer.weight_factor, strict=True))
        if key in noise:
            weight = weight + layer.weight_log_var.exp().sqrt() * noise[key]
        state[f"{key}.weight"], state[f"{key}.bias"] = weight, bias
    plain.load_state_dict(state)
    return plain


PARTS = [part for part in BAYESIAN if part != "gaussian_process"]  # which has tests of its own


def gradients(module: nn.Module) -> list[Tensor]:
    """Gradients that are neither absent nor zero."""
    return [p.grad for p in module.parameters() if p.grad is not None and bool(p.grad.any())]


# ------------------------------------------------------------------ what is said, in every mode
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("bayesian", PARTS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_shapes_in_every_mode(name: str, bayesian: str, posterior: str) -> None:
    twin = make_twin(name, bayesian=bayesian, posterior=posterior, likelihood="hl_gauss")
    for observation, weights in every_mode(twin, name):
        with torch.no_grad():
            output = twin(observation, weights)
        draws = (weights.size,) if isinstance(weights, Draws) else ()
        assert output.action_logits.shape == output.q_values.shape == (2, *draws, BATCH, ACTIONS)
        assert output.raw.shape == (2, *draws, BATCH, ACTIONS, BINS)
        assert output.prior_values is None
        assert {output.action_logits.dtype, output.raw.dtype, output.q_values.dtype} == {torch.float32}
        assert ((output.q_values > LOW) & (output.q_values < HIGH)).all()
        torch.testing.assert_close(output.mean_action_probs().sum(-1), torch.ones(BATCH))
        assert output.mean_q_values().shape == (BATCH, ACTIONS)


@pytest.mark.parametrize("likelihood", ["gaussian", "learned_gaussian", "hl_gauss", "two_hot"])
@pytest.mark.parametrize("bayesian", ["heads", "none"])
def test_the_likelihood_says_how_many_numbers_stand_for_a_return(likelihood: str, bayesian: str) -> None:
    twin = make_twin(likelihood=likelihood, bayesian=bayesian)
    output = twin(100 * observations("mlp"), "sample")
    numbers = BINS if likelihood in ("hl_gauss", "two_hot") else 1
    assert output.raw.shape == (2, BATCH, ACTIONS, numbers)
    torch.testing.assert_close(output.q_values, twin.likelihood.value(output.raw))
    if numbers > 1:
        assert LOW <= output.q_values.min() < output.q_values.max() <= HIGH


@pytest.mark.parametrize(
    ("name", "shared_trunk"), [*((name, True) for name in ENCODERS), ("minatar", False), ("mlp", False)]
)
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("rows", [1, DRAWS])
def test_draws_in_one_batch_equal_a_loop_over_plain_networks(
    name: str, shared_trunk: bool, posterior: str, rows: int
) -> None:
    twin = make_twin(name, shared_trunk, "all", posterior)
    draws, x = make_draws(twin), observations(name, rows, 2)
    assert draws.noise is not None
    with torch.no_grad():
        output = twin(x, draws)
        for d in range(DRAWS):
            slow = plain_twin(twin, draws.index[d], {key: noise[d] for key, noise in draws.noise.items()})(x[d % rows])
            # float32: layers of up to 2304 products, summed in another order.
            torch.testing.assert_close(output.action_logits[:, d], slow.action_logits, rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(output.q_values[:, d], slow.q_values, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("bayesian", ["heads", "trunk"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_draws_without_noise_have_the_means_of_their_index(bayesian: str, posterior: str) -> None:
    twin = make_twin(bayesian=bayesian, posterior=posterior, likelihood="two_hot")
    index, x = twin.posterior.fresh_draws(2, torch.device("cpu")).index, observations("mlp")
    output = twin(x[None], Draws(index, {}))
    for d in range(2):
        torch.testing.assert_close(output.raw[:, d], plain_twin(twin, index[d], {})(x).raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bayesian", ["heads", "all"])
@pytest.mark.parametrize("likelihood", ["gaussian", "hl_gauss"])
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_the_mean_of_members_is_that_of_what_they_say(bayesian: str, likelihood: str, shared_trunk: bool) -> None:
    twin = make_twin("mlp", shared_trunk, bayesian, "members", likelihood)
    x = observations("mlp")
    with torch.no_grad():
        output = twin(x)
        members = [plain_twin(twin, index, {})(x) for index in torch.eye(2)]
        average = plain_twin(twin, torch.eye(2)[0], {})  # of their weights
        for key, layer in bayesian_layers(twin).items():
            average.get_parameter(f"{key}.weight").copy_(layer.weight_mu.mean(0))
            average.get_parameter(f"{key}.bias").copy_(layer.bias.mean(0))
    probs = sum(member.action_logits.softmax(-1) for member in members) / 2
    torch.testing.assert_close(output.action_logits.softmax(-1), probs)
    torch.testing.assert_close(output.q_values, sum(member.q_values for member in members) / 2, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(probs, average(x).action_logits.softmax(-1), atol=1e-3)
    if likelihood == "hl_gauss" or bayesian == "all":
        assert not torch.allclose(output.q_values, average(x).q_values, atol=1e-3)


@pytest.mark.parametrize("name", ["nature", "minatar", "mlp"])
def test_a_plain_trunk_is_evaluated_once_for_all_draws(name: str) -> None:
    twin, rows = make_twin(name, posterior="low_rank", prior_function_scale=1.0), []
    assert twin.prior is not None
    for encoder in (twin.trunks[0], twin.prior.encoder):
        encoder.get_submodule("project").register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    twin(observations(name)[None], make_draws(twin, 20))
    assert rows == [BATCH, BATCH]


@pytest.mark.parametrize(
    ("name", "shared_trunk"),
    [
        pytest.param(name, shared, marks=pytest.mark.slow if name == "pseudo_resnet" and not shared else ())
        for name in ENCODERS
        for shared in (True, False)
    ],
)
def test_layers_have_unique_keys_that_a_copy_shares(name: str, shared_trunk: bool) -> None:
    """A target network takes the same draws, whatever has become of its weights."""
    twin = make_twin(name, shared_trunk, "all", "low_rank")
    target = copy.deepcopy(twin)
    layers, copies = bayesian_layers(twin), bayesian_layers(target)
    assert [layer.key for layer in layers.values()] == [*layers] == [layer.key for layer in copies.values()]
    assert twin.draw_shapes() == target.draw_shapes() == {k: tuple(m.weight_log_var.shape) for k, m in layers.items()}
    draws, x = make_draws(twin, 2), observations(name, 1, 2)
    with torch.no_grad():
        assert torch.equal(twin(x, draws).q_values, target(x, draws).q_values)
        move(twin)
        assert not torch.equal(twin(x, draws).q_values, target(x, draws).q_values)
        target.load_state_dict(twin.state_dict())
        assert torch.equal(twin(x, draws).q_values, target(x, draws).q_values)


def test_keys_are_names_in_the_twin() -> None:
    assert {*make_twin("mlp").draw_shapes()} == {"actors.0", "actors.1", "critics.0", "critics.1"}
    assert {*make_twin("mlp", bayesian="trunk").draw_shapes()} == {"trunks.0.layers.1", "trunks.0.project"}
    assert make_twin("mlp", bayesian="none").draw_shapes() == {}


def test_values_outside_the_unit_interval_are_representable() -> None:
    """Defect 2 of the original: a sigmoid on Q."""
    twin = make_twin()
    with torch.no_grad():
        for pair, value in enumerate((-30.0, 50.0)):
            twin.get_parameter(f"critics.{pair}.weight_mu").zero_()
            twin.get_parameter(f"critics.{pair}.bias").fill_(value)
    q_values = twin(observations("mlp")).q_values
    assert torch.equal(q_values[:, 0, 0], torch.tensor([-30.0, 50.0]))


# ------------------------------------------------------------------ number formats
@pytest.mark.parametrize("name", ["nature", "pseudo_resnet", "impala", "minatar"])
def test_bytes_and_already_scaled_floats_agree(name: str) -> None:
    twin, pixels = make_twin(name), observations(name)
    ours, theirs = twin(pixels), twin(pixels.float() / 255.0)
    torch.testing.assert_close(ours.action_logits, theirs.action_logits)
    torch.testing.assert_close(ours.q_values, theirs.q_values)


def test_pixel_scale_divides_bytes_and_leaves_floats_alone() -> None:
    torch.manual_seed(3)
    planes = make_twin("minatar", pixel_scale=1.0)
    torch.manual_seed(3)
    screens = make_twin("minatar", pixel_scale=255.0)  # the same weights
    binary = torch.randint(0, 2, (BATCH, *SHAPES["minatar"]), dtype=torch.uint8)
    torch.testing.assert_close(planes(binary).q_values, screens(binary * 255).q_values)
    torch.testing.assert_close(planes(binary).q_values, screens(binary.float()).q_values)
    assert not torch.allclose(planes(binary).q_values, screens(binary).q_values)


def test_the_observation_is_left_as_it_was() -> None:
    twin = make_twin("minatar")
    for observation in (observations("minatar"), torch.rand(BATCH, *SHAPES["minatar"])):
        kept = observation.clone()
        twin(observation, weight_mode="sample")
        twin(observation[None], make_draws(twin))
        assert torch.equal(observation, kept)


def strides_channels_last(x: Tensor) -> bool:
    return x.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rows", [1, DRAWS])
def test_images_come_out_scaled_and_channels_last(rows: int) -> None:
    twin = make_twin("minatar")
    draws = Draws(torch.zeros(DRAWS, 0))
    pixels = observations("minatar", rows, BATCH)
    plain, drawn = twin.prepare(pixels[0]), twin.prepare(pixels, draws)
    assert plain.shape == pixels.shape[1:]
    assert drawn.shape == pixels.shape
    assert plain.dtype == drawn.dtype == torch.float32
    torch.testing.assert_close(plain, pixels[0].float() / 255)
    torch.testing.assert_close(drawn, pixels.float() / 255)
    assert strides_channels_last(plain)
    assert strides_channels_last(drawn)
    floats = torch.rand(rows, BATCH, *SHAPES["minatar"])
    assert torch.equal(twin.prepare(floats, draws), floats)
    assert strides_channels_last(twin.prepare(floats, draws))
    assert strides_channels_last(twin.prepare(floats[0]))


def test_under_autocast_bytes_become_bfloat16_at_once() -> None:
    twin, pixels = make_twin("minatar"), observations("minatar", 1, BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for prepared in (twin.prepare(pixels[0])[None], twin.prepare(pixels, make_draws(twin))):
            assert prepared.dtype == torch.bfloat16
            assert strides_channels_last(prepared)
            torch.testing.assert_close(prepared.float(), pixels.float() / 255, rtol=2**-8, atol=0.0)
        assert twin.prepare(pixels[0] / 255).dtype == torch.float32


def test_vectors_and_integers_stay_what_they_are() -> None:
    twin = make_twin("mlp")
    for observation in (torch.randn(BATCH, 5), torch.arange(BATCH)[:, None]):
        assert twin.prepare(observation) is observation
        drawn = observation[None]
        assert twin.prepare(drawn, Draws(torch.zeros(DRAWS, 0))) is drawn
    numbers = torch.randint(256, (1, BATCH, 5), dtype=torch.uint8)  # a vector of bytes is scaled, too
    torch.testing.assert_close(twin.prepare(numbers, Draws(torch.zeros(DRAWS, 0))), numbers / 255)


@pytest.mark.parametrize("name", ["minatar", "nature", "mlp"])
@pytest.mark.parametrize("bayesian", ["heads", "all"])
@pytest.mark.parametrize(
    ("posterior", "prior_function_scale"), [("mean_field", 0.0), ("low_rank", 2.0), ("members", 2.0)]
)
def test_heads_and_priors_stay_float32_under_bf16_autocast(
    name: str, bayesian: str, posterior: str, prior_function_scale: float
) -> None:
    twin = make_twin(name, False, bayesian, posterior, prior_function_scale=prior_function_scale)
    for observation, weights in every_mode(twin, name):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = twin(observation, weights)
        assert {x.dtype for x in output if isinstance(x, torch.Tensor)} == {torch.float32}
        if weights == "sample" or (isinstance(weights, Draws) and weights.noise is None):
            continue
        exact = twin(observation, weights)
        # bfloat16 has 8 bits; features of a trunk of up to four layers, normalised, then 12 products.
        torch.testing.assert_close(output.q_values, exact.q_values, rtol=0.05, atol=0.15)


def test_a_discrete_observation_goes_through_the_whole_twin() -> None:
    layers = LayerFactory(PosteriorSettings("low_rank", size=2, init_log_var=-4.0), "all", categories=6)
    network = NetworkSettings("mlp", 12, prior_function_scale=1.0)
    twin = TwinActorCritic(TwinSettings(network, (1,), ACTIONS, layers), make("gaussian"))
    states = torch.arange(6, dtype=torch.int32)[:, None]
    output = twin(states)
    torch.testing.assert_close(twin(states.long()).q_values, output.q_values)
    draws = make_draws(twin)
    drawn = twin(states[None], draws)
    assert drawn.q_values.shape == (2, DRAWS, 6, ACTIONS)
    each = twin(states.expand(DRAWS, -1, -1), draws)
    torch.testing.assert_close(drawn.q_values, each.q_values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn.prior_values, each.prior_values, rtol=1e-4, atol=1e-5)
    distances = torch.pdist(output.q_values.transpose(0, 1).flatten(1))
    assert (distances > 1e-3).all()  # every state has values of its own


# ------------------------------------------------------------------ independence
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("training", [True, False])
def test_one_observation_s_output_does_not_depend_on_its_neighbours(name: str, training: bool) -> None:
    """Defect 9 of the original: batch statistics in acting."""
    twin = make_twin(name, shared_trunk=False).train(training)
    first, other = observations(name), observations(name)
    other[0] = first[0]
    other[1:] = other[1:] // 8 if other.dtype == torch.uint8 else 100 * other[1:]
    with torch.no_grad():
        outputs = [twin(x) for x in (first, other, first[:1])]
    for here, there, alone in zip(*([o.action_logits, o.q_values] for o in outputs), strict=True):
        torch.testing.assert_close(here[:, 0], there[:, 0])
        torch.testing.assert_close(here[:, :1], alone)
        assert not torch.allclose(here[:, 1:], there[:, 1:])


def test_a_forward_pass_changes_no_state() -> None:
    twin = make_twin("pseudo_resnet", bayesian="all", posterior="low_rank", prior_function_scale=1.0).train()
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    with torch.no_grad():
        for observation, weights in every_mode(twin, "pseudo_resnet"):
            twin(observation, weights)
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())


def test_the_four_networks_differ_at_the_start() -> None:
    output = make_twin("mlp", shared_trunk=False)(observations("mlp"))
    networks = [*output.action_logits, *output.q_values]
    assert not any(torch.allclose(networks[i], networks[j]) for i in range(4) for j in range(i))


# ------------------------------------------------------------------ gradient routing
@pytest.mark.parametrize("name", ["mlp", "minatar"])
@pytest.mark.parametrize("bayesian", PARTS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_with_a_shared_trunk_the_actor_loss_leaves_the_trunk_alone(name: str, bayesian: str, posterior: str) -> None:
    twin = make_twin(name, True, bayesian, posterior)
    for observation, weights in every_mode(twin, name):
        twin.zero_grad()
        output = twin(observation, weights)
        losses.dpg_loss(output.action_logits[0], output.q_values.mean(0)).backward()
        assert not gradients(twin.trunks)
        assert not gradients(twin.critics)
        assert gradients(twin.actors[0])
        assert not gradients(twin.actors[1])


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_with_a_shared_trunk_the_critic_loss_trains_it(posterior: str) -> None:
    twin = make_twin("mlp", True, "all", posterior)
    for observation, weights in every_mode(twin, "mlp"):
        twin.zero_grad()
        twin(observation, weights).q_values[0].square().mean().backward()
        assert gradients(twin.trunks)
        assert gradients(twin.critics[0])
        assert not gradients(twin.critics[1])
        assert not gradients(twin.actors)


@pytest.mark.parametrize("actor_loss", ["dpg", "cross_entropy"])
@pytest.mark.parametrize("pair", [0, 1])
def test_with_separate_trunks_each_loss_trains_its_own_network_only(actor_loss: str, pair: int) -> None:
    twin = make_twin("mlp", shared_trunk=False)
    actors = [nn.ModuleList([twin.trunks[i], twin.actors[i]]) for i in range(2)]
    critics = [nn.ModuleList([twin.trunks[i + 2], twin.critics[i]]) for i in range(2)]

    output = twin(observations("mlp"), weight_mode="sample")
    output.q_values[pair].square().mean().backward()
    assert len(gradients(critics[pair])) == len(list(critics[pair].parameters()))
    assert not gradients(critics[1 - pair])
    assert not gradients(nn.ModuleList(actors))

    twin.zero_grad()
    output = twin(observations("mlp"), weight_mode="sample")
    logits, q_values = output.action_logits[pair], output.q_values.mean(0)
    loss = losses.dpg_loss(logits, q_values) if actor_loss == "dpg" else losses.cross_entropy_loss(logits, q_values, 1)
    loss.backward()
    assert len(gradients(actors[pair])) == len(list(actors[pair].parameters()))
    assert not gradients(actors[1 - pair])
    assert not gradients(nn.ModuleList(critics))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_learning_by_draws_reaches_every_parameter(posterior: str) -> None:
    """Means, deviations, factors and biases of all layers, by the draws that learning uses."""
    twin = make_twin("mlp", True, "all", posterior, "learned_gaussian")
    output = twin(observations("mlp")[None], twin.posterior.fresh_draws(4, torch.device("cpu")))
    nll = twin.likelihood.nll(output.raw, torch.randn(output.q_values.shape))
    (nll.mean() + output.action_logits.square().mean()).backward()
    assert len(gradients(twin)) == len(list(twin.parameters()))


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_networks_of_both_pairs_hold_every_parameter_and_of_one_pair_its_own(shared_trunk: bool) -> None:
    twin = make_twin("mlp", shared_trunk)
    everything = {id(p) for p in twin.parameters()}
    first, second = ({id(p) for p in twin.networks([pair]).parameters()} for pair in (0, 1))
    assert {id(p) for p in twin.networks([0, 1]).parameters()} == first | second == everything
    trunk = {id(p) for p in twin.trunks.parameters()} if shared_trunk else set()
    assert first & second == trunk


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("pair", [0, 1])
def test_one_critic_alone_is_the_one_of_the_twin(shared_trunk: bool, pair: int) -> None:
    twin = make_twin("minatar", shared_trunk, "all", "low_rank", "two_hot")
    x = observations("minatar")
    torch.testing.assert_close(twin.critic(pair, twin.prepare(x)), twin(x).raw[pair])
    own = {name for name, _ in twin.named_parameters() if name.startswith(twin.critic_prefixes(pair))}
    twin.critic(pair, twin.prepare(x)).square().mean().backward()
    assert {name for name, p in twin.named_parameters() if p.grad is not None} == {
        name for name in own if not name.endswith(("weight_log_var", "weight_factor"))
    }


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("name", ["nature", "minatar", "mlp"])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_policy_is_that_of_the_whole_twin(
    dtype: torch.dtype, posterior: str, name: str, shared_trunk: bool
) -> None:
    twin, x = make_twin(name, shared_trunk, "all", posterior), observations(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, theirs = twin.policy(x), twin(x).mean_action_probs()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_policy_asks_no_critic_and_uses_the_gains_and_heads_of_its_task() -> None:
    asked, x = [], observations("mlp")
    for conditioning in ("gains", "heads"):
        layers = LayerFactory(PosteriorSettings(), "heads", num_tasks=2, conditioning=conditioning)
        network = NetworkSettings("mlp", 12, shared_trunk=False)
        twin = TwinActorCritic(TwinSettings(network, SHAPES["mlp"], ACTIONS, layers), make("gaussian"))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.normal_()
        for module in (twin.trunks[2], twin.trunks[3], *twin.critics):
            module.register_forward_hook(lambda *_: asked.append(1))
        policies = [twin.policy(x, task) for task in range(2)]
        assert not asked
        for task, policy in enumerate(policies):
            torch.testing.assert_close(policy, twin(x, task=task).mean_action_probs())
        assert not torch.allclose(*policies)
        asked.clear()


@pytest.mark.parametrize("channels", [1, 4, 8, 9, 28])
def test_pixels_are_rearranged_to_channels_last_and_scaled(channels: int) -> None:
    network, layers = NetworkSettings("minatar", 12), LayerFactory(PosteriorSettings())
    settings = TwinSettings(network, (channels, 10, 10), ACTIONS, layers, pixel_scale=255.0)
    x = torch.randint(0, 256, (BATCH, channels, 10, 10), dtype=torch.uint8)
    prepared = TwinActorCritic(settings, make("gaussian")).prepare(x)
    torch.testing.assert_close(prepared, x / 255)
    assert prepared.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------ divergence from the prior
def kl_oracle(layers: dict[str, BayesLayer]) -> Tensor:
    """Of all weights jointly, float64: for each member, dense Gaussians with the covariance that a shared z gives."""
    double = {key: copy.deepcopy(layer).double() for key, layer in layers.items()}.values()
    settings = next(iter(double)).settings
    members = settings.family == "members"
    variance = torch.cat([layer.weight_log_var.exp().flatten() for layer in double])
    covariance = variance.diag()
    if settings.family == "low_rank":
        factor = torch.cat([layer.weight_factor.flatten(1) for layer in double], 1)
        covariance = covariance + factor.T @ factor
    prior = MultivariateNormal(torch.zeros_like(variance), torch.eye(len(variance)).double() / settings.prior_precision)
    means = torch.cat([layer.weight_mu.flatten(int(members)) for layer in double], -1).reshape(-1, len(variance))
    return torch.stack([distribution_kl(MultivariateNormal(mean, covariance), prior) for mean in means]).mean()


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_kl_is_that_of_all_weights_jointly_and_follows_them(posterior: str, shared_trunk: bool) -> None:
    """The layers are remembered between calls, their values are not; nor are those of a copy."""
    twin = make_twin("mlp", shared_trunk, "all", posterior, hidden_dim=4)
    twin.kl_divergence(), twin.kl_divergence([0])
    target = copy.deepcopy(twin)

    def check(network: TwinActorCritic) -> None:
        layers = bayesian_layers(network)
        kl, total = network.kl_divergence(), sum(layer.kl_divergence() for layer in layers.values())
        torch.testing.assert_close(kl.double(), kl_oracle(layers), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(network.kl_divergence([0]) + network.kl_divergence((1,)), kl)
        if posterior == "low_rank":
            assert kl > total + 0.1  # layers tell about each other
            return
        torch.testing.assert_close(kl, total)
        for pair in range(2):  # its heads and, of the trunks, its own or half of the shared one
            own = [f"actors.{pair}", f"critics.{pair}"] + [f"trunks.{pair + j}." for j in (0, 2) if not shared_trunk]
            part = sum(layer.kl_divergence() for key, layer in layers.items() if key.startswith(tuple(own)))
            if shared_trunk:
                part = part + 0.5 * kl_divergence(network.trunks)
            torch.testing.assert_close(network.kl_divergence([pair]), part)

    check(twin)
    before = target.kl_divergence().item()
    for _ in range(2):
        move(twin)
        check(twin)
    assert target.kl_divergence().item() == before
    target.load_state_dict(twin.state_dict())
    check(target)


def test_kl_without_bayesian_layers_is_zero_and_with_them_trains_all_of_them() -> None:
    assert make_twin(bayesian="none").kl_divergence().item() == 0.0
    twin = make_twin(bayesian="heads")
    twin.kl_divergence((1,)).backward()
    assert {name for name, p in twin.named_parameters() if p.grad is not None} == {
        f"{head}.1.{part}" for head in ("actors", "critics") for part in ("weight_mu", "weight_log_var")
    }


# ------------------------------------------------------------------ initial values
INITIAL = [("nature", (4, 84, 84), 512), ("minatar", (6, 10, 10), 128), ("mlp", (4,), 128)]


@pytest.mark.parametrize(
    ("encoder", "shape", "hidden_dim", "kind"),
    [
        pytest.param(*case, kind, id=f"{kind}-{case[0]}", marks=pytest.mark.slow if case[0] == "nature" else ())
        for case in INITIAL
        for kind in ("heads", "all")
    ],
)
def test_bayesian_and_plain_networks_start_from_equal_values(
    encoder: str, shape: tuple[int, ...], hidden_dim: int, kind: str
) -> None:
    """Standard deviation of the initial Q and logits over 50 seeds, two networks each, and 50 actions, within 3 %."""
    states = torch.randint(0, 256, (4, *shape), dtype=torch.uint8) if len(shape) == 3 else torch.randn(4, *shape)

    def spread(bayesian: str) -> Tensor:
        outputs = []
        for seed in range(50):
            torch.manual_seed(seed if bayesian == "none" else 1000 + seed)
            layers = LayerFactory(PosteriorSettings(), bayesian)
            settings = TwinSettings(NetworkSettings(encoder, hidden_dim), shape, 50, layers)
            with torch.no_grad():
                output = TwinActorCritic(settings, make_likelihood(LikelihoodSettings()))(states)
            outputs.append(torch.stack([output.q_values, output.action_logits]))
        return torch.stack(outputs, 1).flatten(1).std(1)

    torch.testing.assert_close(spread(kind), spread("none"), rtol=0.03, atol=0)


# ------------------------------------------------------------------ acting policy
@pytest.mark.parametrize("draws", [(), (5,)])
def test_means_are_of_both_pairs_and_all_draws(draws: tuple[int, ...]) -> None:
    logits = 5 * torch.randn(2, *draws, 7, ACTIONS, dtype=torch.float64)
    output = TwinOutput(logits, torch.zeros(*logits.shape, 1), 2 * logits)
    probs = output.mean_action_probs()
    torch.testing.assert_close(probs.sum(-1), torch.ones(7, dtype=torch.float64))
    rows = logits.reshape(-1, 7, ACTIONS)
    torch.testing.assert_close(probs, sum(row.softmax(-1) for row in rows) / len(rows))
    torch.testing.assert_close(output.mean_q_values(), 2 * sum(rows) / len(rows))
