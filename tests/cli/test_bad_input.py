"""Two hundred generated command lines and configurations that cannot work: each is one line, and nothing happens."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pytorch_lightning import Trainer

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import app as cli
from bayes_rl.cli.parser_errors import option_names
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.types import AGENT_ARGUMENTS

pytestmark = pytest.mark.usefixtures("shared_parser")

NAN, INF, HUGE = float("nan"), float("inf"), 10**30
SMALL = [
    "--data.env=CartPole-v1",
    "--data.frame_stack=1",
    "--model.network.encoder=mlp",
    "--model.network.hidden_dim=8",
]
"""Behind `fit`, quick to build; what is typed later wins."""


class Bad(NamedTuple):
    """What is typed behind `fit`, the files that stand there, and a word that the error must contain."""

    words: list[str]
    key: str
    files: dict[str, bytes] = {}  # noqa: RUF012
    small: bool = True


# ------------------------------------------------------------------------------------------------- how it is typed
def written(value: Any) -> str:
    """A value as one would type it."""
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else yaml_of(value)


def yaml_of(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")


def typed(key: str, value: Any) -> st.SearchStrategy[Bad]:
    """An option as `--key=value`, as `--key value`, or in a configuration."""
    content: Any = value
    for name in reversed(key.split(".")):
        content = {name: content}
    file = yaml.safe_dump(content, allow_unicode=True).encode()
    words = [[f"--{key}={written(value)}"], [f"--{key}", written(value)]]
    return st.sampled_from([*(Bad(w, key) for w in words), Bad(["--config=bad.yaml"], key, {"bad.yaml": file})])


def options_of(cls: type, section: str) -> dict[str, Any]:
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    names = [name for name in inspect.signature(cls).parameters if name not in AGENT_ARGUMENTS and name != "seed"]
    flat: dict[str, Any] = {}
    for name in names:
        if is_dataclass(hints[name]):
            flat |= {f"{section}.{name}.{key}": hint for key, hint in get_type_hints(hints[name]).items()}
        else:
            flat[f"{section}.{name}"] = hints[name]
    return flat


OPTIONS = options_of(ReplayDataModule, "data") | options_of(VariationalActorCritic, "model")
TRAINER = {
    "trainer.max_epochs": int | None,
    "trainer.max_steps": int,
    "trainer.num_nodes": int,
    "trainer.accumulate_grad_batches": int,
    "trainer.check_val_every_n_epoch": int | None,
    "trainer.log_every_n_steps": int | None,
    "trainer.gradient_clip_val": float | None,
    "trainer.enable_progress_bar": bool | None,
    "trainer.detect_anomaly": bool,
    "trainer.inference_mode": bool,
}

# ---------------------------------------------------------------------------------------------------- what is wrong
MISSPELLABLE = sorted(n for n in option_names() if "." in n and not n.endswith(".help"))
VALID = {*option_names(), "weights_only", "print_config", "help"}


@st.composite
def misspelt(draw: st.DrawFn) -> Bad:
    """One to three letters of an option changed."""
    section, name = draw(st.sampled_from(MISSPELLABLE)).split(".", 1)
    letter = st.sampled_from("abcdefghijklmnopqrstuvwxyz_é")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(name) - 1))
        how = draw(st.sampled_from(["drop", "add", "change", "swap"]))
        if how == "drop" and len(name) > 1:
            name = name[:at] + name[at + 1 :]
        elif how == "add":
            name = name[:at] + draw(letter) + name[at:]
        elif how == "swap":
            name = name[:at] + name[at : at + 2][::-1] + name[at + 2 :]
        else:
            name = name[:at] + draw(letter) + name[at + 1 :]
    key = f"{section}.{name}"
    assume(key not in VALID)
    return draw(typed(key, 3))


STRAYS: dict[Any, list[Any]] = {
    int: ["high", "3.5", 3.5, [1, 2], {"a": 1}, None, "", "1e", "0x", True, "3 4"],
    float: ["high", [0.5], {"a": 1}, None, "", "1,5", "0.5.5", True, "1 2"],
    bool: ["maybe", 3, [True], {"a": 1}, None, ""],
    str: [3, ["x"], {"a": 1}, None, "", "自然", "a\nb", " ", "x" * 300, "\udcff"],
    list[str] | None: [3, {"a": 1}, "", [[]], [1, 2], [None]],
    dict[str, Any] | None: [3, [1], "text", ""],
    tuple[int, int, int, int] | None: [
        3,
        [1, 2, 3],
        ["a", "b", "c", "d"],
        {"a": 1},
        [1, 2, 3, 4, 5],
        "",
        [0, 1, None, 1],
    ],
    tuple[float, float]: [3, [1], ["low", "high"], {"a": 1}, [1, 2, 3], "", None],
}


def wrong_types() -> st.SearchStrategy[Bad]:
    cases = []
    for key, hint in (OPTIONS | TRAINER).items():
        optional = type(None) in getattr(hint, "__args__", ())
        kinds = [kind for kind in STRAYS if hint in (kind, kind | None)] or [hint]
        for value in STRAYS[kinds[0]]:
            if value == "\udcff":
                cases.append(st.just(Bad([f"--{key}={value}"], key)))
            elif not ((optional and value in (None, "")) or (key == "data.evaluation.render" and value is None)):
                cases.append(typed(key, value))
    return st.sampled_from(cases).flatmap(lambda case: case)


COUNTS = [
    *(
        "data.num_envs",
        "data.frame_stack",
        "data.rules.frame_skip",
        "data.rules.max_episode_frames",
        "data.replay.capacity",
    ),
    *(
        "data.replay.min_size",
        "data.replay.batch_size",
        "data.replay.n_step",
        "data.frames_per_epoch",
        "data.evaluation.games",
        "data.evaluation.fps",
    ),
    *("model.network.hidden_dim", "model.posterior.num_draws", "model.consolidation.fisher_samples"),
]
NOT_NEGATIVE = [
    "data.evaluation.idle_frames",
    "data.epsilon.decay_frames",
    "model.consolidation.consolidate_every",
]
RANGES: dict[str, list[Any]] = {
    **{key: [0, -1, -7, -(2**31), -HUGE, HUGE, 10**12, INF, NAN] for key in COUNTS},
    **{key: [-1, -(2**31), -HUGE, HUGE, INF, NAN] for key in NOT_NEGATIVE},
    **{f"data.epsilon.{end}": [-0.1, 1.5, INF, NAN, 1e30, HUGE, -INF] for end in ("start", "end")},
    "data.replay.gamma": [-0.1, 1.0001, INF, NAN, 1e30, HUGE],
    "data.rules.sticky_actions": [-0.1, 1, INF, NAN, 1e30],
    "data.replay.reward_clip": [0, -1, NAN, INF, -INF],
    "data.updates_per_step": [0, -1, NAN, INF, 1e30],
    "data.curriculum.cycles": [0, -1, HUGE, 2],
    "data.curriculum.frames_per_task": [HUGE, 0, -5],
    "model.posterior.prior_precision": [0, -1, NAN, INF, -INF, "0"],
    "model.posterior.init_log_var": [-30, 30, NAN, INF, 1e30, HUGE],
    "model.posterior.log_var_limit": [0, -1, NAN, INF, 61, 1e30],
    "model.posterior.init_scale": [0, -1, NAN, INF],
    "model.network.prior_function_scale": [-1, NAN, INF, 3],
    "model.objective.kl_temperature": [-1, NAN, INF, -INF],
    "model.likelihood.noise_std": [0, -1, NAN, INF],
    "model.likelihood.num_bins": [HUGE, 10**12],
    "model.posterior.size": [0, -1, HUGE],
    "model.objective.tau": [0, -1, 1.5, NAN, INF, 1e30],
    "model.objective.policy_temperature": [0, -1, NAN, INF],
    "model.objective.entropy_weight": [-1, NAN, INF],
    "model.consolidation.ewc_lambda": [-1, NAN, INF, 3],
    "model.consolidation.online_decay": [-0.1, 1.5, NAN, INF],
    "model.optimizer.actor_lr": [0, -1, NAN, INF],
    "model.optimizer.critic_lr": [0, -1, NAN, INF],
    "model.optimizer.adam_eps": [-1, NAN, INF],
    "model.optimizer.weight_decay": [-1, NAN, INF],
    "seed_everything": [-1, 2**32, HUGE, 1.5, INF, NAN, True, False, None, "abc", [1], {"a": 1}, ""],
    "trainer.max_epochs": [-2, -HUGE, 1.5, INF],
    "trainer.max_steps": [-2, INF, None],
    "trainer.devices": [0, -3, [], "many", 1.5],
    "trainer.num_nodes": [0, -1],
    "trainer.accumulate_grad_batches": [0, -1, 1.5],
    "trainer.check_val_every_n_epoch": [0, -1, 1.5],
    "trainer.limit_val_batches": [-1, 1.5, NAN, INF],
    "trainer.limit_train_batches": [-1, 1.5, NAN],
    "trainer.val_check_interval": [0, -1, 1.5, NAN],
    "trainer.log_every_n_steps": [-1, 1.5, -HUGE],
    "trainer.gradient_clip_val": [-1, NAN, INF],
    "trainer.num_sanity_val_steps": [-2, 1.5],
    "trainer.max_time": ["soon", [1], "1:2", {"years": 3}],
    "trainer.overfit_batches": [-1, 1.5, NAN],
}
SHAPES = {
    "data.rules.crop": [[0, 300, 0, 160], [5, 5, 0, 160], [-1, 100, 0, 160], [0, 84, 0, 84]],  # CartPole has no screen
    "data.tasks": [[], ["breakout"], ["breakout", "tenis"], ["tennis", "tennis"], ["breakout", "CartPole-v1"]],
    "data.env_kwargs": [{"sise": 3}, {"": 1}],
    "data.evaluation.render": ["humans", "rgb_array"],
    "model.likelihood.value_range": [[NAN, 1], [0, INF], [-INF, INF]],
}
CHOICES = [
    *(
        "data.env",
        "data.observation",
        "data.channels",
        "data.curriculum.task_conditioning",
        "data.curriculum.epsilon_at_switch",
        "data.replay.life_loss",
        "model.network.encoder",
    ),
    *(
        "model.network.bayesian",
        "model.posterior.family",
        "model.posterior.prior",
        "model.likelihood.family",
        "model.exploration",
        "model.objective.bootstrap",
    ),
    *(
        "model.objective.target",
        "model.objective.actor_loss",
        "model.objective.update_pairs",
        "model.consolidation.method",
        "model.consolidation.optimizer_at_switch",
    ),
    *(
        "model.consolidation.critic_at_switch",
        "trainer.accelerator",
        "trainer.strategy",
        "trainer.precision",
        "trainer.profiler",
    ),
    *("trainer.gradient_clip_algorithm", "trainer.logger", "trainer.callbacks", "trainer.plugins"),
    *("trainer.deterministic", "data.evaluation.render", "trainer.model_registry")[:2],
]


def out_of_range() -> st.SearchStrategy[Bad]:
    cases = [typed(key, value) for key, values in {**RANGES, **SHAPES}.items() for value in values]
    return st.sampled_from(cases).flatmap(lambda case: case)


@st.composite
def unknown_words(draw: st.DrawFn) -> Bad:
    """A word that is none of an option's choices."""
    word = draw(st.text("abcdefghijklmnopqrstuvwxyz_-/. éß自0123456789", min_size=1, max_size=12))
    return draw(typed(draw(st.sampled_from(CHOICES)), f"q{word}"))


