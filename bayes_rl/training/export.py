"""Trained agents as safetensors files, weights and settings only: `bayes-rl export CKPT OUT.safetensors`."""

from __future__ import annotations

import json
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.errors import ConfigError
from bayes_rl.utils.files import write_atomic
from bayes_rl.utils.version_0_1 import in_groups

SUFFIX = ".safetensors"


FORMAT = "bayes_rl agent, version 1"


SETTINGS = {"hyper_parameters": VariationalActorCritic, "datamodule_hyper_parameters": ReplayDataModule}
"""Entries of the header, in JSON, and the classes whose arguments they hold."""


SECTIONS = {"model": VariationalActorCritic, "data": ReplayDataModule}
"""Sections of the options, and the classes whose arguments they hold."""


PLAYED = {
    *("env", "env_kwargs", "observation", "channels", "grey"),
    *("tasks", "spaces_of", "frame_stack", "seed", "curriculum.task_conditioning"),
    *("rules.frame_skip", "rules.sticky_actions", "rules.crop", "rules.max_episode_frames"),
    *("rules.full_action_space", "rules.auto_fire", "replay.life_loss", "replay.reward_clip", "replay.gamma"),
    *("evaluation.games", "evaluation.idle_frames"),
}
"""Data options that decide how an agent is played; the others describe its training, for readers."""


LEARNING = (".prior_mean", ".prior_precision", ".process.moments", ".process.count")
"""Ends of the names of tensors that only learning needs: the priors of vcl, and the data of a Gaussian process."""


LARGEST = 2**31 - 1  # limit of all other whole numbers


MOST = {"games": 10**6, "frame_stack": 1024, "seed": 2**32 - 1}


class ExportError(ConfigError):
    """Error of a file that cannot be exported, read or written. Its text is one line that names the file."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__("ckpt_path", str(path), problem)
        self.line = f"{str(path)!r} {problem}"


def is_export(path: str | Path) -> bool:
    """Return whether a path names an exported agent, by its suffix."""
    return Path(path).suffix == SUFFIX


def bundled_agents() -> dict[str, Path]:
    """Return the trained agents that come with the program, by the name of their configuration."""
    folder = Path(__file__).parents[1] / "trained_agents"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


# ------------------------------------------------------------------ reading
def read_export(path: str | Path) -> dict[str, Any]:
    """Return an exported agent in the form of a Lightning checkpoint; nothing in the file is executed.

    Returns:
        `state_dict`, `hyper_parameters`, `datamodule_hyper_parameters`, `frames`, and versions by package, as
        `pytorch-lightning_version`.

    Raises:
        ExportError: if the file is no complete agent of this program.
    """
    if not Path(path).is_file():
        raise ExportError(path, "does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, no mapping)
        return _understand(header, state)
    except Exception as error:
        raise ExportError(path, f"is not an exported agent of this program ({_reason(error)})") from None


def load_weights(agent: VariationalActorCritic, export: Mapping[str, Any], path: str | Path) -> None:
    """Load an exported agent's weights into `agent`. The optimizer state is not restored.

    Args:
        agent: with the networks of the export.
        export: read from `path`.
        path: for the error.

    Raises:
        ExportError: if the networks differ.
    """
    try:
        _check_tensors(export["state_dict"], _played(agent.state_dict()))
    except ValueError as error:
        raise ExportError(path, f"is another agent ({_reason(error)})") from None
    agent.load_state_dict(export["state_dict"], strict=False)
    if agent.target_twin is not None:
        agent.target_twin.load_state_dict(agent.twin.state_dict())
    agent.frames = export["frames"]


def load_agent(path: str | Path) -> VariationalActorCritic:
    """Return an exported agent, ready to play: `load_agent("breakout.safetensors").act(observations)`.

    Args:
        path: a file, or the name of an agent that comes with the program (`"minatar"`).

    Raises:
        ExportError: if the file is no exported agent.
    """
    if not Path(path).is_file():
        path = bundled_agents().get(str(path), path)
    export = read_export(path)
    agent = VariationalActorCritic(**export["hyper_parameters"])
    load_weights(agent, export, path)
    return agent.eval()


def _reason(error: Exception) -> str:
    """Return the text of an error on one line of printable characters."""
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:300]


def _understand(header: Mapping[str, str], state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the result of `read_export`; raise some exception if any part is wrong."""
    if header.get("format") != FORMAT:
        raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
    settings = {entry: _read_settings(header[entry], of) for entry, of in SETTINGS.items()}
    _check_tensors(state, _skeleton(settings["hyper_parameters"], state))
    frames = _typed(json.loads(header["frames"]), int, 2**63)
    versions = {key: text for key, text in header.items() if key.endswith("_version")}
    return {"state_dict": state, **settings, "frames": frames, **versions}


