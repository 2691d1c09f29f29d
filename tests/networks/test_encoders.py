"""Encoders: sizes, which layers are Bayesian, draws in one batch against networks with written-out weights."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, draws_by_seed
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.bayes.layers import BayesLayer, BayesLinear
from bayes_rl.bayes.posteriors import POSTERIORS, make_family
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import ConfigError
from bayes_rl.networks.encoders import ENCODERS, Encoder, ResidualBlock, build_encoder
from bayes_rl.networks.layer_factory import ACTIVATIONS, BAYESIAN, LayerFactory
from tests.helpers.networks import SHAPES
from tests.networks.encoder_case import EncoderCase

BAYESIAN_TRUNK = {
    "pseudo_resnet": {"block1.0", "block2.0", "block3.0"},
    "nature": {"layers.0", "layers.2", "layers.4", "project"},
    "impala": {f"layers.{i}" for i in (0, 4, 8)}
    | {f"layers.{i}.{part}" for i in (2, 3, 6, 7, 10, 11) for part in ("first", "second")}
    | {"project"},
    "minatar": {"layers.0", "project"},
    "mlp": {"layers.1", "project"},
}
HIDDEN, BATCH, DRAWS = 12, 2, 3
CATEGORIES = 7


def make_encoder(
    name: str,
    bayesian: str = "heads",
    posterior: str = "mean_field",
    shape: tuple[int, ...] | None = None,
    hidden_dim: int = HIDDEN,
    categories: int = 0,
) -> Encoder:
    # A wide posterior: a draw that is lost would show.
    settings = PosteriorSettings(posterior, size=2, init_log_var=-4.0)
    encoder = build_encoder(name, shape or SHAPES[name], hidden_dim, LayerFactory(settings, bayesian, categories))
    for key, layer in bayesian_layers(encoder).items():
        layer.key = key
        nn.init.normal_(layer.bias)
    return encoder


def make_draws(encoder: nn.Module, count: int = DRAWS) -> Draws:
    layers = bayesian_layers(encoder)
    family = next(iter(layers.values())).family
    return draws_by_seed(family, {key: layer.shape for key, layer in layers.items()}, [*range(count)])


def plain_encoder(encoder: Encoder, name: str, draws: Draws, row: int) -> Encoder:
    """The oracle: plain layers whose weights are one of the draws, written out."""
    plain = make_encoder(name, "none")
    state = {key: value for key, value in encoder.state_dict().items() if key in plain.state_dict()}
    for key, layer in bayesian_layers(encoder).items():
        state[f"{key}.weight"], state[f"{key}.bias"] = written_out(layer, draws, row)
    plain.load_state_dict(state)
    return plain


def written_out(layer: BayesLayer, draws: Draws, row: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of draw `row` of a layer, by the definition of its posterior."""
    assert draws.noise is not None
    index = draws.index[row]
    weight: Tensor = layer.weight_mu
    bias: Tensor = layer.bias
    if layer.settings.family == "members":
        weight, bias = weight[int(index.nonzero())], bias[int(index.nonzero())]
    if layer.settings.family == "low_rank":
        weight = weight + sum(z * column for z, column in zip(index, layer.weight_factor, strict=True))
    return weight + layer.weight_log_var.exp().sqrt() * draws.noise[layer.key][row], bias


# ------------------------------------------------------------------ the shared case
class TestPseudoResNet(EncoderCase):
    encoder, shape = "pseudo_resnet", SHAPES["pseudo_resnet"]


class TestNature(EncoderCase):
    encoder, shape = "nature", SHAPES["nature"]


class TestImpala(EncoderCase):
    encoder, shape = "impala", SHAPES["impala"]


class TestMinAtar(EncoderCase):
    encoder, shape = "minatar", SHAPES["minatar"]


class TestMLP(EncoderCase):
    encoder, shape = "mlp", SHAPES["mlp"]


def test_every_registered_encoder_has_the_shared_case() -> None:
    assert {case.encoder for case in EncoderCase.__subclasses__() if case.__module__ == __name__} == set(ENCODERS)


