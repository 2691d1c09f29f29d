"""Overhead of the learner: an update of `fit` against one written by hand, and that one against its arithmetic.

    python -m benchmarks learner [--rounds 25] [--threads 2] [--encoders nature impala minatar mlp]

Batch 32, already in memory. In one process take turns: `fit` (Lightning's automatic optimization with the logger and
the callbacks of `fit`), `by_hand` (the same agent's training step, guard, optimizer and moving average called in a
loop), `bare` (`bare_learner.py`: the same mathematics in plain PyTorch) and `product` (a square matrix product of the
same number format). The floor is the time of the update's matrix products at the rate of `product`. Then follows the
original system's trunk. Results are medians and quartiles over rounds. The operations of the bare Nature update are
written to `learner_profile.txt` beside the results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.networks import NetworkSettings
from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint
from bayes_rl.training.callbacks.graceful_stop import GracefulStop
from bayes_rl.training.callbacks.progress import FrameProgress
from bayes_rl.training.callbacks.stream_metrics import StreamMetrics
from bayes_rl.types import Batch, Transition
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Results, Row, markdown
from benchmarks.speed.bare_learner import BareLearner
from benchmarks.speed.bayesian_heads import ACTIONS, HIDDEN, SHAPES, minibatch

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
STEPS = {"nature": 10, "impala": 2, "minatar": 60, "mlp": 100}  # updates per turn
SIDE = 2048  # of the square matrices
ORIGINAL_SECONDS = 17.0  # of a learning call of the original system on two cores

Update = Callable[[], Any]


# ------------------------------------------------------------------ turns of fit and of other loops
class StillData(ReplayDataModule):
    """Data module that repeats one minibatch for `fit`, without environments, and lets other loops take turns with it.

    Args:
        batch: the minibatch.
        rounds: turns of `fit` and of every other loop, after one for warm-up.
        steps: updates per turn.
        others: updates that take turns with `fit`, by name. One call is one update.
    """

    def __init__(self, batch: Batch, rounds: int, steps: int, others: dict[str, Update]) -> None:
        super().__init__("CartPole-v1")
        self.batch, self.rounds, self.steps, self.others = batch, rounds, steps, others
        self.times: dict[str, list[float]] = {name: [] for name in ("fit", *others)}

    def setup(self, stage: str) -> None:
        """Provide the numbers of a stream that the callbacks read."""
        self.stream: Any = SimpleNamespace(
            frames=0, epsilon=0.1, draw_share=0.0, recent_returns=[0.0], finished_episodes=0, agent_steps=0, updates=0
        )

    def sample_own_transitions(self, count: int, newest_share: float) -> Transition:
        """Return the first transitions of the minibatch."""
        return self.batch.transition.map(lambda x: x[:count])

    def train_dataloader(self) -> Any:
        """Return the loader, which is this object."""
        return self

    def __len__(self) -> int:
        return (self.rounds + 1) * self.steps + 1

    def __iter__(self) -> Iterator[Batch]:
        for round in range(self.rounds + 1):
            turns = list(self.times) if round % 2 else list(self.times)[::-1]
            for name in turns:
                start = time.perf_counter()
                if name == "fit":
                    for _ in range(self.steps):  # a request for the next minibatch ends the last update
                        yield self.batch
                else:
                    for _ in range(1 if name == "product" else self.steps):
                        self.others[name]()
                seconds = (time.perf_counter() - start) / (1 if name == "product" else self.steps)
                if round:
                    self.times[name].append(seconds)
        yield self.batch  # the request for it ends the last turn

    def state_dict(self) -> dict[str, Any]:
        """Return no state."""
        return {}

    def teardown(self, stage: str) -> None:
        """Close nothing."""
        return None


def fit(agent: VariationalActorCritic, data: StillData, precision: str, log_every: int = 100) -> dict[str, list[float]]:
    """Return the seconds of an update in every turn, by name; `fit` has the callbacks that act in every update.

    Args:
        agent: learns.
        data: minibatches and turns.
        precision: of Lightning.
        log_every: updates between two points of a curve.
    """
    with tempfile.TemporaryDirectory() as directory:
        saving = [KeptCheckpoint(directory, save_top_k=0, monitor=name) for name in ("val/return_mean", None)]
        trainer = pl.Trainer(
            accelerator="cpu",
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,
            limit_val_batches=0,
            log_every_n_steps=log_every,
            enable_model_summary=False,
            default_root_dir=directory,
            logger=TensorBoardLogger(directory, default_hp_metric=False),
            callbacks=[*saving, StreamMetrics(), GracefulStop(), FrameProgress()],
        )
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the progress bar writes there
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
            trainer.fit(agent, datamodule=data)
    return data.times


def by_hand(agent: VariationalActorCritic, batch: Batch, precision: str) -> Update:
    """Return a function that does one update of an agent outside of Lightning's loop."""
    agent._trainer = SimpleNamespace(log_every_n_steps=0, gradient_clip_val=None, precision=precision, global_step=0)  # type: ignore[assignment]
    optimizer: Any = agent.configure_optimizers()

    def update() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            loss = agent.training_step(batch, 0)
        loss.backward()
        agent.on_before_optimizer_step(optimizer)
        optimizer.step()
        agent.update_moving_average()

    return update


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which Lightning runs a training step."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


