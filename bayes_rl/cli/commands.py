"""Verbs of `bayes-rl`: those of Lightning's command line, `sweep`, `report`, `export` and `doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bayes_rl.utils.stop_signals import STOP, Stopped, end_process

HELP = """\
usage: bayes-rl VERB [options]

  fit       train an agent
  validate  play validation games with a trained agent
  test      play test games with a trained agent
  predict   record videos of a trained agent
  sweep     search options, or make a grid of fits, on one machine or many
  report    compare runs over several tasks
  export    write an agent's weights and settings to a safetensors file
  doctor    print versions, processor, devices and extras, and train a tiny agent as a test

bayes-rl VERB --help lists the options of a verb, bayes-rl --version the version."""

TRAINER_VERBS = ("fit", "validate", "test", "predict")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bayes-rl: error: {message}\n")


# The verbs import what they need when they run: `--help` and `--version` should not wait for Lightning.
def report(words: Sequence[str]) -> None:
    """Compare runs, and write `report.md`, `curves.png` and `matrix.png`."""
    text = "Compare agents that learned several tasks in turn: tables, learning curves and score matrices."
    parser = _Parser("bayes-rl report", description=text, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="directory with config.yaml and metrics.npy")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("report"), help="directory to write to")
    parser.add_argument("--references", metavar="FILE", type=Path, help="JSON: {task: [random, reference]}")
    parser.add_argument("--normalise", choices=("human", "reference"), help="the raw score that counts as 1")
    parser.add_argument("--allow_incomplete", action="store_true", help="report runs that are not finished")
    options = parser.parse_args(words)
    from bayes_rl.reporting.report import ReportError, write_report

    try:
        written = write_report(**vars(options))
    except ReportError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--output: {str(options.output)!r} cannot be written to: {error.strerror}: {error.filename}")
    for warning in written.warnings:
        print(f"bayes-rl: warning: {warning}", file=sys.stderr)
    print(written.text, *written.files, sep="\n")


def export(words: Sequence[str]) -> None:
    """Write the agent of a checkpoint to a safetensors file."""
    text = "Write the weights and settings of a trained agent to a safetensors file."
    parser = _Parser("bayes-rl export", description=text, allow_abbrev=False)
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="checkpoint of a run")
    parser.add_argument("output", metavar="OUT.safetensors", type=Path, help="file to write")
    parser.add_argument("--average", action="store_true", help="the moving average of the weights, not the newest")
    parser.add_argument("--half", action="store_true", help="16-bit weights: half the file, and nearly equal actions")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.safetensors")
    text = "your own module, or a list of modules, beside those of the run's config.yaml"
    parser.add_argument("--import_modules", metavar="MODULE", help=text)
    arguments = vars(parser.parse_args(words))
    from bayes_rl.cli.user_modules import import_modules_of_run, write_stack_trace
    from bayes_rl.errors import ConfigError, UserCodeError
    from bayes_rl.training.export import ExportError, export_agent

    modules = arguments.pop("import_modules")
    try:
        import_modules_of_run(str(arguments["checkpoint"]), [f"--import_modules={modules}"] if modules else [])
        agent = export_agent(**arguments)
    except (ConfigError, OSError) as error:
        trace = write_stack_trace(error, []) if isinstance(error, UserCodeError) else ""
        parser.error(f"{error.line if isinstance(error, ExportError) else error}{trace}")
    output = arguments["output"]
    game, size = agent["hyper_parameters"].get("game"), output.stat().st_size
    print(f"{output}: {game}, {agent['frames']:,} frames, {size:,} bytes")
    print(f"play it with: bayes-rl validate --ckpt_path {output}")


def sweep(words: Sequence[str]) -> None:
    """Search options of `fit`, or make a grid of fits."""
    text = (
        "Fit trials of a space of options, each with several seeds, and report the best options. "
        "Other options are those of `bayes-rl fit` for all trials. The same command continues an interrupted sweep."
    )
    usage = "bayes-rl sweep SPACE.yaml --config NAME [options]"
    parser = _Parser("bayes-rl sweep", description=text, allow_abbrev=False, usage=usage)
    parser.add_argument("space", metavar="SPACE.yaml", type=Path, help="file of options with their values; comes first")
    parser.add_argument("--output", metavar="DIR", type=Path, help="directory of the sweep (default: sweeps/SPACE)")
    parser.add_argument("--seeds", metavar="N", type=int, help="seeds of a trial, 100, 101, ... (default: 5)")
    parser.add_argument("--trials", metavar="N", type=int, default=40, help="trials of a search (default: 40)")
    parser.add_argument("--minutes", metavar="M", type=float, help="train each fit for M minutes, not for equal frames")
    parser.add_argument("--no_pruning", action="store_true", help="do not stop trials with low scores early")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="CPU threads of a fit (default: 1)")
    parser.add_argument("--gpus", metavar="G", type=float, default=0, help="GPUs of a fit, such as 0.25 (default: 0)")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: start Ray here)")
    if words and words[0].startswith("-") and not {"-h", "--help"} & {*words}:
        parser.error("the first word behind sweep is the file SPACE.yaml")
    options, of_fit = parser.parse_known_args(words)
    from bayes_rl.sweep.cluster import missing_packages

    if missing := missing_packages():
        parser.error(f"sweep needs {' and '.join(missing)}, not installed; type: pip install 'bayes_rl[cluster]'")
    from bayes_rl.cli.sweep import run

    run(options, of_fit)


def doctor(words: Sequence[str]) -> None:
    """Print what a report of a bug should name, and test the installation; exit with code 1 if something fails."""
    text = (
        "Print versions, processor, memory, devices and installed extras, and train a tiny agent for a few seconds, "
        "resume its training and compare. Exit code 0: all is well; 1: a line says what failed."
    )
    _Parser("bayes-rl doctor", description=text, allow_abbrev=False).parse_args(words)
    from bayes_rl.cli.doctor import check_installation

    if not check_installation():
        sys.exit(1)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "sweep": sweep,
    "report": report,
    "export": export,
    "doctor": doctor,
}


def main() -> None:
    """Run the verb on the command line; wrong input prints one line and exits with code 2."""
    with STOP.listening():
        try:
            _run_verb()
            STOP.allow()  # a destructor or foreign code may have caught `Stopped`
        except Stopped as stop:
            end_process(stop)


def _run_verb() -> None:
    verb, *words = sys.argv[1:] or [""]
    if verb in COMMANDS:
        COMMANDS[verb](words)
    elif verb == "--version":
        print(f"bayes-rl {_version()}")
    elif verb in ("-h", "--help"):
        print(HELP)
    elif verb in TRAINER_VERBS or verb.startswith("-"):
        from bayes_rl.cli.app import main as run_trainer

        run_trainer()
    else:
        from bayes_rl.errors import did_you_mean

        verbs = [*TRAINER_VERBS, *COMMANDS]
        problem = f"{verb!r} is no verb{did_you_mean(verb, verbs)}" if verb else f"name a verb: {', '.join(verbs)}"
        print(f"bayes-rl: error: {problem}", file=sys.stderr)
        sys.exit(2)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("bayes_rl")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
