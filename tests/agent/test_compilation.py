"""A captured update is the plain one: values, gradients, weights after training, names; here without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_rl.agent import compilation as capture
from bayes_rl.agent.compilation import MODES, check_capture, compile_update
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.bayes.ops import add_noise
from bayes_rl.cli import app as cli
from bayes_rl.errors import ConfigError
from tests.helpers.agents import Stream, fit, make_batch, make_module, make_trainer
from tests.helpers.options import title
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore::DeprecationWarning:torch.*")

ROOT = Path(cli.__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FAMILIES: list[dict[str, Any]] = [
    {},
    {
        "network": {"bayesian": "all", "shared_trunk": False},
        "likelihood": {"family": "learned_gaussian"},
        "objective": {"actor_loss": "dpg"},
    },
    {
        "posterior": {"family": "members"},
        "network": {"prior_function_scale": 1.0},
        "likelihood": {"family": "hl_gauss"},
        "objective": {"entropy_weight": 0.1},
    },
    {"posterior": {"family": "low_rank"}, "objective": {"target": "other", "bootstrap": "greedy"}},
    {"network": {"bayesian": "none"}, "likelihood": {"family": "two_hot"}},
]


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured by torch, forward and backward, but executed by its own kernels: in seconds, to the same bits."""
    torch._dynamo.reset()
    monkeypatch.setattr(capture, "BACKEND", "aot_eager")


