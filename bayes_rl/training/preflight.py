"""Memory, disk space, frames and time that a run needs; a run that cannot fit is refused before its first update."""

from __future__ import annotations

import io
import math
import shutil
import textwrap
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.data.datamodule import ReplayDataModule, limited
from bayes_rl.data.device_replay import copy_bytes
from bayes_rl.data.replay_files import replay_layout
from bayes_rl.errors import check, did_you_mean
from bayes_rl.evaluation.game_metrics import score_names
from bayes_rl.networks.encoders import ENCODERS
from bayes_rl.utils.files import check_disk
from bayes_rl.utils.memory import available_memory

SECONDS, UPDATES = 5.0, 200
"""Least time and updates of a measurement of speed; four times the time is enough for fewer updates."""


SLOWER, FASTER = 1.25, 0.6
"""Times of products in bfloat16 relative to float32, beyond which the other precision is recommended: not every
processor with instructions for bfloat16 gains by them, and others gain much."""


MIB = 2**20


def network_bytes(agent: VariationalActorCritic) -> dict[str, int]:
    """Return the bytes of the networks during learning, by purpose, without activations and minibatches."""
    trained = [p for p in agent.twin.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    return {
        "weights": _size(agent.twin.state_dict().values()),
        "gradients": gradients,
        # Adam has two averages and a counter each. IVON has an average, standard normal noise and precisions, and
        # within an update the means and the noise of the draw.
        "optimizer": (2 if agent.weight_posterior is None else 5) * gradients + 4 * len(trained),
        "moving average": _size(agent.target_twin.state_dict().values()) if agent.target_twin else 0,
        "anchors and Fisher": agent.consolidator.memory_bytes if agent.consolidator else 0,
    }


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _rings(data: ReplayDataModule) -> tuple[int, int, tuple[int, ...], np.dtype[Any]]:
    """Return number of rings, slots of a ring, and shape and type of a screen of one replay."""
    channels, *rest = data.observation_shape
    slots = data.replay_settings.capacity // data.num_envs + data.slack
    return data.num_envs, slots, (channels // data.frame_stack, *rest), data.screen_dtype


def replay_bytes(data: ReplayDataModule) -> int:
    """Return the bytes of one replay, in files or in memory."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in replay_layout(*_rings(data)).values())


def copied_bytes(data: ReplayDataModule) -> int:
    """Return the bytes of the replays' copies in a GPU's memory."""
    return data.replays * copy_bytes(*_rings(data)) if data.replay_settings.device == "cuda" else 0


def checkpoint_bytes(agent: VariationalActorCritic, data: ReplayDataModule) -> int:
    """Return the size of a checkpoint in bytes, by counting what `torch.save` writes.

    Actions since the last seeded resets are not counted.
    """
    trained = [p for p in agent.twin.parameters() if p.requires_grad]
    moments = [(torch.zeros(()), torch.empty_like(p), torch.empty_like(p)) for p in trained]
    stack = np.zeros((data.num_envs, math.prod(data.observation_shape)), data.screen_dtype)
    options = {"model": dict(agent.hparams), "data": dict(data.hparams)}
    counted = _Counter()
    torch.save([agent.state_dict(), moments, torch.from_numpy(stack), torch.get_rng_state(), options], counted)  # type: ignore[arg-type]
    return counted.size


class _Counter(io.RawIOBase):
    """File that counts its bytes and stores none."""

    size = 0

    def write(self, content: Any) -> int:
        """Count the bytes of `content`."""
        length = memoryview(content).nbytes
        self.size += length
        return length


def updates_per_epoch(trainer: pl.Trainer, data: ReplayDataModule) -> int:
    """Return the number of updates of an epoch under the trainer's limit."""
    return limited(data.batches_per_epoch, trainer.limit_train_batches)


def updates_of(trainer: pl.Trainer, data: ReplayDataModule) -> int | None:
    """Return the number of updates of a whole run, or None if only a user ends it."""
    count, epochs, steps = updates_per_epoch(trainer, data), trainer.max_epochs, trainer.max_steps
    updates = epochs * count if epochs is not None and epochs >= 0 else None
    if steps is None or steps < 0:
        return updates
    return steps if updates is None else min(updates, steps)


def frames_of(updates: int, trainer: pl.Trainer, data: ReplayDataModule) -> int:
    """Return the environment frames of a run of `updates` updates, with those collected before learning."""
    epochs = max(1, -(-updates // max(1, updates_per_epoch(trainer, data))))
    prefill = (1 + data.curriculum.visit(epochs - 1)) * data.replay_settings.min_size * data.settings.frame_skip
    return prefill + round(updates * data.settings.frame_skip / data.updates_per_step)


def check_networks(options: dict[str, Any]) -> None:
    """Raise `ConfigError` unless the networks of these arguments of the agent fit into memory; allocate none."""
    with torch.device("meta"):
        agent = VariationalActorCritic(**options)
    parts = network_bytes(agent)
    need = sum(parts[name] for name in ("weights", "moving average", "anchors and Fisher"))
    _check_networks(agent, need, available_memory(), "memory")


def _check_networks(agent: VariationalActorCritic, need: int, free: int, where: str) -> None:
    problem = f"makes networks that need {_mib(need)} of {where}, {_mib(free)} are available"
    check(need < free, "model.network.hidden_dim", agent.hparams.network["hidden_dim"], problem)


def check_intervals(trainer: pl.Trainer, data: ReplayDataModule) -> None:
    """Raise `ConfigError` if a validation is due after more updates than an epoch has."""
    # Lightning's trainer has no such attribute if the interval is a time.
    every, count = getattr(trainer, "val_check_interval", None), updates_per_epoch(trainer, data)
    too_long = isinstance(every, int) and every > count and trainer.check_val_every_n_epoch is not None
    problem = (
        f"is more than the {count} updates of an epoch; nearest: {count}, or --trainer.check_val_every_n_epoch null"
    )
    check(not too_long or not trainer.limit_val_batches, "trainer.val_check_interval", every, problem)


TRAINING_TAGS = (
    *("train/nll", "train/kl", "train/actor_loss", "train/ewc_penalty", "train/elbo_loss", "train/num_data"),
    *("train/temperature", "train/kl_to_nll", "train/ewc_to_nll", "train/q", "train/q_max", "train/td_error"),
    *(
        "train/twin_gap",
        "train/actor_agrees",
        "train/policy_entropy",
        "train/noise_std",
        "train/clamped_targets",
        "train/skipped_updates",
    ),
    *(
        "train/frozen_share",
        "train/epsilon",
        "train/draw_share",
        "train/episodes",
        "train/agent_steps",
        "train/updates",
    ),
    *("train/return_mean", "time/fps", "train/actor_lr", "train/critic_lr", "step"),
)
"""Tags of training that every run logs."""


def logged_tags(agent: VariationalActorCritic, data: ReplayDataModule) -> set[str]:
    """Return the names of all values that a fit logs, which callbacks can monitor."""
    layers = bayesian_layers(agent.twin)
    has_posterior = layers or agent.weight_posterior is not None
    posterior = ("std_mean", "log_var_min", "log_var_max") if has_posterior else ()
    prefixes = [f"val/{name}/" for name in data.curriculum.names] if data.num_tasks > 1 else ["val/"]
    games = data.curriculum.names if data.num_tasks > 1 else [data.game]
    scores = [score_names(game, data.novel_states(task).kinds) for task, game in enumerate(games)]
    return {
        *TRAINING_TAGS,
        *(f"kl/{name}" for name in layers),
        *(f"posterior/{name}" for name in posterior),
        *(f"{prefix}{score}" for prefix, names in zip(prefixes, scores, strict=True) for score in names),
        *(("val/human_normalised",) if data.num_tasks > 1 and all("human_normalised" in x for x in scores) else ()),
    }


def check_monitors(trainer: pl.Trainer, agent: VariationalActorCritic, data: ReplayDataModule) -> None:
    """Raise `ConfigError` if a callback monitors a value that no run logs."""
    all_tags, validates = logged_tags(agent, data), bool(trainer.limit_val_batches)
    logs_training = bool(trainer.log_every_n_steps)  # type: ignore[attr-defined]
    logged = {tag for tag in all_tags if (validates if tag.startswith("val/") else logs_training)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor, name = getattr(callback, "monitor", None), type(callback).__name__
        tags = all_tags if isinstance(callback, ModelCheckpoint) else logged  # without a value, it saves nothing
        known = monitor is None or monitor in tags
        problem = f"monitors {monitor!r}, which this fit does not log{did_you_mean(str(monitor), tags)}"
        check(known, "trainer.callbacks", name, problem)


def check_room(trainer: pl.Trainer, agent: VariationalActorCritic, data: ReplayDataModule) -> None:
    """Raise `ConfigError` unless a run fits into memory and on disk; write nothing."""
    parts, device = network_bytes(agent), trainer.strategy.root_device
    need, free = sum(parts[name] for name in ("gradients", "optimizer")), available_memory()
    if device.type == "cpu":
        need *= trainer.num_devices  # ranks of this machine, each with networks of its own
    if device.type == "cuda":
        _check_networks(agent, sum(parts.values()), torch.cuda.mem_get_info(device)[0], "the GPU's memory")
        need = 0
    _check_networks(agent, need, free, "memory to learn in")
    capacity, replays = data.replay_settings.capacity, data.replays * replay_bytes(data)
    if copied := copied_bytes(data):
        problem = f"is where nothing learns: this run's device is {device.type}; use cpu, or a machine with a GPU"
        check(device.type == "cuda", "data.replay.device", data.replay_settings.device, problem)
        need_there, there = sum(parts.values()) + copied, torch.cuda.mem_get_info(device)[0]
        problem = f"needs {_mib(need_there)} of the GPU's memory, networks included, {_mib(there)} are available"
        check(need_there < there, "data.replay.capacity", capacity, problem)
    if data.directory is not None:
        check_disk(data.directory, replays, "data.replay.capacity", capacity)
        return
    # The system allocates a page of memory at the first write to it.
    updates = updates_of(trainer, data)
    share = (
        1.0 if updates is None else min(1.0, frames_of(updates, trainer, data) / data.settings.frame_skip / capacity)
    )
    need += int(replays * share)
    problem = f"needs {_mib(need)} of memory, networks included, {_mib(free)} are available"
    check(need < free, "data.replay.capacity", capacity, problem)


def product_seconds(dtype: torch.dtype, device: torch.device, side: int = 256, times: int = 5) -> float:
    """Return the seconds of a product of two matrices `[side, side]`, the median of `times` products."""
    x, seconds = torch.ones(side, side, dtype=dtype, device=device), []
    for _ in range(times):
        start = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[times // 2]


def precision_hint(precision: str, device: torch.device, encoder: str) -> str | None:
    """Return a recommendation of another precision for this processor, or None.

    Args:
        precision: of the trainer.
        device: that learns; a GPU is not measured.
        encoder: of the agent; small encoders spend too little time on products to gain by bfloat16.
    """
    if device.type != "cpu" or precision not in ("32-true", "bf16-mixed"):
        return None
    if precision == "32-true" and not ENCODERS[encoder].mostly_products:
        return None
    ratio = product_seconds(torch.bfloat16, device) / product_seconds(torch.float32, device)
    says = f"a product takes {ratio:.1f} times as long in bfloat16 as in float32 here: --trainer.precision"
    if precision == "bf16-mixed" and ratio > SLOWER:
        return f"{says} 32-true may be faster"
    if precision == "32-true" and ratio < FASTER:
        return f"{says} bf16-mixed may be faster"
    return None


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size < 100 * MIB else f"{size / MIB:,.0f} MiB"


def describe(trainer: pl.Trainer, agent: VariationalActorCritic, data: ReplayDataModule) -> str:
    """Return a line each on the device, memory, disk and length of a run, and on a faster precision."""
    device = trainer.strategy.root_device
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"
    parts = network_bytes(agent)
    sizes = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items() if size)
    replay, several = data.replays * replay_bytes(data), f"{data.replays} replays" if data.replays > 1 else "replay"
    stored = "" if data.directory is None else " (its files, cached while there is room)"
    lines = [
        *(f"rules  {settings.remark}" for settings in data.curriculum.settings if settings.remark),
        f"reads  {data.reading}" if data.reading else "",
        f"device {device.type}, {name}",
        f"memory {_mib(sum(parts.values()))} for networks ({sizes}), {_mib(replay)} for {several}{stored}",
    ]
    if copied := copied_bytes(data):
        lines.append(
            f"GPU    {_mib(sum(parts.values()) + copied)} of its memory: networks, {_mib(copied)} for {several}"
        )
    if data.directory is not None:
        saved = len(trainer.checkpoint_callbacks) + (data.curriculum.visits - 1 if data.num_tasks > 1 else 0)
        checkpoint = _mib(checkpoint_bytes(agent, data))
        free = _mib(shutil.disk_usage(next(p for p in data.directory.absolute().parents if p.exists())).free)
        lines.append(f"disk   {_mib(replay)} for {several}, {saved} checkpoints of {checkpoint}; {free} are free")
    updates = updates_of(trainer, data)
    if updates is None:
        lines.append("length not limited")
    else:
        frames, begun = frames_of(updates, trainer, data), data.stream.frames
        done = f", {begun:,} frames of them done" if begun else ""
        lines.append(f"length {frames:,} frames, {updates:,} updates{done}")
    if hint := precision_hint(str(trainer.precision), device, agent.hparams.network["encoder"]):
        lines.append(f"hint   {hint}")
    return "\n".join(line for line in lines if line)


def wrapped(report: str, columns: int) -> str:
    """Return a report with lines of at most `columns` characters, the later parts of a line below its words."""
    options: dict[str, Any] = {"subsequent_indent": " " * 7, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(part for line in report.splitlines() for part in textwrap.wrap(line, columns, **options))


def duration(seconds: float) -> str:
    """Return a duration as `about 14 minutes`, in the unit that fits."""
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.{1 if seconds < 10 * size and unit != 'minute' else 0}f} {unit}s"
    return f"about {max(1, round(seconds))} seconds"
