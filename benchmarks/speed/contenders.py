"""Contenders of `libraries`, `update_rate` and `scaling`: this library, Stable-Baselines3's DQN and TorchRL's DQN.

Each measurement learns Breakout in a process of its own for a while.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, quartiles

GAME = "ALE/Breakout-v5"
HIDDEN, BATCH, SKIP, STACK, STEPS_PER_UPDATE = 512, 32, 4, 4, 4
STICKY, EPSILON, CAPACITY, PREFILL, WARM_UP = 0.25, 0.1, 50_000, 1_000, 400  # steps
FRAMES_PER_BATCH = 400  # agent steps between TorchRL's rounds of updates, as in its script; or as few more as fit
NEEDS = {
    "sb3": ("stable_baselines3", "cv2"),
    "torchrl": ("torchrl", "tensordict", "cv2"),
    "bayes_rl": (),
    "bayes_rl_plain": (),
}


@dataclass(frozen=True)
class Setting:
    """Library, environments and options of one measurement.

    Args:
        arm: a key of `NEEDS`.
        num_envs: number of environments.
        threads: threads of PyTorch.
        options: further options of the library; for this library, words of its command line.
        part: part of the benchmark that the measurement belongs to.
        steps_per_update: agent steps between updates.
    """

    arm: str
    num_envs: int
    threads: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    part: str = "matched"
    steps_per_update: int = STEPS_PER_UPDATE

    @property
    def name(self) -> str:
        """All fields but the part and the updates, in words."""
        return ", ".join(
            [f"{self.num_envs} envs", f"{self.threads} threads", *map("{0[0]} {0[1]}".format, self.options.items())]
        )


class Clock:
    """Counter of steps and updates between the end of the warm-up and the end of the measured time.

    Args:
        seconds: measured time.
        begin: agent steps before the measured time, random steps included.
        steps_per_update: requested agent steps between updates.
    """

    def __init__(
        self, seconds: float, begin: int = PREFILL + WARM_UP, steps_per_update: int = STEPS_PER_UPDATE
    ) -> None:
        self.seconds, self.begin, self.steps_per_update = seconds, begin, steps_per_update
        self._began: tuple[float, int, int] | None = None
        self.elapsed, self.steps, self.updates = 0.0, 0, 0

    def tick(self, steps: int, updates: int) -> bool:
        """Return whether the time is over, given all agent steps (random steps included) and updates so far."""
        now = time.perf_counter()
        if self._began is None:
            if steps >= self.begin:
                self._began = now, steps, updates
            return False
        began, steps_before, updates_before = self._began
        self.elapsed, self.steps, self.updates = now - began, steps - steps_before, updates - updates_before
        return self.elapsed >= self.seconds

    def result(self) -> dict[str, float]:
        """Return the rates.

        Raises:
            RuntimeError: if the number of updates differs from the requested one by more than 5 %.
        """
        ratio = self.updates * self.steps_per_update / self.steps
        if not 0.95 < ratio < 1.05:
            raise RuntimeError(f"{self.updates} updates in {self.steps} agent steps")
        return {
            "frames_per_second": round(SKIP * self.steps / self.elapsed, 1),
            "updates_per_second": round(self.updates / self.elapsed, 2),
            "agent_steps": self.steps,
            "seconds": round(self.elapsed, 2),
        }


def peak_mib() -> float:
    """Return the peak memory of this process and of its child processes, with the files mapped into them."""

    def family(pid: str) -> Iterable[str]:
        yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from family(child)

    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in family(str(os.getpid()))]
    peaks = [line.split()[1] for status in statuses for line in status.splitlines() if line.startswith("VmHWM")]
    return round(sum(map(int, peaks)) / 1024, 1)


def encoder_size(network: nn.Module) -> int:
    """Count parameters of the convolutions and of the layer of 512 features, without normalisation and heads."""
    linear = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == HIDDEN]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    return sum(p.numel() for layer in (*convolutions, *linear) for p in layer.parameters())


def facts(network: nn.Module, replay_bytes: int) -> dict[str, float]:
    """Return the memory and the size of the encoder at the end of a measurement."""
    return {
        "peak_mib": peak_mib(),
        "replay_mib": round(replay_bytes / 2**20, 1),
        "encoder_parameters": encoder_size(network),
    }


def sb3_schedule(steps_per_update: int, num_envs: int) -> dict[str, Any]:
    """Return the arguments of Stable-Baselines3's DQN for one update per `steps_per_update` agent steps.

    Raises:
        ValueError: if it would learn at another rate, because it learns between steps of all environments.
    """
    if steps_per_update < 1 or (steps_per_update % num_envs and num_envs % steps_per_update):
        raise ValueError(
            f"{steps_per_update} agent steps per update and {num_envs} environments: none divides the other"
        )
    vector_steps = max(1, steps_per_update // num_envs)
    return {"train_freq": (vector_steps, "step"), "gradient_steps": vector_steps * num_envs // steps_per_update}


def run_sb3(setting: Setting, clock: Clock, folder: str) -> dict[str, float]:
    """Measure Stable-Baselines3's DQN."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return not clock.tick(self.num_timesteps, self.model._n_updates)

    envs = make_atari_env(
        GAME,
        setting.num_envs,
        seed=1,
        env_kwargs={"frameskip": 1, "repeat_action_probability": STICKY},
        wrapper_kwargs={"noop_max": 0},
        vec_env_cls=SubprocVecEnv if setting.options.get("vec_env") == "subproc" else DummyVecEnv,
    )
    slim = setting.options.get("optimize_memory_usage", False)
    model = DQN(
        "CnnPolicy",
        VecFrameStack(envs, STACK),
        buffer_size=CAPACITY,
        learning_starts=PREFILL,
        batch_size=BATCH,
        **sb3_schedule(setting.steps_per_update, setting.num_envs),
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        optimize_memory_usage=slim,
        replay_buffer_kwargs={"handle_timeout_termination": False} if slim else None,
        tensorboard_log=folder,
        seed=1,
        device="cpu",
    )
    model.learn(10**9, Watch())
    replay: Any = model.replay_buffer
    screens = [replay.observations] if slim else [replay.observations, replay.next_observations]
    result = facts(model.q_net, sum(array.nbytes for array in screens))
    envs.close()
    return result


