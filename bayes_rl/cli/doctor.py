"""Check of an installation: versions, machine, devices, extras and a self test, one line each."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bayes_rl.utils.memory import available_memory

PACKAGES = {"torch": "torch", "Lightning": "pytorch-lightning", "gymnasium": "gymnasium", "ale-py": "ale-py"}
"""Label of a line to the name of a package that a run depends on."""

SELF_TEST = (sys.executable, "-P", "-m", "bayes_rl.cli.self_test")
"""Words of the self test; with `-P` a file in the current folder replaces no module of the same name."""

LIMIT = 300.0
"""Seconds after which the self test has failed; the self test takes about ten."""


class Finding(NamedTuple):
    """Line of the check.

    Attributes:
        name: label of the line.
        text: what was found.
        is_good: False if agents cannot be trained with what was found.
    """

    name: str
    text: str
    is_good: bool = True


def check_installation() -> bool:
    """Print a line for each finding, and return whether all are good."""
    good = True
    for finding in findings():
        print(f"{finding.name:<12}{finding.text}", flush=True)
        good = good and finding.is_good
    return good


def findings() -> Iterator[Finding]:
    """Yield what a report of a bug should name, and the result of the self test."""
    requirements = {str(canonicalize_name(r.name)): r for r in required() if _applies(r)}
    yield Finding("bayes_rl", version_of("bayes_rl") or "unknown: a checkout that is not installed")
    yield Finding("Python", platform.python_version())
    for label, package in PACKAGES.items():
        yield check_package(label, requirements.pop(package, Requirement(package)))
    for requirement in requirements.values():
        finding = check_package(requirement.name, requirement)
        if not finding.is_good:
            yield finding
    yield Finding("system", platform.platform())
    yield Finding("processor", processor())
    yield Finding("cores", str(os.cpu_count()))
    yield _guarded("memory", lambda: f"{available_memory() / 2**30:.1f} GiB free")
    yield _guarded("devices", devices)
    yield Finding("extras", extras_in_words())
    yield self_test()


def _guarded(name: str, find: Callable[[], str]) -> Finding:
    """Return a finding, or the error that prevents the finding."""
    try:
        return Finding(name, find())
    except Exception as error:  # a broken installation may raise anything
        return Finding(name, f"failed: {' '.join(f'{type(error).__name__}: {error}'.split())}", is_good=False)


# ------------------------------------------------------------------------------------------------ packages
def required() -> list[Requirement]:
    """Return the requirements of the installed package, those of extras too; none if it is not installed."""
    try:
        return [Requirement(line) for line in metadata.requires("bayes_rl") or []]
    except metadata.PackageNotFoundError:
        return []


def _applies(requirement: Requirement, extra: str = "") -> bool:
    """Return whether an installation with an extra asks for a requirement; without an extra for `""`."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def version_of(package: str) -> str | None:
    """Return the version of a package, or None if the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_package(label: str, requirement: Requirement) -> Finding:
    """Return the version of a package, and whether bayes_rl can use the version."""
    version, needed = version_of(requirement.name), str(requirement.specifier)
    if version is None:
        return Finding(label, f"not installed; type: pip install '{requirement.name}{needed}'", is_good=False)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(label, f"{version}, but bayes_rl needs {needed}", is_good=False)
    return Finding(label, version)


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed, or not in a version that the extra asks for."""
    missing: list[str] = []
    for requirement in required():
        if requirement.marker is None or _applies(requirement) or not _applies(requirement, extra):
            continue
        if canonicalize_name(requirement.name) == "bayes-rl":  # an extra that consists of others
            missing += [package for part in sorted(requirement.extras) for package in missing_packages(part)]
        elif not check_package("", requirement).is_good:
            missing.append(requirement.name)
    return missing


def extras_in_words() -> str:
    """Return which extras are installed, and what the others miss."""
    if version_of("bayes_rl") is None:
        return "unknown"
    extras = metadata.metadata("bayes_rl").get_all("Provides-Extra") or []
    missing = {extra: missing_packages(extra) for extra in extras}
    installed = [extra for extra, packages in missing.items() if not packages]
    rest = [f"{extra} ({', '.join(packages)})" for extra, packages in missing.items() if packages]
    return f"{', '.join(installed) or 'none'}" + (f"; missing: {', '.join(rest)}" if rest else "")


# ------------------------------------------------------------------------------------------------ machine
def processor() -> str:
    """Return the model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def devices() -> str:
    """Return the devices that torch can train on."""
    import torch

    found = ["cpu"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number} {about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return "; ".join(found)


# ------------------------------------------------------------------------------------------------ self test
def self_test(command: tuple[str, ...] = SELF_TEST, limit: float = LIMIT) -> Finding:
    """Run the self test in a process of its own, which an instruction that a processor lacks can end.

    Args:
        command: words of the process.
        limit: seconds after which the self test has failed.
    """
    variables, root = dict(os.environ), str(Path(__file__).resolve().parents[2])
    if root != sysconfig.get_path("purelib"):  # a checkout, which need not be installed
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, variables.get("PYTHONPATH"))))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=variables)
    except subprocess.TimeoutExpired:
        return Finding("self test", f"failed: it was not ready after {limit:g} s", is_good=False)
    if done.returncode == 0:
        return Finding("self test", _last_line(done.stdout))
    end = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else _last_line(done.stderr)
    again = "; the whole output: python -m bayes_rl.cli.self_test"
    return Finding("self test", f"failed: {end}{again}", is_good=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
