"""Verbs of the command: help and version without Lightning, names of bundled configurations, wrong verbs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bayes_rl.cli import main
from bayes_rl.cli.arguments import bundled_configs, with_bundled_configs
from tests.helpers.command_line import ROOT, error_of, run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["report", "--help"], ["export", "--help"], ["sweep", "--help"], ["doctor", "--help"]],
    ids=" ".join,
)
def test_help_and_version_do_not_wait_for_lightning(words: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['bayes-rl', *{words}]\n"
        "from bayes_rl.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'pytorch_lightning', 'matplotlib', 'gymnasium', 'ale_py'} & {*sys.modules}\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("bayes-rl " if words == ["--version"] else "usage: bayes-rl ")


def test_the_list_of_verbs_names_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "--help"])
    main()
    printed = capsys.readouterr().out
    assert all(
        f"\n  {verb} " in printed
        for verb in ("fit", "validate", "test", "predict", "sweep", "report", "export", "doctor")
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "name a verb: fit, validate, test, predict, sweep, report, export, doctor"),
        (["fitt"], "'fitt' is no verb; nearest: 'fit'"),
        (["exprot", "a"], "'exprot' is no verb; nearest: 'export'"),
        (["report"], "required: RUN"),
        (["doctor", "--quick"], "unrecognized arguments: --quick"),
        (["report", "nowhere"], "nowhere is no directory"),
        (["export", "a.ckpt"], "required: OUT.safetensors"),
        (["export", "a.ckpt", "a.safetensors"], "'a.ckpt' does not exist"),
        (["fit", "--config=quikstart"], "--config: 'quikstart' is neither a file nor a bundled configuration"),
        (["fit", "--config", "quikstart"], "nearest: 'quickstart'"),
        (["fit", "-cquikstart"], "nearest: 'quickstart'"),
        (["fit", "--config", "quikstart.yaml"], "'quikstart.yaml' does not exist; nearest: 'quickstart'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_one_line(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_of(monkeypatch, capsys, *words)


def test_every_configuration_is_bundled() -> None:
    assert bundled_configs() == {path.stem: path for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.parametrize("form", [["--config", "NAME"], ["--config=NAME"], ["-c", "NAME"], ["-cNAME"], ["-c=NAME"]])
def test_a_name_is_a_bundled_configuration_unless_it_is_a_file(form: list[str]) -> None:
    def words(name: str) -> list[str]:
        return ["fit", *(word.replace("NAME", name) for word in form), "--name", "cartpole"]

    assert with_bundled_configs(words("cartpole")) == words(str(ROOT / "configs/cartpole.yaml"))
    for name in ("./cartpole", "cartpole.yaml", "{}"):
        assert with_bundled_configs(words(name)) == words(name)
    Path("cartpole").touch()
    assert with_bundled_configs(words("cartpole")) == words("cartpole")


@pytest.mark.parametrize("beside", [False, True])
def test_a_named_configuration_runs_in_any_folder(beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if beside:  # its own file of that name counts only if it is named as a file
        Path("configs").mkdir()
        Path("configs/cartpole.yaml").write_text("data: {env: Acrobot-v1}\n")
    quick = ["--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false", "--data.replay.min_size=64"]
    assert run(monkeypatch, "fit", "--config", "cartpole", *quick).datamodule.settings.env == "CartPole-v1"


def test_a_signal_that_a_destructor_catches_still_decides_the_exit_code() -> None:
    """Python ignores exceptions in destructors, `Stopped` too; the verb then ends as if no signal had come."""
    program = (
        "import os, signal, sys\n"
        "from bayes_rl.cli import commands\n"
        "class Closed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "commands.COMMANDS['report'] = lambda words: Closed() and print('reported')\n"
        "sys.argv = ['bayes-rl', 'report']\n"
        "commands.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stdout == "reported\n"