def update(module: VariationalActorCritic, size: int = 6) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one update, under fixed noise."""
    torch.manual_seed(5)
    batch = make_batch(size)
    module.trainer = make_trainer()
    module.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def both(**settings: Any) -> list[VariationalActorCritic]:
    """The same agent without capture and with it."""
    modules = []
    for mode in ("none", "default"):
        torch.manual_seed(1)
        modules.append(make_module(settings, compile=mode))
    return modules


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("settings", slow_but(FAMILIES, "defaults", id=title))
def test_loss_and_gradients_are_those_without_capture(settings: dict[str, Any]) -> None:
    """The second update too, by the same graph; `fullgraph` makes any question on the way an error."""
    modules = both(**settings)
    for _ in range(2):
        (loss, gradients), (captured_loss, captured_gradients) = map(update, modules)
        torch.testing.assert_close(captured_loss, loss, rtol=1e-6, atol=1e-7)
        assert gradients.keys() == captured_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(captured_gradients[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        pytest.param("32-true", "aot_eager", marks=pytest.mark.slow),
        pytest.param("bf16-mixed", "eager", marks=pytest.mark.slow),
    ],
)
def test_training_ends_in_the_same_weights_under_the_same_names(
    precision: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one pair at a time, with a number of data that grows, and with a consolidation in between.

    In eight bits a gradient of nothing but rounding has another sign, which Adam makes a whole step of: there by the
    backend that does nothing but collect the operations.
    """
    monkeypatch.setattr(capture, "BACKEND", backend)
    settings = {
        "objective": {"update_pairs": "random"},
        "consolidation": {"method": "ewc", "consolidate_every": 3, "fisher_samples": 8},
    }
    plain, graph = both(**settings)
    for module in (plain, graph):
        torch.manual_seed(2)
        batches = [make_batch(num_data=1000 + i) for i in range(5)]
        torch.manual_seed(3)
        fit(module, batches, precision=precision, log_every=2)
    assert list(plain.state_dict()) == list(graph.state_dict())
    assert not any("_orig_mod" in key for key in graph.state_dict())
    for (name, one), other in zip(plain.named_parameters(), graph.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("_no_compiler")
def test_a_growing_replay_and_further_updates_capture_nothing_anew() -> None:
    module = both()[1]
    counted: list[int] = []
    torch._dynamo.utils.counters.clear()
    stats = torch._dynamo.utils.counters["stats"]

    class Counting(Stream):
        def __iter__(self) -> Any:
            for batch in self.batches:
                yield batch
                counted.append(stats["unique_graphs"])

    make_trainer().fit(module, Counting([make_batch(num_data=100 + i) for i in range(6)]), Stream([]))
    assert counted == [1] * 5  # nobody asks after the last


def test_which_number_goes_where_does_not_depend_on_strides() -> None:
    """A compiler lays tensors out as it likes."""
    mean, variance = torch.randn(2, 5, 7, 3)
    drawn = []
    for layout in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        back = [layout.index(axis) for axis in range(3)]
        torch.manual_seed(3)
        laid_out = mean.permute(layout).contiguous().permute(back)
        drawn.append(add_noise(laid_out, variance.square()))
    assert torch.equal(drawn[1], drawn[0])
    assert torch.equal(drawn[2], drawn[0])


@pytest.mark.slow
@pytest.mark.parametrize("settings", FAMILIES[:3], ids=["mean field", "all", "members"])
def test_compiled_code_has_the_same_loss_and_gradients(settings: dict[str, Any]) -> None:
    """By the real compiler: sums in another order, the same random numbers."""
    torch._dynamo.reset()
    (loss, gradients), (compiled_loss, compiled_gradients) = map(update, both(**settings))
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == compiled_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the option
def test_without_capture_the_function_itself_is_called() -> None:
    assert compile_update(max, "none") is max


def test_what_a_recorded_graph_returns_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within structures, and with its gradient: the next replay writes to the same memory."""
    monkeypatch.setattr(capture, "BACKEND", "eager")
    x = torch.ones(3, requires_grad=True)
    one, (two, nothing) = compile_update(lambda x: (x, (x.detach(), None)), "reduce-overhead")(x)
    assert len({y.data_ptr() for y in (x, one, two)}) == 3
    assert nothing is None
    one.sum().backward()
    assert x.grad is not None


def test_what_cannot_be_captured_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    for mode in MODES:
        check_capture(mode, CUDA, 1)
    for mode in ("none", "default"):
        check_capture(mode, CPU, 4)
    for mode in ("reduce-overhead", "cudagraphs"):
        with pytest.raises(ConfigError, match=r"--model.compile: .*device is cpu; use default"):
            check_capture(mode, CPU, 1)
        with pytest.raises(ConfigError, match="accumulate_grad_batches"):
            check_capture(mode, CUDA, 2)
        with pytest.raises(ConfigError, match=r"--model.compile: .*bayesian heads\); use default"):
            check_capture(mode, CUDA, 1, "heads")
        with pytest.raises(ConfigError, match=r"--model.compile: .*low_rank"):
            make_module(compile=mode, posterior={"family": "low_rank"})
        make_module(compile=mode, posterior={"family": "low_rank"}, network={"bayesian": "none"})
    monkeypatch.setattr("shutil.which", lambda _: None)
    for device, use in ((CPU, "none"), (CUDA, "cudagraphs")):
        check_capture("none", device, 1)
        with pytest.raises(ConfigError, match=f"needs a compiler .* use {use}"):
            check_capture("default", device, 1)
    check_capture("cudagraphs", CUDA, 1)
    with pytest.raises(ConfigError, match="nearest: 'default'"):
        make_module(compile="defaul")


@pytest.mark.slow
@pytest.mark.usefixtures("_no_compiler")
def test_a_run_may_go_on_with_another_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how things are computed, not what: a checkpoint binds nobody to it."""
    monkeypatch.chdir(tmp_path)
    tiny = [
        *("fit", "--config", str(ROOT / "tests/configs/cartpole.yaml"), "--name=game", "--model.network.hidden_dim=8"),
        *("--data.frames_per_epoch=200", "--data.replay.min_size=100", "--data.replay.capacity=500"),
        *("--data.evaluation.games=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]
    for words in (
        [*tiny, "--model.compile=default", "--trainer.max_epochs=1"],
        ["fit", "--ckpt_path=last", "--model.compile=none", "--trainer.max_epochs=2"],
    ):
        monkeypatch.setattr(sys, "argv", ["cli.py", *words])
        run = cli.run()
    assert run.model.hparams["compile"] == "none"
    assert run.trainer.current_epoch == 2