def torchrl_env() -> Any:
    """Return one environment for TorchRL."""
    import ale_py
    import gymnasium as gym
    from torchrl.envs import EndOfLifeTransform, GymWrapper, SignTransform, TransformedEnv

    gym.register_envs(ale_py)
    game = gym.make(GAME, frameskip=1, repeat_action_probability=STICKY)
    game = gym.wrappers.AtariPreprocessing(game, noop_max=0, frame_skip=SKIP)
    game = gym.wrappers.FrameStackObservation(game, STACK, padding_type="zero")
    env = TransformedEnv(GymWrapper(game, categorical_action_encoding=True))
    env.append_transform(EndOfLifeTransform())
    env.append_transform(SignTransform(in_keys=["reward"]))
    return env


class Scale(nn.Module):
    """Layer that scales uint8 pixels to [0, 1]."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale pixels of any shape."""
        return pixels.float() / 255


def torchrl_network(modules: Any, pixels: torch.Tensor, num_actions: int) -> nn.Module:
    """Return the network of TorchRL's script, made of its `modules`, for an observation like `pixels`."""
    shapes = {"num_cells": [32, 64, 64], "kernel_sizes": [8, 4, 3], "strides": [4, 2, 1]}
    convolutions = modules.ConvNet(**shapes, activation_class=nn.ReLU)
    sizes = {"in_features": convolutions(pixels).shape[-1], "out_features": num_actions, "num_cells": [HIDDEN]}
    return nn.Sequential(Scale(), convolutions, modules.MLP(**sizes, activation_class=nn.ReLU))


