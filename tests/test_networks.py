"""Encoders and the twin: sizes, independence of batch neighbours, gradient routing, number formats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayes_rl import losses
from bayes_rl.bayes import BayesLinear
from bayes_rl.networks import ENCODERS, Encoder, Twin, TwinOutput, build_encoder
from bayes_rl.types import ConfigError

SHAPES = {
    "pseudo_resnet": (2, 44, 44),  # small: the sizes at 84 x 84 have a test of their own
    "nature": (4, 84, 84),
    "impala": (3, 20, 20),
    "minatar": (4, 10, 10),
    "mlp": (5,),
}
ACTIONS = 3


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(2)


def make_encoder(name: str, shape: tuple[int, ...] | None = None, hidden_dim: int = 12) -> Encoder:
    return build_encoder(name, shape or SHAPES[name], hidden_dim, prior_precision=10.0, init_log_var=-9.0)


def make_twin(name: str = "mlp", shared_trunk: bool = True, pixel_scale: float = 255.0) -> Twin:
    return Twin(name, SHAPES[name], ACTIONS, 12, shared_trunk, 10.0, -9.0, pixel_scale)


def observations(name: str, batch: int = 4) -> Tensor:
    """Random bytes for images, standard normal vectors otherwise."""
    if len(SHAPES[name]) == 3:
        return torch.randint(0, 256, (batch, *SHAPES[name]), dtype=torch.uint8)
    return torch.randn(batch, *SHAPES[name])


def gradients(module: nn.Module) -> list[Tensor]:
    """Gradients that are neither absent nor zero."""
    return [p.grad for p in module.parameters() if p.grad is not None and bool(p.grad.any())]


# ------------------------------------------------------------------ sizes
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("weights", ["mean", "sample"])
def test_every_encoder_maps_a_batch_to_rows_of_its_out_features(name: str, weights: str) -> None:
    encoder = make_encoder(name)
    features = encoder(torch.rand(2, *SHAPES[name]), weights)
    assert features.shape == (2, encoder.out_features)
    assert features.dtype == torch.float32
    assert encoder.out_features == (24 if name == "pseudo_resnet" else 12)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_the_twin_gives_logits_and_values_of_both_pairs(name: str, shared_trunk: bool) -> None:
    output = make_twin(name, shared_trunk)(observations(name, batch=2), weights="sample")
    assert output.action_logits.shape == output.q_values.shape == (2, 2, ACTIONS)
    assert output.action_logits.dtype == output.q_values.dtype == torch.float32


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_pseudo_resnet_has_the_sizes_of_the_original() -> None:
    """64 x 19 x 19, 256 x 17 x 17, skip 4096, deep 9216, out 2 x 1024 for 4 x 84 x 84; about 29.8 M parameters.

    With the head for 4 actions this is 29,808,580. The original's actor has the same layers. Its critic took
    the action as an input (A -> 1024, and a head of 3072): 29,825,988 for A = 4. Here the critic gives Q(s, .)
    for all actions, so critic and actor are equal. Group and batch normalisation have equally many parameters.
    """
    encoder = make_encoder("pseudo_resnet", (4, 84, 84), hidden_dim=1024)
    sizes: set[tuple[int, ...]] = set()
    inputs: dict[int, int] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.add(tuple(output.shape[1:]))
        if isinstance(module, BayesLinear):
            inputs[args[0].shape[1]] = output.shape[1]

    for module in encoder.modules():
        module.register_forward_hook(record)
    with torch.no_grad():
        features = encoder(torch.rand(1, 4, 84, 84))
    assert {(64, 19, 19), (256, 17, 17), (2048,)} <= sizes
    assert inputs == {4096: 1024, 9216: 1024}
    assert features.shape == (1, 2048)

    actions, hidden = 4, 1024
    derived = (
        (4 * 64 * 8 * 8 + 64)  # block 1
        + (64 * 256 * 3 * 3 + 256)  # block 2
        + (256 * 1024 * 3 * 3 + 1024)  # block 3
        + 2 * (64 + 256 + 1024)  # scale and shift of the normalisations
        + (2 * 4096 * hidden + hidden)  # a Bayesian weight counts twice, its bias once
        + (2 * 9216 * hidden + hidden)
    )
    head = 2 * 2048 * actions + actions
    assert derived + head == 29_808_580
    assert parameter_count(encoder) == derived
    assert parameter_count(BayesLinear(encoder.out_features, actions)) == head
    original_critic = derived + (2 * actions * hidden + hidden) + (2 * 3072 * actions + actions)
    assert original_critic == 29_825_988
    assert round(original_critic / 1e6, 1) == round((derived + head) / 1e6, 1) == 29.8


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize("name", ["pseudo_resnet", "nature", "minatar"])
def test_an_observation_too_small_for_the_encoder_gives_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder.*\[4, 2, 2\]") as raised:
        make_encoder(name, (4, 2, 2))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["pseudo_resnet", "nature", "impala", "minatar"])
def test_an_image_encoder_refuses_vectors_and_names_the_mlp(name: str) -> None:
    with pytest.raises(ConfigError, match="mlp"):
        make_encoder(name, (7,))


@pytest.mark.parametrize(("typed", "meant"), [("natrue", "nature"), ("Impala", "impala"), ("pseudoresnet", "pseudo_")])
def test_an_unknown_encoder_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"nearest: '{meant}") as raised:
        make_encoder(typed, (4, 84, 84))
    assert typed in str(raised.value)


@pytest.mark.parametrize("hidden_dim", [0, -3])
def test_a_width_below_one_gives_a_config_error(hidden_dim: int) -> None:
    with pytest.raises(ConfigError, match="hidden_dim"):
        make_encoder("mlp", hidden_dim=hidden_dim)


# ------------------------------------------------------------------ number formats
@pytest.mark.parametrize("name", ["nature", "pseudo_resnet", "impala", "minatar"])
def test_bytes_and_already_scaled_floats_agree(name: str) -> None:
    twin, pixels = make_twin(name), observations(name)
    for ours, theirs in zip(twin(pixels), twin(pixels.float() / 255.0), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pixel_scale_divides_bytes_and_leaves_floats_alone() -> None:
    torch.manual_seed(3)
    planes = make_twin("minatar", pixel_scale=1.0)
    torch.manual_seed(3)
    screens = make_twin("minatar", pixel_scale=255.0)  # the same weights
    binary = torch.randint(0, 2, (4, *SHAPES["minatar"]), dtype=torch.uint8)
    torch.testing.assert_close(planes(binary).q_values, screens(binary * 255).q_values)
    torch.testing.assert_close(planes(binary).q_values, screens(binary.float()).q_values)
    assert not torch.allclose(planes(binary).q_values, screens(binary).q_values)


def test_the_observation_is_left_as_it_was() -> None:
    twin = make_twin("minatar")
    for observation in (observations("minatar"), torch.rand(4, *SHAPES["minatar"])):
        copy = observation.clone()
        twin(observation, weights="sample")
        assert torch.equal(observation, copy)


def test_values_outside_the_unit_interval_are_representable() -> None:
    """Defect 2 of the original: a sigmoid on Q."""
    twin = make_twin()
    with torch.no_grad():
        for critic, value in zip(twin.critics, (-30.0, 50.0), strict=True):
            critic.weight_mu.zero_()
            critic.bias.fill_(value)
    q_values = twin(observations("mlp")).q_values
    assert torch.equal(q_values[:, 0, 0], torch.tensor([-30.0, 50.0]))


def test_heads_stay_float32_under_bf16_autocast() -> None:
    twin = make_twin("mlp", shared_trunk=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = twin(observations("mlp"), weights="sample")
    assert output.action_logits.dtype == output.q_values.dtype == torch.float32


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
        here, there, alone = twin(first), twin(other), twin(first[:1])
    for a, b, c in zip(here, there, alone, strict=True):
        torch.testing.assert_close(a[:, 0], b[:, 0])
        torch.testing.assert_close(a[:, :1], c)
        assert not torch.allclose(a[:, 1:], b[:, 1:])


def test_a_forward_pass_changes_no_state() -> None:
    twin = make_twin("pseudo_resnet").train()
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    with torch.no_grad():
        twin(observations("pseudo_resnet"), weights="sample")
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())


def test_the_four_networks_differ_at_the_start() -> None:
    output = make_twin("mlp", shared_trunk=False)(observations("mlp"))
    networks = [*output.action_logits, *output.q_values]
    assert not any(torch.allclose(networks[i], networks[j]) for i in range(4) for j in range(i))


# ------------------------------------------------------------------ gradient routing
@pytest.mark.parametrize("name", ["mlp", "minatar"])
def test_with_a_shared_trunk_the_actor_loss_leaves_the_trunk_alone(name: str) -> None:
    twin = make_twin(name, shared_trunk=True)
    output = twin(observations(name), weights="sample")
    losses.dpg_loss(output.action_logits[0], output.q_values.mean(0)).backward()
    assert not gradients(twin.trunks)
    assert not gradients(twin.critics)
    assert gradients(twin.actors[0])
    assert not gradients(twin.actors[1])


def test_with_a_shared_trunk_the_critic_loss_trains_it() -> None:
    twin = make_twin("mlp", shared_trunk=True)
    twin(observations("mlp"), weights="sample").q_values[0].square().mean().backward()
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

    output = twin(observations("mlp"), weights="sample")
    output.q_values[pair].square().mean().backward()
    assert len(gradients(critics[pair])) == len(list(critics[pair].parameters()))
    assert not gradients(critics[1 - pair])
    assert not gradients(nn.ModuleList(actors))

    twin.zero_grad()
    output = twin(observations("mlp"), weights="sample")
    logits, q_values = output.action_logits[pair], output.q_values.mean(0)
    loss = losses.dpg_loss(logits, q_values) if actor_loss == "dpg" else losses.cross_entropy_loss(logits, q_values, 1)
    loss.backward()
    assert len(gradients(actors[pair])) == len(list(actors[pair].parameters()))
    assert not gradients(actors[1 - pair])
    assert not gradients(nn.ModuleList(critics))


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_networks_of_both_pairs_hold_every_parameter_and_of_one_pair_its_own(shared_trunk: bool) -> None:
    twin = make_twin("mlp", shared_trunk)
    everything = {id(p) for p in twin.parameters()}
    first, second = ({id(p) for p in twin.networks([pair]).parameters()} for pair in (0, 1))
    assert {id(p) for p in twin.networks([0, 1]).parameters()} == first | second == everything
    trunk = {id(p) for p in twin.trunks.parameters()} if shared_trunk else set()
    assert first & second == trunk


# ------------------------------------------------------------------ acting policy
def test_mean_action_probs_is_the_mean_of_both_policies_and_sums_to_one() -> None:
    logits = 5 * torch.randn(2, 7, ACTIONS, dtype=torch.float64)
    probs = TwinOutput(logits, torch.zeros_like(logits)).mean_action_probs()
    torch.testing.assert_close(probs.sum(-1), torch.ones(7, dtype=torch.float64))
    expected = (logits[0].softmax(-1) + logits[1].softmax(-1)) / 2
    torch.testing.assert_close(probs, expected)
