"""Command of a sweep in a process of its own: `python -m tests.helpers.sweep_process SWEEP COMMAND [ADDRESS]`.

A forked process could not use Ray after its parent has.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from bayes_rl.sweep.run import run_sweep

if __name__ == "__main__":
    run_sweep(pickle.loads(Path(sys.argv[1]).read_bytes()), sys.argv[2], *(sys.argv[3:] or [None]))
