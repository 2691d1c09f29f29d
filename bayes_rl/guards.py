"""What keeps a run from harm: updates that are not finite, environments that fail; and what is said of either."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from bayes_rl.types import ConfigError, RunError
from bayes_rl.vector import UNSEEDED, BoolArray, Envs, Step

SKIPS_IN_A_ROW = 5
"""Updates left out one after the other at which a run stops: it would not get out of that by itself."""


class UpdateGuard:
    """Leaves out updates whose loss or gradient is not finite, and counts them.

    A fused optimizer on a GPU is told by its `found_inf`: weights, averages and step counters stay as they are, and
    nothing waits. Of another one the gradients are taken away. Under a gradient scaler, which leaves out updates
    itself and finds its scale by it, only losses are counted.

    Attributes:
        skipped: updates left out in all.
        in_a_row: the newest ones of them, without any between.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._parts: dict[str, Tensor] = {}
        self._verdict: tuple[Tensor, Any] | None = None  # of the update before, under way from the device

    def note(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Remember a minibatch's loss, and the parts to name if it is not finite, for the optimizer's step."""
        self._losses.append(loss.detach())
        self._parts = {name: part.detach() for name, part in parts.items()}

    def check(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        scaled: bool = False,
        more: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        """Before a step of the optimizer: have it left out unless all is finite.

        Args:
            optimizer: about to take a step along gradients that are there already.
            network: whose parameters it trains, for their names.
            scaled: whether a gradient scaler stands between.
            more: finds further parts of the loss, to be named in the error.

        Raises:
            RunError: for the `SKIPS_IN_A_ROW`th update left out in a row, naming what is not finite.
        """
        self.settle()
        fused = bool(optimizer.defaults.get("fused"))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        values = [p.grad for p in parameters if p.grad is not None and not scaled] + self._losses
        self._losses = []
        if not values:
            return
        found = torch.zeros((), device=values[0].device)
        # The gradient scaler's own test: everything in one pass, times 1.
        torch._amp_foreach_non_finite_check_and_unscale_(values, found, torch.ones_like(found))
        told = fused and found.is_cuda and not scaled
        if told:
            optimizer.found_inf = found  # type: ignore[attr-defined]
        if (told or scaled) and found.is_cuda and not self.in_a_row:
            self._ask_later(found)  # all was well: it is enough to hear of it at the next update
            return
        bad = bool(found)
        self._count(bad, network, more)
        if bad and not (told or scaled):
            for parameter in parameters:
                parameter.grad = None

    def _ask_later(self, found: Tensor) -> None:
        host = torch.empty((), pin_memory=True)
        host.copy_(found, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._verdict = host, arrived

    def settle(self) -> None:
        """Count the update before, if that was put off; for it the device is waited for."""
        if self._verdict is not None:
            (host, arrived), self._verdict = self._verdict, None
            arrived.synchronize()
            self._count(bool(host))

    def _count(self, bad: bool, network: nn.Module | None = None, more: Callable[[], dict[str, Tensor]] = dict) -> None:
        self.in_a_row = self.in_a_row + 1 if bad else 0
        self.skipped += bad
        if network is not None and self.in_a_row >= SKIPS_IN_A_ROW:
            raise RunError(f"{self.in_a_row} updates in a row were left out: {self._cause(network, more())}")

    def _cause(self, network: nn.Module, more: dict[str, Tensor]) -> str:
        """What is not finite: parts of the loss, else the first parameter whose gradient is not."""
        parts = {name: float(value) for name, value in (self._parts | more).items()}
        if named := [f"{name} is {value:g}" for name, value in parts.items() if not np.isfinite(value)]:
            return ", ".join(named)
        gradients = ((name, p.grad) for name, p in network.named_parameters())
        bad = (name for name, grad in gradients if grad is not None and not grad.isfinite().all())
        name = next(bad, None)
        return "the loss is not finite" if name is None else f"the gradient of {name} is not finite, the loss is"


class FailedEnvError(RunError):
    """An environment that raised, or returned what is not finite."""


class WatchedEnvs(Envs):
    """Environments whose failures say which of them failed, and how to get there again.

    A reward or observation that is not finite counts as one.

    Args:
        envs: to be watched, not yet reset.
    """

    def __init__(self, envs: Envs) -> None:
        self.envs = envs
        self.name, self.num_envs, self.num_actions = envs.name, envs.num_envs, envs.num_actions
        self.screen_shape, self.screen_dtype = envs.screen_shape, envs.screen_dtype
        self.pixel_scale, self.num_categories = envs.pixel_scale, envs.num_categories
        self.steps_per_seed = envs.steps_per_seed
        self._seeds = np.zeros(self.num_envs, np.int64)  # of the last seeded resets
        self._actions = np.zeros(self.num_envs, np.int64)  # since these
        self._over = np.zeros(self.num_envs, bool)  # whose next step is no action, but the next episode's beginning
        self._floating = np.issubdtype(self.screen_dtype, np.floating)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["envs"], name)  # what only these environments have

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        given = np.zeros_like(self._seeds)
        given[mask] = seeds
        seeded = mask & (given != UNSEEDED)
        self._seeds[seeded], self._actions[seeded] = given[seeded], 0
        self._over &= ~mask
        screens, lives = self._watched(lambda: self.envs.reset(seeds, mask))
        self._check_screens(screens, mask)
        return screens, lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        played: NDArray[np.int64] = self._watched(lambda: self.envs.send(actions))
        self._actions += ~self._over  # now that the games are under way
        return played

    def recv(self) -> Step:
        step: Step = self._watched(self.envs.recv)
        self._over = step.terminated | step.truncated
        if not np.isfinite(step.rewards).all():
            env = int(np.argmin(np.isfinite(step.rewards)))
            raise FailedEnvError(f"{self._place(env)} returned the reward {step.rewards[env]:g}")
        self._check_screens(step.screens, True)
        return step

    def close(self) -> None:
        self.envs.close()

    def _check_screens(self, screens: NDArray[Any], mask: BoolArray | bool) -> None:
        if self._floating and not np.isfinite(screens).all():
            bad = ~np.isfinite(screens).reshape(self.num_envs, -1).all(1) & mask
            if bad.any():
                raise FailedEnvError(f"{self._place(int(np.argmax(bad)))} returned an observation that is not finite")

    def _watched(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (ConfigError, RunError):
            raise
        except Exception as error:
            env = getattr(error, "environment", 0 if self.num_envs == 1 else None)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise FailedEnvError(f"{self._place(env)} raised {text}") from error

    def _place(self, env: int | None) -> str:
        """Which environment, or all of them if nobody knows, its seed, and the actions since its reset with that."""
        of = f" of {self.name}" if self.name else ""
        if env is None:
            which, seeds, actions = f"one of environments 0..{self.num_envs - 1}", self._seeds, self._actions
            return f"{which}{of} (seeds {_words(seeds)}; {_words(actions)} actions since)"
        return f"environment {env}{of} (seed {self._seeds[env]}, {self._actions[env]} actions since)"


def _words(numbers: Iterable[Any]) -> str:
    return ", ".join(str(number) for number in numbers)


class ErrorLog(Callback):
    """Writes the whole stack trace of what ended a run to `error.log`, and says where that and the state are.

    If an environment failed in training, what was learned until then is saved to `checkpoints/error.ckpt`. A run goes
    on from there with new games: the old ones would fail again.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, RunError):
            return
        path = self.directory / "error.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(exception)), encoding="utf-8")
        exception.remark = f"; {self._state(trainer, exception)}, the stack trace is in {path}"

    def _state(self, trainer: pl.Trainer, exception: RunError) -> str:
        last, saved = (self.directory / "checkpoints" / f"{name}.ckpt" for name in ("last", "error"))
        if isinstance(exception, FailedEnvError) and trainer.training and trainer.global_step:
            trainer.save_checkpoint(saved)
            return f"go on with new games by --ckpt_path {saved} --data.refill_replay true"
        return f"{last} is from before" if last.is_file() else "no checkpoint was saved yet"
