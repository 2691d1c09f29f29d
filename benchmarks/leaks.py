"""Whether a long run grows: memory, open files and threads of 100 000 updates of CartPole.

    python benchmarks/leaks.py [--updates 100000] [--every 10000]

A run of the real command line, with its logs, validations and checkpoints, watches itself every so many updates. Memory
is what lies in RAM (`VmRSS` of /proc/self/status): its own (`RssAnon`), and files mapped into it (`RssFile`: the
libraries, and the replay, whose pages the system takes back when it needs them). Written to `docs/results/leaks.json`;
exits with 1 if the own memory is more than 5 % above that after the first of these counts, or if there are more files
or threads than there were then.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from common import ROOT, origin, write
from pytorch_lightning.callbacks import Callback

EPOCH = 20_000  # frames: 5 000 updates, so that the first count comes after a validation and its picture


class Watch(Callback):
    """Notes what the process holds, every so many updates.

    Args:
        every: updates between two notes.
    """

    rows: list[dict[str, float]] = []  # noqa: RUF012  (of the one run in this process)

    def __init__(self, every: int = 10_000) -> None:
        self.every = every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            row = {"updates": trainer.global_step, "seconds": round(time.perf_counter() - self._began, 1)} | held()
            Watch.rows.append(row)
            print(row, flush=True)


def held() -> dict[str, float]:
    """Memory of this process in MiB, its open files and its threads."""
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    status = {key: value.split() for key, value in lines}
    memory = {"rss_mib": "VmRSS", "own_mib": "RssAnon", "mapped_mib": "RssFile", "shared_mib": "RssShmem"}
    sizes = {name: round(int(status[key][0]) / 1024, 1) for name, key in memory.items()}
    return sizes | {"files": len(os.listdir("/proc/self/fd")), "threads": int(status["Threads"][0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000, help="updates between two looks")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/leaks.json")
    options = parser.parse_args()
    source = origin(" ".join(["python", *sys.argv]))
    watch = f'{{"class_path": "leaks.Watch", "init_args": {{"every": {options.every}}}}}'
    settings = {
        "trainer.max_epochs": -(-options.updates // (EPOCH // 4)),
        "trainer.max_steps": options.updates,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks+": watch,
        "data.frames_per_epoch": EPOCH,
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    sys.path[:0] = [str(ROOT)]
    import leaks  # as the command line finds it: not this copy of it, which is called __main__

    from bayes_rl.cli import app as cli

    with tempfile.TemporaryDirectory() as folder:
        words.append(f"--trainer.default_root_dir={folder}")
        sys.argv = ["cli.py", "fit", "--config", str(ROOT / "configs/cartpole.yaml"), *words]
        cli.run()
    rows = leaks.Watch.rows
    first, last = rows[0], rows[-1]
    growth = {key: round(last[key] / first[key], 4) for key in ("rss_mib", "own_mib", "mapped_mib")}
    more = {key: last[key] - first[key] for key in ("files", "threads")}
    write(options.output, {**source, "growth": growth, "more": more, "rows": rows})
    print(growth, more)
    sys.exit(growth["own_mib"] > 1.05 or growth["rss_mib"] > 1.05 or any(value > 0 for value in more.values()))


if __name__ == "__main__":
    main()
