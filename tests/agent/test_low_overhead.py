"""Lightning's bookkeeping at less cost changes nothing that a run says or computes."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.profilers import PassThroughProfiler, SimpleProfiler
from torch import Tensor, nn

from bayes_rl.agent.low_overhead import NOTHING, UPDATE_HOOKS, LowOverheadModule, NoProfiler, flushed_denormals
from tests.helpers.agents import make_trainer

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

STEPS = 6


class Notes(Logger):
    """Keeps everything that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "notes"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.notes.append((step, dict(metrics)))


class Batches:
    """The same batches in each epoch."""

    def __init__(self) -> None:
        self.batches = torch.randn(STEPS, 3)

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


def learner(base: type[pl.LightningModule]) -> pl.LightningModule:
    """A module on `base` that logs now and then, in every step, and as the mean of an epoch."""

    class Learner(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = (self.weight * batch).square().sum()
            self.log("mean", loss, on_step=False, on_epoch=True)
            self.log("both", 2 * loss, on_step=True, on_epoch=True)
            self.log("always", loss)
            if batch_idx % 3 == 1:
                self.log_dict({"seldom": loss, "counted": float(batch_idx)})
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    return Learner()


def trained(
    base: type[pl.LightningModule], *callbacks: pl.Callback, **settings: Any
) -> tuple[pl.LightningModule, pl.Trainer, Notes]:
    """Two epochs of six steps."""
    torch.manual_seed(0)
    module, notes = learner(base), Notes()
    trainer = make_trainer(*callbacks, max_epochs=2, logger=notes, log_every=1, **settings)
    trainer.fit(module, Batches())
    return module, trainer, notes


def test_what_is_logged_and_learned_is_what_lightning_alone_logs_and_learns() -> None:
    (lean, trainer, notes), (plain, other, expected) = (
        trained(base) for base in (LowOverheadModule, pl.LightningModule)
    )
    assert torch.equal(lean.weight, plain.weight)
    means = [values for _, values in notes.notes if "mean" in values]
    assert [list(values) for values in means] == [["mean", "both_epoch", "epoch"]] * 2
    assert means == [values for _, values in expected.notes if "mean" in values]
    for name in ("always", "both_step", "seldom", "counted"):
        ours, theirs = ([(step, v[name]) for step, v in n.notes if name in v] for n in (notes, expected))
        steps = [step for step in range(2 * STEPS) if name in ("always", "both_step") or step % 3 == 1]
        assert [step for step, _ in ours] == steps
        assert ours == [point for point in theirs if point[0] in steps]
    assert trainer.callback_metrics.keys() == other.callback_metrics.keys()
    assert all(torch.equal(value, other.callback_metrics[key]) for key, value in trainer.callback_metrics.items())


def test_nothing_is_measured_unless_a_profiler_is_asked_for(tmp_path: Path) -> None:
    assert type(trained(LowOverheadModule)[1].profiler) is NoProfiler  # type: ignore[attr-defined]
    asked = SimpleProfiler(dirpath=tmp_path, filename="times")
    assert trained(LowOverheadModule, profiler=asked)[1].profiler is asked  # type: ignore[attr-defined]
    assert "training_step" in (tmp_path / "fit-times.txt").read_text()
    assert isinstance(NoProfiler(), PassThroughProfiler)
    assert NoProfiler().profile("anything") is NOTHING


class Counts(pl.Callback):
    """Counts the calls of two hooks of an update, and looks at the others in its midst."""

    def __init__(self) -> None:
        self.calls = {"on_train_batch_start": 0, "on_after_backward": 0}
        self.idle: set[str] = set()

    def on_train_batch_start(self, *args: Any) -> None:
        self.calls["on_train_batch_start"] += 1

    def on_after_backward(self, *args: Any) -> None:
        self.calls["on_after_backward"] += 1
        self.idle = {name for name in UPDATE_HOOKS if getattr(self, name) is None}


class Inherits(Counts):
    """Has its hooks from a class between."""


def test_hooks_that_a_callback_has_are_called_and_the_others_are_passed_over_in_fit_alone() -> None:
    callbacks, seen = [Counts(), Inherits()], []
    given = pl.callbacks.LambdaCallback(on_before_zero_grad=lambda *_: seen.append(1))  # a hook of the object's own
    trained(LowOverheadModule, *callbacks, given)
    assert len(seen) == 2 * STEPS
    given.on_before_zero_grad(None, None, None)
    assert len(seen) == 2 * STEPS + 1
    for callback in callbacks:
        assert callback.calls == dict.fromkeys(callback.calls, 2 * STEPS)
        assert callback.idle == set(UPDATE_HOOKS) - callback.calls.keys()
        assert all(callable(getattr(callback, name)) for name in UPDATE_HOOKS)


def test_attributes_are_set_as_in_any_module() -> None:
    module = LowOverheadModule()
    module._current_fx_name = "training_step"
    assert module._current_fx_name == "training_step"
    module.weight, module.part = nn.Parameter(torch.zeros(2)), nn.Linear(2, 3)
    assert [name for name, _ in module.named_parameters()] == ["weight", "part.weight", "part.bias"]
    with pytest.raises(TypeError, match="as parameter 'weight'"):
        module.weight = torch.zeros(2)


# ------------------------------------------------------------------ numbers below 1e-38
TINY = 1e-39
can_flush = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot")


def flushing() -> bool:
    """Whether this thread takes such numbers for zero."""
    return not torch.full((4,), 2e-38).mul(0.1).any()


@can_flush
def test_averages_of_gradients_do_not_get_stuck_below_what_is_fast() -> None:
    """Of a weight whose gradient is zero, within an update alone, however that ends."""

    class Idle(LowOverheadModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.fails = nn.Parameter(torch.ones(3)), False

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            assert flushing()
            if self.fails:
                raise ValueError("on purpose")
            return (0.0 * self.weight * batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.AdamW(self.parameters(), fused=True)
            zero = torch.zeros(3)
            optimizer.state[self.weight] = {"step": torch.ones(()), "exp_avg": zero + TINY, "exp_avg_sq": zero.clone()}
            return optimizer

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            with flushed_denormals():
                super().optimizer_step(*args, **kwargs)

    module = Idle()
    trainer = make_trainer()
    assert not flushing()
    trainer.fit(module, Batches())
    assert not flushing()
    (state,) = trainer.optimizers[0].state.values()
    assert not state["exp_avg"].any()
    module.fails = True
    with pytest.raises(ValueError, match="on purpose"):
        make_trainer().fit(module, Batches())
    assert not flushing()


@can_flush
def test_who_had_them_flushed_before_still_has() -> None:
    try:
        torch.set_flush_denormal(True)
        with flushed_denormals():
            assert flushing()
        assert flushing()
    finally:
        torch.set_flush_denormal(False)
    assert not flushing()


WORKERS = """
import torch
from bayes_rl.agent.low_overhead import flush_denormals_in_workers
torch.set_num_threads(2)
flush_denormals_in_workers()
half = 2**21
products = torch.full((2 * half,), 2e-38) * torch.full((2 * half,), 0.1)
print(*(int(part.view(torch.int32).any()) for part in products.split(half)))
"""


@can_flush
def test_the_other_threads_of_torch_flush_them_from_their_beginning() -> None:
    """This thread, which takes the first half of a product, does not outside of an update."""
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


FAULTS = """
import resource
import torch
from bayes_rl.agent.low_overhead import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees memory by other rules")
def test_memory_that_was_freed_is_used_again_without_asking_the_system_for_pages() -> None:
    """40 MB, more than glibc keeps by itself: 9766 pages each, of 4 KiB or larger ones."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 50  # even in pages of 2 MiB
    assert after < 0.5 * before
