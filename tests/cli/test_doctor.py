"""The verb `doctor`: what a healthy installation prints, and each thing that can be wrong with an installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from bayes_rl.cli import doctor, main, self_test
from bayes_rl.cli.doctor import Finding
from bayes_rl.errors import RunError
from tests.helpers.command_line import ROOT

NAMES = ["bayes_rl", "Python", "torch", "Lightning", "gymnasium", "ale-py"]
NAMES += ["system", "processor", "cores", "memory", "devices", "extras", "self test"]


@pytest.mark.slow
def test_an_installation_that_trains_is_well(tmp_path: Path) -> None:
    """In a process of its own, in a folder whose files have the names of modules, with options of another command."""
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')")
    words = [sys.executable, str(ROOT / "cli.py"), "doctor"]
    variables = {"PATH": "/usr/bin:/bin", "BAYES_RL_FIT__TRAINER__MAX_EPOCHS": "x", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert [line[:12].strip() for line in lines] == NAMES, done.stdout + done.stderr
    assert lines[-1][12:].startswith("ok: 60 updates, resumed after 30 with equal weights")
    assert (done.returncode, done.stderr) == (0, "")
    assert torch.__version__ in lines[2]
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


@pytest.mark.parametrize(("is_good", "code"), [(True, None), (False, 1)])
def test_the_exit_code_says_whether_all_is_well(
    is_good: bool, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: Finding("self test", "as it is", is_good))
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "doctor"])
    try:
        main()
        found = None
    except SystemExit as end:
        found = end.code
    assert found == code
    assert capsys.readouterr().out.splitlines()[-1] == "self test   as it is"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import sys; print('ok: as it should'); print('noise', file=sys.stderr)", "ok: as it should"),
        ("raise ValueError('broken')", "failed: ValueError: broken; the whole output: python -m"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "failed: signal SIGILL; "),
        ("import time; time.sleep(60)", "failed: it was not ready after 2 s"),
        ("import sys; sys.exit(3)", "failed: no output; "),
    ],
)
def test_each_end_of_the_self_test_is_one_line(program: str, expected: str) -> None:
    finding = doctor.self_test((sys.executable, "-c", program), limit=2 if "sleep" in program else 60)
    assert finding.text.startswith(expected)
    assert finding.is_good == (not expected.startswith("failed"))
    assert "\n" not in finding.text


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("torch>=2", torch.__version__),
        ("torch>=99", f"{torch.__version__}, but bayes_rl needs >=99"),
        ("no-such-package>=1", "not installed; type: pip install 'no-such-package>=1'"),
    ],
)
def test_a_package_that_is_absent_or_too_old_is_named(requirement: str, expected: str) -> None:
    finding = doctor.check_package("label", Requirement(requirement))
    assert finding == Finding("label", expected, expected == torch.__version__)


def test_a_required_package_that_is_absent_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [Requirement("torch"), Requirement("no-such-package"), Requirement('other; extra == "more"')]
    monkeypatch.setattr(doctor, "required", lambda: requirements)
    monkeypatch.setattr(doctor, "self_test", lambda: Finding("self test", "ok"))
    bad = [finding.name for finding in doctor.findings() if not finding.is_good]
    assert bad == ["no-such-package"]


def test_what_an_extra_misses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch", 'no-such-package; extra == "video"', 'bayes-rl[video]; extra == "dev"', 'numpy; extra == "dev"']
    monkeypatch.setattr(doctor, "required", lambda: [Requirement(line) for line in lines])
    found = {extra: doctor.missing_packages(extra) for extra in ("video", "dev", "docs")}
    assert found == {"video": ["no-such-package"], "dev": ["no-such-package"], "docs": []}


def test_an_error_of_a_part_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("two\nlines")

    assert doctor._guarded("devices", broken) == Finding("devices", "failed: OSError: two lines", is_good=False)


def test_the_self_test_fails_if_a_resumed_agent_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "fit", lambda folder, *_: torch.nn.Linear(2, 2))  # other weights at every call
    with pytest.raises(RunError, match="differs from the other agent in 2 tensors, weight first"):
        self_test.run()


def test_tensors_with_nan_are_compared() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.running_mean = torch.tensor([1.0, float("nan")])
    other = torch.nn.BatchNorm1d(2)
    other.running_mean = torch.tensor([1.0, 0.0])
    assert self_test.different_tensors(module, module) == []  # type: ignore[arg-type]
    assert self_test.different_tensors(module, other) == ["running_mean"]  # type: ignore[arg-type]