CONFIGS: dict[str, tuple[bytes, str]] = {
    "list": (b"- data\n- model\n", "bad.yaml"),
    "word": (b"breakout\n", "bad.yaml"),
    "number": (b"42\n", "bad.yaml"),
    "sentence": (b"This is: no: yaml\n", "bad.yaml"),
    "open bracket": (b"data: {n_step: 3\n", "bad.yaml"),
    "tab": (b"data:\n\tn_step: 3\n", "bad.yaml"),
    "binary": (bytes(range(256)), "bad.yaml"),
    "zeros": (b"\0" * 64, "bad.yaml"),
    "latin 1": ("data:\n  env: Brëakout\n".encode("latin-1"), "bad.yaml"),
    "two documents": (b"data:\n  n_step: 3\n---\ndata:\n  n_step: 4\n", "bad.yaml"),
    "section twice": (b"data:\n  n_step: 3\ndata:\n  gamma: 0.9\n", "data"),
    "option twice": (b"data:\n  n_step: 3\n  n_step: 4\n", "n_step"),
    "unhashable key": (b"? [a, b]\n: 3\n", "bad.yaml"),
    "number as a key": (b"3: 4\n", "3"),
    "number as an option": (b"data:\n  3: 4\n", "3"),
    "section that is a list": (b"data: [1, 2]\n", "data"),
    "section that is a number": (b"model: 3\n", "model"),
    "section that is a word": (b"trainer: fast\n", "trainer"),
    "section in a section": (b"model:\n  data:\n    n_step: 3\n", "model.data"),
    "section in itself": (b"data:\n  data:\n    n_step: 3\n", "data.data"),
    "unknown section": (b"optimizer:\n  lr: 3\n", "optimizer"),
    "option outside its section": (b"n_step: 3\n", "n_step"),
    "option in another section": (b"model:\n  n_step: 3\n", "model.n_step"),
    "python object": (b"data: !!python/object/apply:os.mkdir [ran]\n", "bad.yaml"),
    "alias of nothing": (b"data: *nothing\n", "bad.yaml"),
    "endless": (b"data: &a {env_kwargs: *a}\n", "data"),
    "subcommand": (b"fit:\n  data:\n    n_step: 3\n", "fit"),
    "name of control characters": (b'name: "a\\0b"\n', "name"),
    "name beyond all length": (b"name: " + b"x" * 300 + b"\n", "name"),
    "name outside": (b"name: ../../x\n", "name"),
    "class that is none": (b"trainer:\n  callbacks:\n    class_path: no.such.Class\n", "trainer.callbacks"),
    "class without arguments": (b"trainer:\n  logger:\n    init_args: {a: 1}\n", "trainer.logger"),
    "nothing as a section's option": (b"data:\n  replay:\n    n_step:\n", "data.replay.n_step"),
    "checkpoint that is a list": (b"ckpt_path: [1]\n", "ckpt_path"),
}


