"""How far the learner is from its arithmetic: an update of `fit` against one written out by hand, and that one
against the time its matrix products take at the machine's own rate.

    python benchmarks/learner_throughput.py [--rounds 25] [--threads 2] [--encoders nature impala minatar mlp]

Batch 32, already in memory. In one process take turns: `fit` (Lightning's automatic optimization with the logger and
the callbacks of `fit`), `by_hand` (the same agent's training step, guard, optimizer and moving average called in a
loop), `bare` (`bare_learner.py`: the same mathematics in plain PyTorch) and `product` (a square matrix product of the
same number format). Then the original system's trunk. Medians and quartiles over rounds are printed and written to
`docs/results/learner.json`, with a plot beside it, and the operations of the bare Nature update to
`docs/results/learner_profile.txt`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from bare_learner import BareLearner
from bayes_cost import ACTIONS, HIDDEN, SHAPES, minibatch
from common import ROOT, origin, write
from pytorch_lightning.loggers import TensorBoardLogger
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint
from bayes_rl.training.callbacks.graceful_stop import GracefulStop
from bayes_rl.training.callbacks.progress import FrameProgress
from bayes_rl.training.callbacks.stream_metrics import StreamMetrics
from bayes_rl.types import Batch, Transition

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
STEPS = {"nature": 10, "impala": 2, "minatar": 60, "mlp": 100}  # updates per turn
SIDE = 2048  # of the square matrices
ORIGINAL_SECONDS = 17.0  # of a learning call of the original system on two cores

Update = Callable[[], Any]


# ------------------------------------------------------------------ fit with others between
class StillData(ReplayDataModule):
    """One minibatch over and over, in turns with others: what `fit` reads, without environments.

    Args:
        batch: the minibatch.
        rounds: turns of each, after one to warm up.
        steps: updates per turn.
        others: what takes turns with `fit`, by name; one call is a step.
    """

    def __init__(self, batch: Batch, rounds: int, steps: int, others: dict[str, Update]) -> None:
        super().__init__("CartPole-v1")
        self.batch, self.rounds, self.steps, self.others = batch, rounds, steps, others
        self.times: dict[str, list[float]] = {name: [] for name in ("fit", *others)}

    def setup(self, stage: str) -> None:
        self.stream: Any = SimpleNamespace(
            frames=0, epsilon=0.1, recent_returns=[0.0], finished_episodes=0, agent_steps=0, updates=0
        )

    def fisher_samples(self, count: int) -> Transition:
        return Transition(*(x[:count] for x in self.batch.transition))

    def train_dataloader(self) -> Any:
        return self

    def __len__(self) -> int:
        return (self.rounds + 1) * self.steps + 1

    def __iter__(self) -> Iterator[Batch]:
        for round in range(self.rounds + 1):
            turns = list(self.times) if round % 2 else list(self.times)[::-1]
            for name in turns:
                start = time.perf_counter()
                if name == "fit":
                    for _ in range(self.steps):  # asked for the next one, `fit` has done with the last
                        yield self.batch
                else:
                    for _ in range(1 if name == "product" else self.steps):
                        self.others[name]()
                seconds = (time.perf_counter() - start) / (1 if name == "product" else self.steps)
                if round:
                    self.times[name].append(seconds)
        yield self.batch  # or the end of the last turn would not be asked for

    def state_dict(self) -> dict[str, Any]:
        return {}

    def teardown(self, stage: str) -> None:
        return None


def fit(agent: VariationalActorCritic, data: StillData, precision: str) -> dict[str, list[float]]:
    """Seconds of a step of all in turn, `fit` with the callbacks that have a part in every update."""
    with tempfile.TemporaryDirectory() as directory:
        saving = [KeptCheckpoint(directory, save_top_k=0, monitor=name) for name in ("val/return_mean", None)]
        trainer = pl.Trainer(
            accelerator="cpu",
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,
            limit_val_batches=0,
            log_every_n_steps=100,
            enable_model_summary=False,
            default_root_dir=directory,
            logger=TensorBoardLogger(directory, default_hp_metric=False),
            callbacks=[*saving, StreamMetrics(), GracefulStop(), FrameProgress()],
        )
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # where the progress bar draws
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
            trainer.fit(agent, datamodule=data)
    return data.times


def by_hand(agent: VariationalActorCritic, batch: Batch, precision: str) -> Update:
    """One update of an agent outside of Lightning's loop."""
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
    """What Lightning wraps a training step in."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


# ------------------------------------------------------------------ what is measured
def make_agent(encoder: str, **settings: Any) -> VariationalActorCritic:
    """An agent of the sizes of `bayes_cost.py`."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_dim": HIDDEN[encoder], "observation_shape": SHAPES[encoder]}
    return VariationalActorCritic(encoder=encoder, num_actions=ACTIONS, **sizes, **settings)


def product(dtype: torch.dtype) -> Update:
    """A large square matrix product: the fastest arithmetic that there is."""
    x = torch.randn(SIDE, SIDE).to(dtype)
    return lambda: x @ x