# ------------------------------------------------------------------ measurements
def make_agent(encoder: str, bayesian: str = "heads") -> VariationalActorCritic:
    """Return an agent of the sizes of the benchmark `bayesian_heads`."""
    torch.manual_seed(0)
    network = NetworkSettings(encoder, HIDDEN[encoder], bayesian=bayesian)
    return VariationalActorCritic(network, observation_shape=SHAPES[encoder], num_actions=ACTIONS)


def product(dtype: torch.dtype) -> Update:
    """Return a large square matrix product, as the fastest arithmetic of this machine."""
    x = torch.randn(SIDE, SIDE).to(dtype)
    return lambda: x @ x


def counted_flops(update: Update) -> int:
    """Count the operations of the matrix products and convolutions of an update, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def compare(encoder: str, precision: str, bayesian: str, rounds: int) -> dict[str, Any]:
    """Measure all loops in turns; return milliseconds of an update, and ratios with their quartiles over rounds."""
    batch, dtype = minibatch(SHAPES[encoder]), PRECISIONS[precision]
    fitted, other = (make_agent(encoder, bayesian=bayesian) for _ in range(2))
    bare = BareLearner(fitted, encoder, dtype)
    flops = counted_flops(lambda: bare.update(batch))
    others = {
        "by_hand": by_hand(other, batch, precision),
        "bare": lambda: bare.update(batch),
        "product": product(dtype),
    }
    times = fit(fitted, StillData(batch, rounds, STEPS[encoder], others), precision)
    rates = [2 * SIDE**3 / seconds for seconds in times["product"]]
    floors = [flops / rate for rate in rates]
    return {
        "gflop": flops / 1e9,
        "gflop_per_second": statistics.median(rates) / 1e9,
        "floor_ms": 1000 * statistics.median(floors),
        **{f"{name}_ms": 1000 * statistics.median(times[name]) for name in ("fit", "by_hand", "bare")},
        **ratio("fit_to_bare", times["fit"], times["bare"]),
        **ratio("bare_to_floor", times["bare"], floors),
        **ratio("fit_to_by_hand", times["fit"], times["by_hand"]),
    }


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles of the ratios of turns."""
    low, median, high = np.quantile(np.divide(ours, theirs), (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_quartiles": [float(low), float(high)]}


def measure_original(cell: Cell, options: Options) -> Row:
    """Measure the original system's trunk in `fit`: seconds of an update.

    The trunk has either the best settings or those of `seed.yaml`, which include the Fisher information every eight
    updates.
    """
    seed = yaml.safe_load((ROOT / "configs" / "seed.yaml").read_text())["model"]
    best = {"network": seed["network"] | {"shared_trunk": True}}
    of_seed = cell["settings"] == "seed.yaml"
    settings, turns, steps = (seed, 1, 8) if of_seed else (best, options.original, 1)
    torch.manual_seed(0)
    agent = VariationalActorCritic(**settings, observation_shape=(4, 84, 84), num_actions=6)
    times = fit(agent, StillData(minibatch((4, 84, 84)), turns, steps, {}), cell["precision"])["fit"]
    low, median, high = map(float, np.quantile(times, (0.25, 0.5, 0.75)))
    row = {"seconds": median, "seconds_quartiles": [low, high]}
    return row | {"original_to_ours": ORIGINAL_SECONDS / median}


def write_profile(path: Path, head: str) -> None:
    """Write the times of the operations of the bare Nature update."""
    agent, batch = make_agent("nature"), minibatch(SHAPES["nature"])
    bare = BareLearner(agent, "nature", torch.float32)
    bare.update(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(20):
            bare.update(batch)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50)
    path.write_text(f"{head}\n20 updates of `bare`, Nature, batch 32, float32\n{table}\n")


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all encoders with both precisions and kinds of heads, then the original system's trunk."""
    updates = [(e, p, b) for e in options.encoders for p in PRECISIONS for b in ("heads", "none")]
    found = [dict(zip(("part", "encoder", "precision", "bayesian"), ("update", *u), strict=True)) for u in updates]
    if not options.original:
        return found
    settings = ["best settings", *(["seed.yaml"] if options.own_settings else [])]
    return found + [{"part": "original", "settings": name, "precision": p} for name in settings for p in PRECISIONS]


def measure(cell: Cell, options: Options) -> Row:
    """Measure one update of the comparison, or of the original system's trunk."""
    torch.set_num_threads(options.threads)
    if cell["part"] == "original":
        return measure_original(cell, options)
    return compare(cell["encoder"], cell["precision"], cell["bayesian"], options.rounds)


def table(rows: list[Row]) -> str:
    """Return both parts as Markdown, without the quartiles."""
    tables = []
    for part in ("update", "original"):
        found = [row for row in rows if row["part"] == part]
        if found:
            columns = [key for key in found[0] if key != "part" and not key.endswith("quartiles")]
            tables.append(markdown(found, columns))
    return "\n".join(tables)


def draw(rows: list[Row]) -> Figure | None:
    """Draw bars of both ratios, with the quartiles over rounds."""
    rows = [row for row in rows if row["part"] == "update"]
    if not rows:
        return None
    figure = Figure(figsize=(11, 4.5), layout="tight")
    names = [f"{r['encoder']} {r['precision'].split('-')[0]}\n{r['bayesian']}" for r in rows]
    bars = (("fit_to_bare", "fit / bare loop", 1.1), ("bare_to_floor", "bare loop / arithmetic floor", 1.8))
    for axes, (key, title, goal) in zip(figure.subplots(1, 2), bars, strict=True):
        values = [r[key] for r in rows]
        quartiles = np.array([r[f"{key}_quartiles"] for r in rows]).T
        axes.barh(names, values, xerr=np.abs(quartiles - values), color="tab:blue")
        axes.axvline(goal, color="tab:red", linewidth=1, label=f"{goal:g}")
        axes.set_title(title)
        axes.set_xscale("log" if key == "bare_to_floor" else "linear")
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.legend()
    return figure


def profile_bare_update(options: Options, results: Results) -> None:
    """Write the profile beside the results, with their origin."""
    head = "\n".join(f"{key}: {value}" for key, value in results.source.items())
    write_profile(options.output.with_name("learner_profile.txt"), head)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the encoders and the options of the original system's trunk."""
    parser.add_argument("--encoders", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--original", type=int, default=10, help="updates of the original's trunk; 0 leaves it out")
    text = "measure the settings of seed.yaml too, which takes a minute or two"
    parser.add_argument("--own_settings", action=argparse.BooleanOptionalAction, default=True, help=text)


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    draw=draw,
    finish=profile_bare_update,
    add_arguments=add_arguments,
    shared={"rounds": 25, "threads": 2},
    facts=lambda options: {"batch": 32},
)