# ------------------------------------------------------------------ sizes
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("bayesian", BAYESIAN)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_encoder_has_the_bayesian_layers_it_should_and_rows_of_its_out_features(
    name: str, bayesian: str, posterior: str
) -> None:
    encoder = make_encoder(name, bayesian, posterior)
    heads = {"skip", "deep"} if name == "pseudo_resnet" else set()
    expected = {"heads": heads, "trunk": BAYESIAN_TRUNK[name], "all": heads | BAYESIAN_TRUNK[name]}
    layers = bayesian_layers(encoder)
    assert set(layers) == expected.get(bayesian, set())
    plain = {key for key, m in encoder.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert plain == expected["all"] - set(layers)

    assert encoder.out_features == HIDDEN * (2 if name == "pseudo_resnet" else 1)
    x = torch.rand(BATCH, *SHAPES[name])
    with torch.no_grad():
        for weights in ("mean", "sample"):
            features = encoder(x, weights)
            assert features.shape == (BATCH, encoder.out_features)
            assert features.dtype == torch.float32
        draws = Draws(torch.eye(2)[:, : make_family(PosteriorSettings(posterior, size=2)).index_size])
        assert encoder(x[None], draws).shape == (2 if layers else 1, BATCH, encoder.out_features)


def test_pseudo_resnet_has_the_sizes_of_the_original() -> None:
    """64 x 19 x 19, 256 x 17 x 17, skip 4096, deep 9216, out 2 x 1024 for 4 x 84 x 84; about 29.8 M parameters.

    With the head for 4 actions this is 29,808,580. The original's actor has the same layers. Its critic took
    the action as an input (A -> 1024, and a head of 3072): 29,825,988 for A = 4. Here the critic gives Q(s, .)
    for all actions, so critic and actor are equal. Group and batch normalisation have equally many parameters.
    """
    encoder = make_encoder("pseudo_resnet", shape=(4, 84, 84), hidden_dim=1024)
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


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_residual_block_adds_two_rectified_convolutions() -> None:
    block = ResidualBlock(3, LayerFactory(PosteriorSettings(), "none"))
    x, first, second = torch.randn(2, 3, 5, 5), block.first, block.second
    conv = functools.partial(F.conv2d, padding=1)
    expected = x + conv(conv(x.relu(), first.weight, first.bias).relu(), second.weight, second.bias)
    torch.testing.assert_close(block(x), expected)


def test_pseudo_resnet_has_an_early_skip_and_a_squashed_third_block() -> None:
    encoder = make_encoder("pseudo_resnet", "none")
    p, x = dict(encoder.named_parameters()), torch.rand(2, *SHAPES["pseudo_resnet"])

    def block(x: Tensor, number: int, stride: int = 1) -> Tensor:
        y = F.conv2d(x, p[f"block{number}.0.weight"], p[f"block{number}.0.bias"], stride)
        return F.group_norm(y, 1, p[f"block{number}.1.weight"], p[f"block{number}.1.bias"])

    early = block(F.max_pool2d(block(x, 1, 2).relu(), 2), 2)
    skip = F.linear(F.max_pool2d(early, 4).flatten(1), p["skip.weight"], p["skip.bias"])
    deep = F.linear(F.max_pool2d(block(early, 3), 4).flatten(1), p["deep.weight"], p["deep.bias"])
    torch.testing.assert_close(encoder(x), torch.cat([skip, deep.sigmoid()], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nature", "impala", "minatar", "mlp"])
def test_features_are_normalised_then_rectified(name: str) -> None:
    encoder, normalised = make_encoder(name), []
    norm = encoder.get_submodule("norm")
    norm.register_forward_hook(lambda module, args, output: normalised.append(output.clone()))
    features = encoder(torch.rand(BATCH, *SHAPES[name]))
    torch.testing.assert_close(features, normalised[0].relu())
    torch.testing.assert_close(normalised[0].mean(-1), torch.zeros(BATCH), rtol=0.0, atol=1e-5)
    assert (normalised[0].var(-1, correction=0) <= 1 + 1e-5).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bayesian", ["none", "trunk"])
@pytest.mark.parametrize("name", ENCODERS)
def test_rectifying_in_place_changes_no_feature_and_no_gradient(name: str, bayesian: str, activation: str) -> None:
    """Against the same encoder with rectifiers that write to memory of their own."""
    layers = LayerFactory(PosteriorSettings("mean_field", init_log_var=-4.0), bayesian, activation=activation)
    encoder, x, results = build_encoder(name, SHAPES[name], HIDDEN, layers), torch.rand(BATCH, *SHAPES[name]), []
    for inplace in (True, False):
        rectifiers = [m for m in encoder.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)]
        for rectifier in rectifiers:
            rectifier.inplace = rectifier.inplace and inplace
        assert any(rectifier.inplace for rectifier in rectifiers) == inplace
        torch.manual_seed(1)
        features = encoder(x, "sample")
        results.append([features, *torch.autograd.grad(features.sin().sum(), list(encoder.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_residual_block_takes_draws_that_are_all_alike() -> None:
    """Neither an index nor noise: one evaluation, expanded, that nothing may write to."""
    block = ResidualBlock(3, LayerFactory(PosteriorSettings(), "trunk"))
    x, draws = torch.rand(1, BATCH, 3, 5, 5), Draws(torch.zeros(DRAWS, 0), {})
    y = block(x, draws)
    assert y.shape == (DRAWS, BATCH, 3, 5, 5)
    for one in y:
        torch.testing.assert_close(one, block(x[0], "mean"))


def test_draws_of_whole_networks_are_not_rectified_in_place() -> None:
    for posterior in POSTERIORS:
        encoder = make_encoder("impala", "trunk", posterior)
        inplace = any(m.inplace for m in encoder.modules() if isinstance(m, nn.ReLU))
        assert inplace == (posterior == "mean_field")


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize("bayesian", ["heads", "all"])
@pytest.mark.parametrize("name", ["pseudo_resnet", "nature", "minatar"])
def test_an_observation_too_small_for_the_encoder_gives_a_config_error(name: str, bayesian: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.network\.encoder.*\[4, 2, 2\]") as raised:
        make_encoder(name, bayesian, shape=(4, 2, 2))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["pseudo_resnet", "nature", "impala", "minatar"])
def test_an_image_encoder_refuses_vectors_and_names_the_mlp(name: str) -> None:
    with pytest.raises(ConfigError, match="mlp"):
        make_encoder(name, shape=(7,))
    with pytest.raises(ConfigError, match="mlp"):
        make_encoder(name, shape=(1,), categories=CATEGORIES)


@pytest.mark.parametrize(("typed", "meant"), [("natrue", "nature"), ("Impala", "impala"), ("pseudoresnet", "pseudo_")])
def test_an_unknown_encoder_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"nearest: '{meant}") as raised:
        make_encoder(typed, shape=(4, 84, 84))
    assert typed in str(raised.value)


@pytest.mark.parametrize("hidden_dim", [0, -3])
def test_a_width_below_one_gives_a_config_error(hidden_dim: int) -> None:
    with pytest.raises(ConfigError, match="hidden_dim"):
        make_encoder("mlp", hidden_dim=hidden_dim)


@pytest.mark.parametrize("bayesian", ["heads", "trunk"])
def test_stacked_integers_are_refused_by_name(bayesian: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.frame_stack: 4 .*single integers"):
        make_encoder("mlp", bayesian, shape=(4,), categories=CATEGORIES)


# ------------------------------------------------------------------ draws
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("observations", [1, DRAWS])
def test_draws_in_one_batch_equal_a_loop_over_networks_with_their_weights(
    name: str, posterior: str, observations: int
) -> None:
    encoder = make_encoder(name, "all", posterior)
    draws, x = make_draws(encoder), torch.rand(observations, BATCH, *SHAPES[name])
    with torch.no_grad():
        ours = encoder(x, draws)
        slow = [plain_encoder(encoder, name, draws, d)(x[d % observations]) for d in range(DRAWS)]
    # float32: layers of up to 2304 products, summed in another order, and divided by their standard deviation.
    torch.testing.assert_close(ours, torch.stack(slow), rtol=1e-4, atol=2e-5)
    assert posterior == "members" or not torch.allclose(ours[0], ours[1], atol=1e-2)


@pytest.mark.parametrize("name", ["nature", "impala", "minatar", "mlp"])
def test_a_plain_encoder_is_evaluated_once_for_all_draws(name: str) -> None:
    encoder, rows = make_encoder(name), []
    encoder.get_submodule("project").register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    x = torch.rand(1, BATCH, *SHAPES[name])
    draws = Draws(torch.randn(50, 2), {})
    with torch.no_grad():
        features = encoder(x, draws)
        torch.testing.assert_close(features, encoder(x[0])[None])
        assert rows == [BATCH, BATCH]
        torch.testing.assert_close(encoder(x.expand(4, *x.shape[1:]), draws), features.expand(4, -1, -1))


def test_mean_and_sample_agree_where_the_posterior_is_narrow() -> None:
    """Fresh noise of every output is scaled by each layer's deviations, in every layer."""
    for name in ENCODERS:
        encoder = make_encoder(name, "all")
        x = torch.rand(BATCH, *SHAPES[name])
        with torch.no_grad():
            wide = (encoder(x, "sample") - encoder(x)).abs().max()
            for layer in bayesian_layers(encoder).values():
                layer.weight_log_var.fill_(-11.0)
            narrow = (encoder(x, "sample") - encoder(x)).abs().max()
        assert 0 < narrow < 0.2 * wide, name


# ------------------------------------------------------------------ integers
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bayesian", ["none", "trunk"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_integers_equal_their_one_hot_vectors(
    posterior: str, bayesian: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ops",):  # outputs lie one standard deviation above their means
        monkeypatch.setattr(f"bayes_rl.bayes.{module}.standard_normal", torch.ones_like)
    encoder = make_encoder("mlp", bayesian, posterior, (1,), categories=CATEGORIES)
    vectors = make_encoder("mlp", bayesian, posterior, (CATEGORIES,))
    for ours, theirs in zip(encoder.parameters(), vectors.parameters(), strict=True):
        theirs.data.copy_(ours)
    states = torch.randint(CATEGORIES, (DRAWS, 9, 1), dtype=dtype)
    one_hot = F.one_hot(states[..., 0].long(), CATEGORIES).float()
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        close(encoder(states[0]), vectors(one_hot[0]))
        torch.manual_seed(3)
        ours = encoder(states[0], "sample")
        torch.manual_seed(3)
        close(ours, vectors(one_hot[0], "sample"))
        if bayesian == "none":
            return
        draws, same = make_draws(encoder), make_draws(vectors)
        for rows in (1, DRAWS):
            close(encoder(states[:rows], draws), vectors(one_hot[:rows], same))
            local = Draws(draws.index)
            close(encoder(states[:rows], local), vectors(one_hot[:rows], local))


@pytest.mark.parametrize("name", SHAPES)
def test_the_activation_is_that_of_every_layer_and_changes_no_parameter(name: str) -> None:
    shape, by_activation = SHAPES[name], {}
    for activation in ACTIVATIONS:
        encoder = build_encoder(name, shape, HIDDEN, LayerFactory(PosteriorSettings(), activation=activation))
        kinds = {type(module) for module in encoder.modules()} & {nn.ReLU, nn.LeakyReLU}
        assert kinds == {nn.ReLU if activation == "relu" else nn.LeakyReLU}
        by_activation[activation] = encoder
    plain, leaky = by_activation.values()
    leaky.load_state_dict(plain.state_dict())
    x = torch.randn(BATCH, *shape)
    before = plain(x)
    if name != "pseudo_resnet":  # whose last layers are linear and a sigmoid
        assert (before >= 0).all()
        assert (leaky(x) < 0).any()
    for module in leaky.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.0
    torch.testing.assert_close(leaky(x), before)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("nature", [16, 32, 32]), ("minatar", [8]), ("pseudo_resnet", [32, 128, 512]), ("impala", [8] * 5 + [16] * 10)],
)
def test_half_the_width_has_half_the_channels(name: str, channels: list[int]) -> None:
    encoder = build_encoder(name, SHAPES[name], HIDDEN, LayerFactory(PosteriorSettings(), "none", width=0.5))
    found = [module.out_channels for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert found == channels
    assert encoder(torch.randn(BATCH, *SHAPES[name])).shape == (BATCH, encoder.out_features)


def test_a_layer_has_at_least_one_channel() -> None:
    assert LayerFactory(PosteriorSettings(), width=1e-6).channels(64) == 1
