"""Settings of a posterior, and draws that their seeds name."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bayes_rl.bayes import draws as module
from bayes_rl.bayes.draws import Draws, EpisodeDraws, draws_by_seed, to_device
from bayes_rl.bayes.layers import BayesLinear
from bayes_rl.bayes.posteriors import POSTERIORS, LowRank, MeanField, Mixture, PosteriorFamily, make_family
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import ConfigError

CPU = torch.device("cpu")
SHAPES = {"trunk": (5, 2, 3, 3), "heads.0": (2, 5), "heads.1": (3, 5)}
SIGMAS = 4.0

each_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


def family_of(posterior: str, size: int = 4) -> PosteriorFamily:
    return make_family(PosteriorSettings(posterior, size))


def parts(draws: Draws) -> dict[str, Tensor]:
    """Everything that a draw is."""
    assert draws.noise is not None
    return {"index": draws.index, **draws.noise}


def assert_same(ours: Draws, theirs: Draws) -> None:
    assert parts(ours).keys() == parts(theirs).keys()
    for key, values in parts(ours).items():
        assert torch.equal(values, parts(theirs)[key]), key


# ------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("bad", "value"),
    [
        ("family", "lowrank"),
        ("family", ""),
        ("prior", "gauss"),
        ("size", 0),
        ("size", -3),
        ("num_draws", 0),
        ("prior_precision", 0.0),
        ("prior_precision", -1.0),
        ("prior_precision", math.nan),
        ("prior_precision", math.inf),
        ("init_log_var", 11.5),
        ("init_log_var", -12.0),
        ("init_log_var", math.nan),
        ("log_var_limit", 0.0),
        ("log_var_limit", -11.0),
        ("log_var_limit", math.nan),
        ("log_var_limit", 1000.0),  # its exponential overflows
        ("init_scale", 0.0),
        ("init_scale", math.nan),
        ("init_scale", math.inf),
    ],
)
def test_a_bad_setting_gives_one_line_that_names_it(bad: str, value: object) -> None:
    with pytest.raises(ConfigError) as raised:
        PosteriorSettings(**{bad: value})  # type: ignore[arg-type]
    assert raised.value.key == f"model.posterior.{bad}"
    text = str(raised.value)
    assert text.startswith(f"--model.posterior.{bad}: {value!r} ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("key", "word", "nearest"),
    [
        ("family", "lowrank", "low_rank"),
        ("family", "Mean-Field", "mean_field"),
        ("family", "member", "members"),
        ("prior", "guassian", "gaussian"),
        ("prior", "loguniform", "log_uniform"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(key: str, word: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"nearest: '{nearest}'"):
        PosteriorSettings(**{key: word})  # type: ignore[arg-type]


def test_the_way_out_names_every_registered_family_that_has_the_prior_or_can_become_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(POSTERIORS, "_entries", {"low_rank": LowRank, "members": Mixture, "newcomer": MeanField})
    with pytest.raises(ConfigError, match="posterior members or newcomer, or prior gaussian"):
        PosteriorSettings("low_rank", prior="log_uniform")
    with pytest.raises(ConfigError, match=r"'vcl' .*posterior newcomer with prior gaussian"):
        make_family(PosteriorSettings("members"), sequential=True)


def test_log_uniform_has_no_closed_form_for_low_rank() -> None:
    with pytest.raises(ConfigError, match="mean_field or members") as raised:
        PosteriorSettings("low_rank", prior="log_uniform")
    assert raised.value.key == "model.posterior.prior"
    assert "\n" not in str(raised.value)
    for posterior in ("mean_field", "members"):
        PosteriorSettings(posterior, prior="log_uniform")


def test_limits_themselves_are_allowed() -> None:
    assert PosteriorSettings(init_log_var=-11.0).init_log_var == -11.0
    assert PosteriorSettings(init_log_var=4.0, log_var_limit=4.0, size=1).size == 1


# ------------------------------------------------------------------ draws named by seeds
@each_posterior
def test_a_seed_is_a_draw_whatever_the_others_and_the_global_state(posterior: str) -> None:
    every = draws_by_seed(family_of(posterior), SHAPES, [7, 3, 2**31 - 1, 7])
    assert every.size == 4
    assert every.index.shape == (4, family_of(posterior).index_size)
    for row, seed in enumerate([7, 3, 2**31 - 1, 7]):
        torch.manual_seed(row)
        torch.rand(row)
        alone = draws_by_seed(family_of(posterior), SHAPES, [seed])
        for key, values in parts(alone).items():
            assert torch.equal(values[0], parts(every)[key][row]), key
    noise = every.noise
    assert noise is not None
    assert {key: tuple(values.shape) for key, values in noise.items()} == {k: (4, *s) for k, s in SHAPES.items()}
    assert not torch.equal(noise["trunk"][0], noise["trunk"][1])
    assert {values.dtype for values in parts(every).values()} == {torch.float32}


@each_posterior
def test_the_global_state_is_not_touched(posterior: str) -> None:
    state = torch.get_rng_state()
    draws_by_seed(family_of(posterior), SHAPES, [1, 2, 3])
    EpisodeDraws(family_of(posterior), SHAPES)([4, 5], CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("posterior", ["mean_field", "low_rank"])
def test_draws_of_neighbouring_seeds_are_independent_standard_normal_numbers(posterior: str) -> None:
    count = 20_000
    draws = draws_by_seed(family_of(posterior), {"a": (2, 2), "b": (3,)}, list(range(count)))
    values = torch.cat([x.flatten(1) for x in parts(draws).values()], 1).double()
    products = values[:, :, None] * values[:, None, :]
    identity = torch.eye(values.shape[1], dtype=torch.float64)
    assert (values.mean(0).abs() < SIGMAS / math.sqrt(count)).all()
    assert ((products.mean(0) - identity).abs() < SIGMAS * products.std(0) / math.sqrt(count)).all()
    lagged = (values[1:] * values[:-1]).mean(0)
    assert (lagged.abs() < SIGMAS / math.sqrt(count - 1)).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_members_are_equally_likely(size: int) -> None:
    count = 10_000
    index = draws_by_seed(family_of("members", size), {}, list(range(count))).index
    assert torch.equal(index.sort(-1).values, torch.eye(size)[-1].expand(count, size))  # one-hot
    error = math.sqrt((1 / size) * (1 - 1 / size) / count)
    assert ((index.double().mean(0) - 1 / size).abs() <= SIGMAS * error).all()
    again = (index[1:] * index[:-1]).sum(-1).double().mean()  # neighbouring seeds choose independently
    assert abs(again - 1 / size) <= SIGMAS * error


@each_posterior
def test_a_layer_takes_draws_by_its_key(posterior: str) -> None:
    layer = BayesLinear(5, 3, PosteriorSettings(posterior, 4))
    layer.key = "heads.1"
    x = torch.randn(1, 2, 5)
    draws = draws_by_seed(family_of(posterior), SHAPES, [1, 2])
    others = {key: torch.zeros_like(values) for key, values in (draws.noise or {}).items() if key != layer.key}
    with torch.no_grad():
        outputs = layer(x, draws)
        assert torch.equal(layer(x, Draws(draws.index, {**(draws.noise or {}), **others})), outputs)
        assert not torch.equal(layer(x, Draws(draws.index, others)), outputs)
        close = layer(x, Draws(draws.index, {}))
    assert torch.equal(layer(x, Draws(draws.index, others)), close)


# ------------------------------------------------------------------ draws for learning
@pytest.mark.parametrize("posterior", ["mean_field", "low_rank"])
def test_index_draws_are_fresh(posterior: str) -> None:
    first, second = (family_of(posterior).fresh_draws(5000, CPU) for _ in range(2))
    assert first.noise is None
    assert first.index.shape == (5000, family_of(posterior).index_size)
    assert first.size == 5000
    if posterior == "low_rank":
        assert not torch.equal(first.index, second.index)
        assert (first.index.mean(0).abs() < SIGMAS / math.sqrt(5000)).all()
        assert ((first.index.var(0) - 1).abs() < SIGMAS * math.sqrt(2 / 4999)).all()


def test_index_draws_of_members_are_all_of_them() -> None:
    for count in (0, 1, 9):
        draws = family_of("members", 6).fresh_draws(count, CPU)
        assert torch.equal(draws.index, torch.eye(6))
        assert draws.noise is None


# ------------------------------------------------------------------ draws of episodes
@each_posterior
def test_episode_draws_remake_only_what_changed(posterior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def spy(family: PosteriorFamily, shapes: dict[str, tuple[int, ...]], seeds: list[int]) -> Draws:
        asked.append(list(seeds))
        return draws_by_seed(family, shapes, seeds)

    monkeypatch.setattr(module, "draws_by_seed", spy)
    episodes = EpisodeDraws(family_of(posterior), SHAPES)
    history = [[1, 2, 3], [1, 2, 3], [1, 9, 3], [4, 9, 5], [9, 4, 5], [9, 4], [9, 4], [1, 2, 3]]
    for seeds in history:
        assert_same(episodes(seeds, CPU), draws_by_seed(family_of(posterior), SHAPES, seeds))
    assert asked == [[1, 2, 3], [9], [4, 5], [9, 4], [9, 4], [1, 2, 3]]


def test_a_list_that_the_caller_changes_is_not_what_was_seen() -> None:
    episodes, seeds = EpisodeDraws(family_of("low_rank"), SHAPES), [1, 2]
    episodes(seeds, CPU)
    seeds[1] = 5
    assert_same(episodes(seeds, CPU), draws_by_seed(family_of("low_rank"), SHAPES, seeds))


@each_posterior
def test_episode_draws_depend_on_the_seeds_alone(posterior: str) -> None:
    first, second = (EpisodeDraws(family_of(posterior), SHAPES) for _ in range(2))
    for seeds in ([5, 6], [7, 6], [8, 6]):
        first(seeds, CPU)
    second([8, 1], CPU)
    assert_same(first([8, 2], CPU), second([8, 2], CPU))
    first([3, 3], CPU)
    assert_same(second([8, 2], CPU), draws_by_seed(family_of(posterior), SHAPES, [8, 2]))
    rows = list(pairwise(parts(first([3, 3], CPU))["trunk"]))
    assert all(torch.equal(a, b) for a, b in rows)


def test_episode_draws_follow_their_module_to_another_device() -> None:
    episodes, elsewhere = EpisodeDraws(family_of("low_rank"), SHAPES), torch.device("meta")
    episodes([1, 2], CPU)
    for seeds in ([1, 2], [1, 3], [4]):
        assert {values.device for values in parts(episodes(seeds, elsewhere)).values()} == {elsewhere}


def test_episode_draws_made_in_inference_can_be_renewed_in_training() -> None:
    episodes = EpisodeDraws(family_of("low_rank"), SHAPES)
    with torch.inference_mode():
        episodes([1, 2], CPU)
    assert_same(episodes([1, 3], CPU), draws_by_seed(family_of("low_rank"), SHAPES, [1, 3]))


def test_to_device_keeps_the_draws() -> None:
    draws = draws_by_seed(family_of("low_rank"), SHAPES, [1, 2])
    assert_same(to_device(draws, CPU), draws)
    assert to_device(Draws(draws.index), CPU).noise is None
    assert to_device(draws, torch.device("meta")).index.device.type == "meta"