@st.composite
def configurations(draw: st.DrawFn) -> Bad:
    """Files that are no configuration."""
    text, key = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    how = draw(st.sampled_from([["--config=bad.yaml"], ["--config", "bad.yaml"], ["-c", "bad.yaml"]]))
    before = draw(st.sampled_from([[], ["--config=good.yaml"]]))
    return Bad([*before, *how], key, {"bad.yaml": text, "good.yaml": b"data:\n  replay: {n_step: 3}\n"})


FILES = {
    "missing": (
        [
            "missing.yaml",
            "konfigs/x.yaml",
            "",
            "/nowhere/x.yaml",
            "bad\nname.yaml",
            "x" * 300,
            "自然.yaml",
            "\udcff.yaml",
        ]
    ),
    "there": ["folder", ".", "folder/inner", "text.ckpt", "empty.ckpt", "binary.ckpt"],
}


@st.composite
def paths(draw: st.DrawFn) -> Bad:
    """Missing files, folders in the place of files, checkpoints that are none."""
    files = {"text.ckpt": b"hello\n", "empty.ckpt": b"", "binary.ckpt": bytes(range(256)), "folder/inner/x": b""}
    checkpoint = draw(st.booleans())
    option = "ckpt_path" if checkpoint else "config"
    there = FILES["there"] if checkpoint else FILES["there"][:3]
    path = draw(st.sampled_from([*FILES["missing"], *there, *(["last", "best"] if checkpoint else [])]))
    key = option if checkpoint or not path.isprintable() or not path else path
    words = draw(st.sampled_from([[f"--{option}={path}"], [f"--{option}", path]]))
    return Bad(words, key, files)