def _read_settings(text: str, of: type) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"the settings of {of.__name__} are no mapping")
    section = next(name for name, cls in SECTIONS.items() if cls is of)
    return _typed_settings(in_groups(section, values), of)


def _typed_settings(values: dict[str, Any], of: type) -> dict[str, Any]:
    """Return the arguments of a class converted to their types; those of a group by the class of the group."""
    hints = typing.get_type_hints(of.__init__)  # type: ignore[misc]
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{of.__name__} knows no setting {key!r}")
        try:
            if is_dataclass(hints[key]):
                if not isinstance(value, dict):
                    raise ValueError("is no mapping")
                values[key] = _typed_settings(value, hints[key])
            else:
                values[key] = _typed(value, hints[key], MOST.get(key, LARGEST))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return values


def _typed(value: Any, hint: Any, largest: int = LARGEST) -> Any:
    """Return a value of JSON converted to the type `hint`; raise ValueError if it has another type."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is types.UnionType:
        kind, inner = next(((get_origin(x) or x, get_args(x)) for x in inner if _fits(value, x)), (None, ()))
    elif kind is Any:
        kind, inner = type(value), (str, Any) if isinstance(value, dict) else (Any,)
    if not _fits(value, kind):
        raise ValueError(f"{str(value)[:40]!r} is not {hint if get_args(hint) else hint.__name__}")
    if kind is int and not (-largest if hint is Any else 0) <= value <= largest:
        raise ValueError(f"{str(value)[:40]} is out of range")
    if kind is dict:
        if "class_path" in value:  # the parser of the command line would construct such an object
            raise ValueError("class_path is no argument of an environment")
        return {key: _typed(item, inner[-1], largest) for key, item in value.items()}
    if kind in (list, tuple):
        hints = [inner[0]] * len(value) if kind is list or inner[-1] is Ellipsis else inner
        return kind(_typed(item, part, largest) for item, part in zip(value, hints, strict=True))
    return float(value) if kind is float else value


def _fits(value: Any, hint: Any) -> bool:
    """Return whether JSON writes a value of this type as `value`."""
    kind = get_origin(hint) or hint
    known = {float: (int, float), tuple: (list, tuple)}.get(kind, kind)
    return kind is not None and isinstance(value, known) and (kind is bool or not isinstance(value, bool))


def _played(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state that playing needs: the twin, the variances of its weights, and fitted intervals of returns."""
    played = ("twin.", "weight_posterior.", "scores.")
    return {k: v for k, v in state.items() if k.startswith(played) and not k.endswith(LEARNING)}


def _skeleton(settings: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an agent with these settings, without storage."""
    if settings.get("num_tasks", 1) > len(state):
        raise ValueError(f"its {len(state)} tensors are too few for {settings['num_tasks']} tasks")
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        return _played(VariationalActorCritic(**settings).state_dict())


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names and shapes agree, and types convert without loss of precision."""
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"{missing[0]} is missing")
    if extra := sorted(state.keys() - expected.keys()):
        raise ValueError(f"{extra[0]!r} is no part of such an agent")
    for name, tensor in state.items():
        model = expected[name]
        if tensor.shape != model.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(model.shape)}")
        same_kind = tensor.is_floating_point() == model.is_floating_point()
        if not same_kind or torch.promote_types(tensor.dtype, model.dtype) != model.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, not {model.dtype}")