def counted_flops(update: Update) -> int:
    """Of the matrix products and convolutions of an update, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def compare(encoder: str, precision: str, bayesian: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of an update and ratios, medians over rounds and their quartiles."""
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
        "encoder": encoder,
        "precision": precision,
        "bayesian": bayesian,
        "gflop": flops / 1e9,
        "gflop_per_second": statistics.median(rates) / 1e9,
        "floor_ms": 1000 * statistics.median(floors),
        **{f"{name}_ms": 1000 * statistics.median(times[name]) for name in ("fit", "by_hand", "bare")},
        **ratio("fit_to_bare", times["fit"], times["bare"]),
        **ratio("bare_to_floor", times["bare"], floors),
        **ratio("fit_to_by_hand", times["fit"], times["by_hand"]),
    }


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios of turns."""
    low, median, high = np.quantile(np.divide(ours, theirs), (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_quartiles": [float(low), float(high)]}


def original(rounds: int, own: bool) -> list[dict[str, Any]]:
    """Seconds of an update of the original system's trunk in `fit`: in the best settings, in both precisions, and in
    `seed.yaml`'s own, with what the Fisher information takes every eight updates.
    """
    seed = yaml.safe_load((ROOT / "configs" / "seed.yaml").read_text())["model"]
    best = {"encoder": seed["encoder"], "hidden_dim": seed["hidden_dim"], "shared_trunk": True}
    cases = [
        ("best settings", "32-true", best, rounds, 1),
        ("best settings", "bf16-mixed", best, rounds, 1),
        ("seed.yaml", "32-true", seed, 1, 8),
        ("seed.yaml", "bf16-mixed", seed, 1, 8),
    ]
    rows = []
    for name, precision, settings, turns, steps in cases if own else cases[:2]:
        torch.manual_seed(0)
        agent = VariationalActorCritic(**settings, observation_shape=(4, 84, 84), num_actions=6)
        times = fit(agent, StillData(minibatch((4, 84, 84)), turns, steps, {}), precision)["fit"]
        low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
        row = {"settings": name, "precision": precision, "seconds": median, "seconds_quartiles": [low, high]}
        rows.append(row | {"original_to_ours": ORIGINAL_SECONDS / median})
    return rows


def profiled(path: Path, head: str) -> None:
    """Write what the operations of the bare Nature update take."""
    agent, batch = make_agent("nature"), minibatch(SHAPES["nature"])
    bare = BareLearner(agent, "nature", torch.float32)
    bare.update(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(20):
            bare.update(batch)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50)
    path.write_text(f"{head}\n20 updates of `bare`, Nature, batch 32, float32\n{table}\n")


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Bars of both ratios, with the quartiles of rounds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    names = [f"{r['encoder']} {r['precision'].split('-')[0]}\n{r['bayesian']}" for r in rows]
    bars = (("fit_to_bare", "fit / bare loop", 1.1), ("bare_to_floor", "bare loop / arithmetic floor", 1.8))
    for ax, (key, title, goal) in zip(axes, bars, strict=True):
        values = [r[key] for r in rows]
        quartiles = np.array([r[f"{key}_quartiles"] for r in rows]).T
        ax.barh(names, values, xerr=np.abs(quartiles - values), color="tab:blue")
        ax.axvline(goal, color="tab:red", linewidth=1, label=f"{goal:g}")
        ax.set_title(title)
        ax.set_xscale("log" if key == "bare_to_floor" else "linear")
        ax.tick_params(axis="y", labelsize=7)
        ax.invert_yaxis()
        ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def shown(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of one line each."""
    columns = [key for key in rows[0] if not key.endswith("quartiles")]
    lines = [columns] + [[f"{r[c]:.3g}" if isinstance(r[c], float) else str(r[c]) for c in columns] for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="turns of each")
    parser.add_argument("--threads", type=int, default=2, help="of the learner")
    parser.add_argument("--encoders", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--original", type=int, default=10, help="updates of the original's trunk; 0 leaves it out")
    help = "time seed.yaml's own settings too, for a minute or two"
    parser.add_argument("--own_settings", action=argparse.BooleanOptionalAction, default=True, help=help)
    parser.add_argument("--output", type=Path, default=Path("docs/results/learner.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = origin(" ".join(["python", *sys.argv]))
    cases = [(e, p, b) for e in options.encoders for p in PRECISIONS for b in ("heads", "none")]
    rows = [compare(*case, options.rounds) for case in cases]
    trunk = original(options.original, options.own_settings) if options.original else []
    for table in filter(None, (rows, trunk)):
        print()
        shown(table)
    write(
        options.output,
        {
            **source,
            "batch": 32,
            "threads": options.threads,
            "rounds": options.rounds,
            "updates": rows,
            "original": trunk,
        },
    )
    plot(options.output.with_suffix(".png"), rows)
    profiled(options.output.with_name("learner_profile.txt"), "\n".join(f"{k}: {v}" for k, v in source.items()))


if __name__ == "__main__":
    main()