COMBINATIONS: list[tuple[str, dict[str, Any]]] = [
    ("model.exploration", {"model.exploration": "thompson", "model.network.bayesian": "none"}),
    (
        "model.network.prior_function_scale",
        {"model.network.prior_function_scale": 3, "model.posterior.family": "mean_field"},
    ),
    ("model.posterior.prior", {"model.posterior.family": "low_rank", "model.posterior.prior": "log_uniform"}),
    (
        "model.consolidation.method",
        {
            "model.posterior.family": "members",
            "model.consolidation.method": "ewc",
            "model.consolidation.consolidate_every": 5,
        },
    ),
    ("model.consolidation.method", {"model.consolidation.method": "vcl", "model.network.bayesian": "none"}),
    ("model.consolidation.method", {"model.consolidation.method": "online_ewc"}),
    ("model.consolidation.consolidate_every", {"model.consolidation.consolidate_every": 5}),
    ("model.consolidation.ewc_lambda", {"model.consolidation.ewc_lambda": 3}),
    ("model.posterior.size", {"model.posterior.family": "members", "model.posterior.size": 0}),
    ("model.likelihood.num_bins", {"model.likelihood.family": "two_hot", "model.likelihood.num_bins": 1}),
    ("model.likelihood.value_range", {"model.likelihood.family": "hl_gauss", "model.likelihood.value_range": [3, 3]}),
    ("model.likelihood.noise_std", {"model.likelihood.family": "learned_gaussian", "model.likelihood.noise_std": 1e30}),
    ("model.network.encoder", {"data.env": "CartPole-v1", "model.network.encoder": "minatar"}),
    ("data.replay.batch_size", {"data.replay.batch_size": 200_000}),
    ("data.replay.min_size", {"data.replay.min_size": 3_000, "data.replay.capacity": 2_000}),
    ("data.replay.n_step", {"data.replay.n_step": 90_000}),
    ("data.replay.n_step", {"data.num_envs": 500, "data.replay.capacity": 2_000, "data.replay.min_size": 100}),
    ("data.frames_per_epoch", {"data.frames_per_epoch": 4, "data.rules.frame_skip": 4, "data.updates_per_step": 0.25}),
    ("data.env", {"data.tasks": ["tennis", "pong"], "data.env": "pong"}),
    ("data.tasks", {"data.tasks": ["breakout", "MinAtar/Breakout-v1"]}),
    ("data.curriculum.task_conditioning", {"data.curriculum.task_conditioning": "heads"}),
    ("data.curriculum.keep_replays", {"data.curriculum.keep_replays": True}),
    ("data.curriculum.cycles", {"data.curriculum.cycles": 3}),
    ("data.rules.crop", {"data.rules.crop": [0, 84, 0, 84]}),
    ("data.env_kwargs", {"data.env_kwargs": {"sise": 3}}),
    ("data.env", {"data.env": "Pendulum-v1"}),
    ("model.num_actions", {"model.num_actions": 7}),
    ("model.game", {"model.game": "pong"}),
    ("trainer.precision", {"trainer.precision": "bf16-true"}),
    (
        "data.replay.batch_size",
        {"data.replay.batch_size": 7, "trainer.devices": 2, "trainer.accelerator": "cpu", "data.num_envs": 2},
    ),
    ("trainer", {"trainer.barebones": True, "trainer.enable_progress_bar": True}),
    ("trainer.accumulate_grad_batches", {"trainer.accumulate_grad_batches": 0}),
]