def run_torchrl(setting: Setting, clock: Clock, folder: str) -> dict[str, float]:
    """Measure TorchRL's DQN: its collector, replay, loss and target updates in the loop of its own script."""
    import torchrl.modules
    from tensordict.nn import TensorDictSequential
    from torchrl.collectors import AsyncCollector, Collector
    from torchrl.data import Composite, LazyMemmapStorage, TensorDictReplayBuffer
    from torchrl.envs import ParallelEnv, SerialEnv
    from torchrl.modules import EGreedyModule, QValueActor
    from torchrl.objectives import DQNLoss, HardUpdate

    threads = {"num_threads": setting.threads} if setting.options.get("env") == "parallel" else {}
    several = ParallelEnv if setting.options.get("env") == "parallel" else SerialEnv
    make = functools.partial(several, setting.num_envs, torchrl_env, **threads) if setting.num_envs > 1 else torchrl_env
    proof = torchrl_env()
    pixels, spec = torch.zeros(proof.observation_spec["observation"].shape), proof.action_spec
    proof.close()
    network = torchrl_network(torchrl.modules, pixels, spec.space.n)
    actor = QValueActor(network, spec=Composite(action=spec), in_keys=["observation"])
    greedy = EGreedyModule(spec=actor.spec, eps_init=EPSILON, eps_end=EPSILON, annealing_num_steps=1)
    storage = LazyMemmapStorage(CAPACITY, scratch_dir=folder)
    replay = TensorDictReplayBuffer(storage=storage, batch_size=BATCH)
    loss_module = DQNLoss(actor, loss_function="l2", delay_value=True)
    loss_module.set_keys(done="end-of-life", terminated="end-of-life")
    loss_module.make_value_estimator(gamma=0.99)
    target = HardUpdate(loss_module, value_network_update_interval=10_000)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-4)

    def update(batch: Any) -> torch.Tensor:
        loss = loss_module(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(loss_module.parameters()), 10)
        optimizer.step()
        target.step()
        return loss.detach()

    compiled = setting.options.get("compile", False)
    learn: Callable[[Any], torch.Tensor] = torch.compile(update) if compiled else update
    collector = (AsyncCollector if setting.options.get("collector") == "async" else Collector)(
        make if setting.num_envs == 1 or setting.options.get("collector") == "async" else make(),
        TensorDictSequential(actor, greedy),
        frames_per_batch=-(-FRAMES_PER_BATCH // setting.steps_per_update) * setting.steps_per_update,
        total_frames=-1,
        init_random_frames=PREFILL,
        compile_policy=compiled,
    )
    steps = updates = 0
    for data in collector:
        steps += data.numel()
        replay.extend(data.reshape(-1))
        if steps < PREFILL:
            continue
        for _ in range(data.numel() // setting.steps_per_update):
            learn(replay.sample())
            updates += 1
        collector.update_policy_weights_()
        if clock.tick(steps, updates):
            break
    # Maps of the storage grow with what is written; all of it is on disk from the start.
    result = facts(network, sum(tensor.nbytes for tensor in storage._storage.values(True, True)))
    collector.shutdown()
    return result


class Done(Exception):  # noqa: N818  (no error)
    """Signal that the measured time is over."""


class Watch(Callback):
    """Callback that ends a fit of this library when the measured time is over.

    Attributes:
        clock: clock of the only run in this process.
        facts: memory and size of the encoder of this run.
    """

    clock: Clock
    facts: dict[str, float]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """End the fit if the time is over."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if Watch.clock.tick(data.stream.frames // SKIP, trainer.global_step):
            Watch.facts = facts(pl_module.twin.trunks[0], data.stream.replay.nbytes)  # type: ignore[union-attr,index,arg-type]
            raise Done


def run_bayes_rl(
    setting: Setting, clock: Clock, folder: str, watch: str = "benchmarks.speed.contenders.Watch"
) -> dict[str, float]:
    """Measure this library by its command line. `watch` is the class path of the callback that ends it."""
    Watch.clock = clock
    settings = {
        "trainer.default_root_dir": folder,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.limit_val_batches": 0,
        "trainer.precision": "32-true",
        "trainer.callbacks+": json.dumps({"class_path": watch}),
        "data.env": GAME,
        "data.num_envs": setting.num_envs,
        "data.rules.sticky_actions": STICKY,
        "data.rules.auto_fire": "true",
        "data.replay.capacity": CAPACITY,
        "data.replay.min_size": PREFILL,
        "data.replay.batch_size": BATCH,
        "data.replay.n_step": 1,
        "data.updates_per_step": 1 / setting.steps_per_update,
        "data.epsilon.start": EPSILON,
        "data.epsilon.end": EPSILON,
        "model.network.hidden_dim": HIDDEN,
    }
    if setting.arm == "bayes_rl_plain":
        settings |= {"model.network.bayesian": "none", "model.network.prior_function_scale": 0}
        settings |= {"model.exploration": "epsilon", "model.objective.update_pairs": "random"}
    settings |= setting.options
    words = [f"--{key}={value}" for key, value in settings.items()]
    sys.argv = ["cli.py", "fit", "--config", str(ROOT / "configs/breakout.yaml"), *words]
    from bayes_rl.cli import app as cli

    try:
        cli.run()
    except Done:
        return Watch.facts
    raise RuntimeError("the run ended before its measurement did")


RUNNERS = {"sb3": run_sb3, "torchrl": run_torchrl, "bayes_rl": run_bayes_rl, "bayes_rl_plain": run_bayes_rl}


def setting_of(cell: Cell) -> Setting:
    """Return the setting of a cell or a row."""
    return Setting(**{field.name: cell[field.name] for field in fields(Setting)})


def measure(cell: Cell, options: Options) -> Row:
    """Measure the setting of one cell in this process."""
    setting = setting_of(cell)
    clock = Clock(options.seconds, steps_per_update=setting.steps_per_update)
    with tempfile.TemporaryDirectory() as folder:
        known = RUNNERS[setting.arm](setting, clock, folder)
    return clock.result() | known


def installed(arms: Iterable[str]) -> list[str]:
    """Return those arms whose packages are installed, and print a line for every other one."""
    complete = []
    for arm in arms:
        missing = [name for name in NEEDS[arm] if importlib.util.find_spec(name) is None]
        if missing:
            names = ", ".join(missing)
            print(f"{arm} is left out: {names} not installed; pip install --editable '.[bench]'", file=sys.stderr)
        else:
            complete.append(arm)
    return complete


def packages() -> dict[str, str]:
    """Return the versions of the compared libraries and of the packages below them, where installed."""
    names = ("stable-baselines3", "torchrl", "tensordict", "opencv-python-headless", "ale-py", "pytorch-lightning")
    versions = {distribution.name: distribution.version for distribution in distributions()}
    known = {name.lower().replace("_", "-"): number for name, number in versions.items()}
    return {name: known[name] for name in names if name in known}


def different_encoders(rows: list[Row]) -> list[str]:
    """Return a fault if the measured encoders do not have equally many parameters."""
    sizes = {row["encoder_parameters"] for row in rows}
    return [f"the encoders are not the same: {sorted(sizes)} parameters"] if len(sizes) > 1 else []


# ------------------------------------------------------------------------------------------------ comparisons
def turns(settings: Iterable[Setting], rounds: int, arms: Iterable[str]) -> list[Cell]:
    """Return a cell for each round and each setting of the given arms; settings take turns within a round."""
    return [
        asdict(setting) | {"round": round} for round in range(rounds) for setting in settings if setting.arm in arms
    ]


def frames_per_second(rows: list[Row]) -> list[float]:
    """Return the quartiles of the rates of some rows."""
    return quartiles([row["frames_per_second"] for row in rows])


def ratio_to_sb3(rows: list[Row], sb3_rows: list[Row]) -> list[float] | None:
    """Return the quartiles of the ratios to Stable-Baselines3's rates, each within a round.

    Args:
        rows: one row of each round.
        sb3_rows: rows of Stable-Baselines3 to compare with.

    Returns:
        Three quartiles, or None if no round has a row of Stable-Baselines3.
    """
    sb3_rates = {row["round"]: row["frames_per_second"] for row in sb3_rows}
    ratios = [row["frames_per_second"] / sb3_rates[row["round"]] for row in rows if row["round"] in sb3_rates]
    return quartiles(ratios) if ratios else None


def rate_and_ratio(line: Row) -> tuple[str, str]:
    """Return the rate and the ratio to Stable-Baselines3 in a line of a summary, as Markdown."""
    low, middle, high = line["frames_per_second"]
    rate = f"**{middle:.0f}** ({low:.0f} to {high:.0f})"
    if line["ratio_to_sb3"] is None:
        return rate, "-"
    low, middle, high = line["ratio_to_sb3"]
    return rate, f"**{middle:.2f}** ({low:.2f} to {high:.2f})"


def keep_installed(options: Options) -> None:
    """Leave out the arms that are not installed."""
    options.arms = installed(options.arms)


def comparison(**parts: Any) -> Benchmark:
    """Return a benchmark that measures cells of `turns`, given the parts in which benchmarks differ."""
    return Benchmark(
        measure=measure,
        prepare=keep_installed,
        check=different_encoders,
        shared={"rounds": 3, "seconds": 6},
        facts=lambda options: {"packages": packages()},
        child=True,
        **parts,
    )