# ------------------------------------------------------------------ writing
def export_agent(
    checkpoint: str | Path, output: str | Path, average: bool = False, overwrite: bool = False, half: bool = False
) -> dict[str, Any]:
    """Write the weights and settings of a checkpoint, without replay, optimizer and random state.

    Args:
        checkpoint: of this program.
        output: the file to write, named `*.safetensors`; it is written atomically.
        average: export the moving average of the weights (`--model.objective.target ema`), not the newest weights.
            Intervals of returns, which were fitted to the newest weights, are left out.
        overwrite: replace `output` if it exists.
        half: write matrices and kernels of the networks as float16, which nearly halves the file. Each number changes
            by at most 0.05 %, or by 3e-8 if it is smaller than 6e-5, so that the actions in a few states may change.

    Returns:
        The export, as `read_export` reads it.

    Raises:
        ExportError: naming the file that cannot be read or written.
    """
    output = Path(output)
    if output.suffix != SUFFIX:
        raise ExportError(output, f"must end in {SUFFIX}")
    if not output.parent.is_dir():
        raise ExportError(output, "cannot be written: its directory does not exist")
    if output.exists() and not (overwrite and output.is_file()):
        raise ExportError(output, "exists; give --overwrite to replace it" if output.is_file() else "is no file")
    if not Path(checkpoint).is_file():
        raise ExportError(checkpoint, "does not exist")
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        header, state = _header(saved, average), _weights(saved["state_dict"], average)
        if half:
            state = {name: _half(name, tensor) for name, tensor in state.items()}
        export = _understand(header, state)
    except Exception as error:
        raise ExportError(checkpoint, f"cannot be exported ({_reason(error)})") from None
    try:
        write_atomic(output, lambda file: file.write(save(state, header)))
    except OSError as error:
        raise ExportError(output, f"cannot be written: {error.strerror}") from None
    return export


def _weights(state: Mapping[str, Tensor], average: bool) -> dict[str, Tensor]:
    if average:
        averaged = {k.removeprefix("target_"): v for k, v in state.items() if k.startswith("target_twin.")}
        if not averaged:
            raise ValueError("it holds no moving average; drop --average")
        state = {**state, **averaged}
        state |= {k: torch.full_like(v, torch.nan) for k, v in state.items() if k.endswith(".return_fit")}
    # Contiguous copies: kernels lie channels last in memory, and the format has one layout only.
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in _played(state).items()}


def _half(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of the networks with two axes or more as float16, and any other tensor unchanged.

    Raises:
        ValueError: if a finite number exceeds the range of float16.
    """
    if not name.startswith("twin.") or tensor.dim() < 2 or tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    if (half.isinf() & tensor.isfinite()).any():
        raise ValueError(f"{name} holds numbers beyond {torch.finfo(torch.float16).max:g}; drop --half")
    return half


def _header(saved: Mapping[str, Any], average: bool) -> dict[str, str]:
    given = {entry: {k: v for k, v in saved[entry].items() if not k.startswith("_")} for entry in SETTINGS}
    try:
        version = packages.version("bayes_rl")
    except packages.PackageNotFoundError:  # run from a checkout that is not installed
        version = "unknown"
    return {
        "format": FORMAT,
        "frames": str(saved["frames"]),
        "average": json.dumps(average),
        "bayes_rl_version": version,
        "torch_version": torch.__version__,
        "pytorch-lightning_version": str(saved["pytorch-lightning_version"]),
        **{entry: json.dumps(values) for entry, values in given.items()},
    }
