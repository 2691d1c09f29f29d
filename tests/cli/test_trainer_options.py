"""Generated command lines over `--trainer.*`: each is a run, or one line with key and value; no epoch is lost."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import main
from tests.helpers.command_line import SHORTEST, UPDATES

pytestmark = pytest.mark.usefixtures("shared_parser")

QUICK, ALL = 15, 200
"""Numbers of generated command lines of the quick and of the slow test."""


TREES: dict[str, list[Any]] = {
    "logger": [
        True,
        False,
        "CSVLogger",
        "WandbLogger",
        "NoLogger",
        3,
        {"class_path": "CSVLogger", "init_args": {"save_dir": "curves"}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "a_file"}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "curves", "flush_logs_every_n_steps": 0}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "curves", "nam": "x"}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "curves"}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "curves", "log_graph": True}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "a_file"}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "a_file/in/it"}},
        {"class_path": "MLFlowLogger", "init_args": {"experiment_name": "x"}},
        {"class_path": "CometLogger", "init_args": {}},
    ],
    "callbacks": [
        "NoCallback",
        "no.module.Callback",
        "torch.nn.Linear",
        3,
        [],
        {"class_path": "EarlyStopping", "init_args": {}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/return_mean", "mode": "max"}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/return_man"}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "strict": False}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/return_mean", "mode": "most"}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "train/nll", "check_on_train_epoch_end": True}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/q_gap", "patience": -1}},
        {"class_path": "ModelCheckpoint", "init_args": {}},
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "loss"}},
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/return_mean", "dirpath": "other"}},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "a_file"}},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "a_file/in/it", "every_n_train_steps": 3}},
        {"class_path": "ModelCheckpoint", "init_args": {"save_top_k": 3}},
        {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 7, "save_top_k": -1}},
        {"class_path": "LearningRateMonitor", "init_args": {}},
        {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "day"}},
        {"class_path": "LearningRateFinder", "init_args": {}},
        {"class_path": "BatchSizeFinder", "init_args": {}},
        {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.01}},
        {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.01, "swa_epoch_start": 1}},
        {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": -1}},
        {"class_path": "ModelPruning", "init_args": {"pruning_fn": "l1_unstructured"}},
        {"class_path": "ModelPruning", "init_args": {"pruning_fn": "nothing"}},
        {"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {"0": 2}}},
        {"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {}}},
        {"class_path": "Timer", "init_args": {"duration": "00:00:00:01"}},
        {"class_path": "Timer", "init_args": {"duration": "soon"}},
        {"class_path": "DeviceStatsMonitor", "init_args": {}},
        {"class_path": "ThroughputMonitor", "init_args": {}},
        {"class_path": "RichProgressBar", "init_args": {}},
        {"class_path": "TQDMProgressBar", "init_args": {"refresh_rate": -3}},
        {"class_path": "ModelSummary", "init_args": {"max_depth": -2}},
        {"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": "saved"}},
        {"class_path": "BackboneFinetuning", "init_args": {}},
        {"class_path": "WeightAveraging", "init_args": {}},
        {"class_path": "EMAWeightAveraging", "init_args": {}},
    ],
    "strategy": [
        "auto",
        "ddp",
        "ddp_spawn",
        "fsdp",
        "deepspeed",
        "ddp_notebook",
        "single_device",
        "xla",
        "nothing",
        "",
    ],
    "accelerator": ["auto", "cpu", "gpu", "cuda", "tpu", "mps", "hpu", "gppu", 3],
    "devices": ["auto", 1, 2, 0, -1, "1", "0,", "many", [0], [7], []],
    "precision": ["32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true", "8-bit", 32, 16, 0],
    "val_check_interval": [0.25, 0.5, 1.0, 1, 5, 20, 21, 500, 0, -1, 1.5, "00:00:00:01", "soon", {"seconds": 1}],
    "check_val_every_n_epoch": [1, 2, 3, None, 0, 1.5],
    "log_every_n_steps": [1, 7, 0, -1, 1000, 1.5],
    "limit_train_batches": [0, 0.0, 1, 7, 0.5, 0.01, 1.0, 1000, -1, 2.5],
    "limit_val_batches": [0, 0.0, 1, 0.5, 1.0, -1, "all"],
    "limit_test_batches": [0, 0.0, 1, 0.5, 7],
    "num_sanity_val_steps": [0, 1, -1, -2],
    "accumulate_grad_batches": [1, 3, 7, 100, 0],
    "gradient_clip_val": [0, 1, 0.1, -1, "much"],
    "gradient_clip_algorithm": ["norm", "value", "nothing"],
    "max_epochs": [1, 2, 0, -2, "two"],
    "min_epochs": [1, 2, -1],
    "max_steps": [1, 7, 20, 33, 0, -2],
    "min_steps": [1, 33, -1],
    "max_time": ["00:00:00:01", {"seconds": 1}, "soon", {"years": 1}],
    "overfit_batches": [0, 1, 0.5, 3, 1.5],
    "reload_dataloaders_every_n_epochs": [0, 1, 2, -1],
    "fast_dev_run": [True, 1, 3, -1, "yes"],
    "detect_anomaly": [True, False],
    "deterministic": [True, "warn", "often"],
    "benchmark": [True, False],
    "inference_mode": [True, False],
    "barebones": [True],
    "enable_checkpointing": [True, False],
    "profiler": ["simple", "advanced", "pytorch", "nothing", {"class_path": "SimpleProfiler", "init_args": {}}],
    "plugins": ["nothing", {"class_path": "DoublePrecision"}, {"class_path": "TorchCheckpointIO"}, "torchelastic"],
    "sync_batchnorm": [True],
    "use_distributed_sampler": [True, False],
    "num_nodes": [1, 2, 0],
    "default_root_dir": ["elsewhere", "a_file", "a_file/in/it", "", "/proc/nothing", "x" * 300],
    "model_registry": ["x"],
}
"""Options of the trainer and values for them, of which some cannot work."""


class Words(NamedTuple):
    """A generated command line, and the content of its configuration file, if it has one."""

    words: list[str]
    config: dict[str, Any] | None


def generated(number: int) -> Words:
    """Return command line `number`: one to three options, typed or in a configuration."""
    rng = random.Random(f"trainer {number}")
    often = ["logger", "callbacks", "callbacks", "callbacks", "strategy", "val_check_interval"]
    keys = dict.fromkeys(rng.choice([*TREES, *often]) for _ in range(rng.choice([1, 1, 2, 3])))
    options = {key: rng.choice(TREES[key]) for key in keys}
    if rng.random() < 0.4:
        return Words(["--config=mine.yaml"], {"trainer": options})
    return Words([f"--trainer.{key}={written(value)}" for key, value in options.items()], None)


def written(value: Any) -> str:
    """Return a value as one would type it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).split("\n")[0]


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A list with one entry for every finished update."""
    done: list[int] = []
    update = VariationalActorCritic.update_moving_average

    def counted(self: VariationalActorCritic) -> None:
        update(self)
        done.append(1)

    monkeypatch.setattr(VariationalActorCritic, "update_moving_average", counted)
    yield done
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.autograd.set_detect_anomaly(False)


def check(number: int, updates: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Run command line `number`; fail unless it is a run, or one line with key and value."""
    words, config = generated(number)
    Path("a_file").write_text("")
    if config is not None:
        Path("mine.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "fit", *SHORTEST, *words])
    capfd.readouterr()
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    printed, errors = capfd.readouterr()
    said = f"{words} {config}: exit code {code}\n{printed}\n{errors}"
    assert "Traceback" not in said, said
    assert code in (0, None, 2), said
    if code == 2:
        lines = [line for line in errors.splitlines() if line.startswith("bayes-rl: error: ")]
        assert len(lines) == 1, said
        assert lines[0] == errors.splitlines()[-1], said
        assert not re.search(r"Union|Namespace|NestedArg|Parser key|<class", lines[0]), said
        assert re.match(r"bayes-rl: error: --(trainer[\w.]*|name|data\.evaluation\.games): .*\S \S", lines[0]), said
    saved = max(
        (int(torch.load(path, weights_only=True)["global_step"]) for path in Path().rglob("last.ckpt")), default=0
    )
    saving = not {"fast_dev_run", "barebones", "accumulate_grad_batches"} & {
        *re.findall(r"\w+", str(words) + str(config))
    }
    assert not saving or saved > len(updates) - UPDATES, said


@pytest.mark.slow
@pytest.mark.parametrize("number", range(QUICK, ALL))
@pytest.mark.filterwarnings("ignore")
def test_generated_trainer_options_are_a_run_or_one_line(
    number: int, updates: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check(number, updates, monkeypatch, capfd)


@pytest.mark.parametrize("number", range(QUICK))
@pytest.mark.filterwarnings("ignore")
def test_a_few_generated_trainer_options_are_a_run_or_one_line(
    number: int, updates: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check(number, updates, monkeypatch, capfd)
