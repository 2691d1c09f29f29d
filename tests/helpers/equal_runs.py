"""Comparison of what two runs have written, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayes_rl.training.checkpoint_io import read_manifest, read_rank_file
from tests.helpers.command_line import curves

NOT_COMPARED = ("current_score", "history")
"""The score that `ModelCheckpoint` saved last, which Lightning writes and neither restores nor uses; and the random
name of a replay's files, by which a checkpoint knows them again."""


def comparable_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars but for those that measure time.

    Of the test games after each command those of the last one count.
    """
    found = {tag: values for tag, values in curves(run).items() if not tag.startswith("time/")}
    return {tag: values[-1:] if tag.startswith("test/") else values for tag, values in found.items()}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two nested structures of tensors and primitives are not equal, to the last bit."""
    if type(a) is not type(b):
        return [f"{where}: {type(a)} is not {type(b)}"]
    if isinstance(a, dict):
        odd = [f"{where}: {key!r} is in one only" for key in a.keys() ^ b.keys()]
        return odd + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        odd = [f"{where}: {len(a)} and {len(b)} entries"] if len(a) != len(b) else []
        return odd + [d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [f"{where}: tensors differ"]
    return [] if a == b or (a != a and b != b) else [f"{where}: {a!r} and {b!r}"]


def checkpoint(run: Path) -> dict[str, Any]:
    """Everything in `last.ckpt`, with the paths of its run's files as they would be anywhere."""

    def anywhere(value: Any) -> Any:
        if isinstance(value, dict):
            return {anywhere(key): anywhere(one) for key, one in value.items() if key not in NOT_COMPARED}
        return value.replace(str(run.absolute()), "RUN") if isinstance(value, str) else value

    return anywhere(torch.load(run / "checkpoints/last.ckpt", weights_only=True))


def referenced(run: Path) -> dict[str, np.ndarray]:
    """The slots of the replay's files that the last checkpoint refers to."""
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    replay = next(v for v in state.values() if isinstance(v, dict) and "stream" in v)["stream"]["replay"]
    envs, slots, *_ = replay["geometry"]
    found = {}
    for file in sorted((run / "replay/rank0").iterdir()):
        if file.stem in ("written", "replay"):  # positions, and names
            continue
        array = np.fromfile(file, file.suffix[1:]).reshape(envs, slots, -1)
        rings = [range(max(0, n - slots), n) for n in replay["written"].tolist()]
        found[file.name] = np.concatenate([array[e, [i % slots for i in ring]] for e, ring in enumerate(rings)])
    return found


def of_ranks(run: Path) -> list[dict[str, Any]]:
    """What `last.ckpt` has of each rank, without names of replays, and the slots of replays that it refers to."""
    path = run / "checkpoints/last.ckpt"
    (entry,) = read_manifest(path)
    found = []
    for rank in range(len(entry["ranks"])):
        state = read_rank_file(path, rank)
        stream = state["data"]["stream"]
        for replay in (stream["replay"], *stream["finished"]):
            replay.pop("history")
        folders = sorted(path.parent for path in (run / f"replay/rank{rank}").rglob("flags.uint8"))
        replays = zip(folders, [*stream["finished"], stream["replay"]], strict=True)
        state["slots"] = [torch.from_numpy(slots_of(folder, replay)) for folder, replay in replays]
        found.append(state)
    return found


def slots_of(folder: Path, replay: dict[str, Any]) -> np.ndarray:
    """Actions, rewards, flags and ages of the slots that a checkpoint refers to."""
    envs, slots, *_ = replay["geometry"]
    columns = []
    for name in ("actions.int16", "rewards.float32", "flags.uint8", "ages.uint8"):
        array = np.fromfile(folder / name, name.split(".")[1]).reshape(envs, slots)
        rings = [range(max(0, n - slots), n) for n in replay["written"].tolist()]
        columns.append(np.concatenate([array[e, [i % slots for i in ring]] for e, ring in enumerate(rings)]))
    return np.stack([column.astype(np.float64) for column in columns])