@st.composite
def combinations(draw: st.DrawFn) -> Bad:
    """Options that cannot work together, in any order, typed or in files."""
    key, values = draw(st.sampled_from(COMBINATIONS))
    linked = key.startswith("model.") and key[6:] in AGENT_ARGUMENTS  # a saved configuration may hold them
    env = key == "data.env" and "data.tasks" in values
    if not linked and not env and draw(st.booleans()):
        tree: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, _, option = name.partition(".")
            tree.setdefault(section, {})[option] = value
        return Bad(["--config=bad.yaml"], key, {"bad.yaml": yaml.safe_dump(tree).encode()}, key != "data.env")
    items = draw(st.permutations(sorted(values.items(), key=str)))
    return Bad([f"--{name}={written(value)}" for name, value in items], key, small="data.tasks" not in values)


@st.composite
def strays(draw: st.DrawFn) -> Bad:
    """Words in no option's place, and options without a value."""
    option = draw(st.sampled_from(sorted([*OPTIONS, *TRAINER])))
    word = draw(st.sampled_from(["breakout", "fit", "3", "自然", "data.replay.n_step=3", "configs/quickstart.yaml"]))
    return draw(
        st.sampled_from(
            [
                Bad([word], word),
                Bad(["--data.replay.gamma=0.9", word], word),
                Bad([f"--{option}"], option),
                Bad([f"--{option}", "--data.replay.gamma=0.9"], option),
                Bad(["-x"], "-x"),
                Bad([f"-{option}=3"], option),
                Bad(["--=3"], "--=3"),
                Bad(["---"], "---"),
            ]
        )
    )


KINDS: dict[str, Callable[[], st.SearchStrategy[Bad]]] = {
    "misspelt": misspelt,
    "wrong types": wrong_types,
    "out of range": out_of_range,
    "unknown words": unknown_words,
    "configurations": configurations,
    "paths": paths,
    "combinations": combinations,
    "strays": strays,
}
EXAMPLES = {"misspelt": 15, "wrong types": 25, "out of range": 25, "unknown words": 12, "configurations": 15}
EXAMPLES |= {"paths": 10, "combinations": 12, "strays": 10}


# -------------------------------------------------------------------------------------------------- what must happen
class Begun(BaseException):
    """Training was reached."""


@contextlib.contextmanager
def in_a_folder(files: dict[str, bytes]) -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            path = Path(name, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def refuse(words: list[str], key: str, files: dict[str, bytes]) -> str:
    """The one line that a bad command line gets; asserts that nothing else happens."""
    out, err = io.StringIO(), io.StringIO()
    with (
        in_a_folder(files) as folder,
        mock.patch("sys.argv", ["cli.py", *words]),
        mock.patch.object(Trainer, "_run", side_effect=Begun),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        before = sorted(folder.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert sorted(folder.rglob("*")) == before
    printed = err.getvalue()
    assert stop.value.code == 2, printed
    lines = printed.removesuffix("\n").split("\n")
    assert len(lines) == 1, printed
    assert len(printed.splitlines()) == 1
    assert printed.startswith("bayes-rl: error: "), printed
    assert "Traceback" not in printed + out.getvalue()
    assert key in printed, (key, printed)
    return printed


@pytest.mark.parametrize("kind", KINDS)
def test_generated_bad_input_is_one_line(kind: str) -> None:
    @settings(
        max_examples=EXAMPLES[kind],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(KINDS[kind]())
    def check(bad: Bad) -> None:
        refuse(["fit", *(SMALL if bad.small else []), *bad.words], bad.key, bad.files)

    check()


@pytest.mark.parametrize("value", ["members", "null", "3"])
def test_a_value_in_place_of_a_group_names_an_option_of_the_group(value: str) -> None:
    line = refuse(["fit", *SMALL, "--model.posterior", value], "model.posterior", {})
    message = f"--model.posterior: {value!r} is no mapping of options; nearest: 'model.posterior.family'"
    assert line == f"bayes-rl: error: {message}\n"


def test_a_group_without_options_in_a_configuration_is_named() -> None:
    file = {"bad.yaml": b"model:\n  posterior: null\n"}
    line = refuse(["fit", *SMALL, "--config=bad.yaml"], "model.posterior", file)
    message = "--model.posterior: None is no mapping of options; nearest: 'model.posterior.family'"
    assert line == f"bayes-rl: error: {message}\n"


@pytest.mark.parametrize(
    ("option", "meant"),
    [("games", "data.evaluation.games"), ("n_step", "data.replay.n_step"), ("critic_lr", "model.optimizer.critic_lr")],
)
def test_an_option_without_its_groups_is_told_its_whole_name(option: str, meant: str) -> None:
    assert refuse(["fit", *SMALL, f"--{option}=3"], option, {}).endswith(f"; nearest: {meant!r}\n")
