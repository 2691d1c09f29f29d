"""Checkpoints that were killed, cut, bent or forged: whole, or refused by one line with nothing touched."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from bayes_rl.cli import app as cli
from bayes_rl.cli.saved_runs import read_saved_run
from bayes_rl.errors import ConfigError
from bayes_rl.training import checkpoint_io as checkpoints
from bayes_rl.training.callbacks.run_lock import RunLock
from bayes_rl.training.checkpoint_io import (
    AtomicCheckpointIO,
    changed_versions,
    load_verified,
    manifest_of,
    read_manifest,
    versions,
    write_verifiable,
)
from bayes_rl.utils import files
from bayes_rl.utils.files import (
    DirectoryLock,
    read_checksummed_json,
    remove_temporaries,
    write_checksummed_json,
)
from bayes_rl.utils.stop_signals import STOP, Stopped
from tests.helpers.command_line import error_of
from tests.helpers.killed_saves import killed_at

pytestmark = pytest.mark.usefixtures("shared_parser")

ROOT = Path(cli.__file__).parents[2]
TINY = [
    f"--config={ROOT / 'tests/configs/cartpole.yaml'}",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.frames_per_epoch=160",
    "--data.replay.min_size=100",
    "--data.replay.capacity=2000",
    "--data.evaluation.games=1",
    "--model.network.hidden_dim=16",
]
RUN = Path("runs/cartpole/version_0")
LAST = RUN / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with a copy of it: checkpoints remember where they were made."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cli.py", "fit", *TINY])
        cli.run()
    shutil.copytree(folder / "runs", folder / "untouched")
    return folder


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the test stands, with the run as it was left."""
    for path in finished.iterdir():
        if path.name != "untouched":
            shutil.rmtree(path)
    shutil.copytree(finished / "untouched", finished / "runs")
    monkeypatch.chdir(finished)
    return finished


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refused command; asserts exit code 2 and that no byte below this folder has changed."""
    before = hashes(Path.cwd())
    line = error_of(monkeypatch, capsys, *words)
    assert "--ckpt_path" in line
    assert hashes(Path.cwd()) == before
    return line


# ---------------------------------------------------------------------------------------- generated damage
class Evil:
    """Makes a file if it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def cut(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def flip(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def empty(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def lengthen(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 100)))


def hostile(rng: random.Random, path: Path) -> None:
    """A checkpoint that would execute something; half of them bare, half with a manifest that fits."""
    if rng.random() < 0.5:
        path.write_bytes(pickle.dumps(Evil(), protocol=rng.randrange(3)))
    else:
        torch.save({"hyper_parameters": Evil(), "datamodule_hyper_parameters": {}, "state_dict": {}}, path)
    if rng.random() < 0.5:
        manifest_of(path).unlink()
    else:
        entry = checkpoints.describe(path.read_bytes(), versions())
        write_checksummed_json(manifest_of(path), {"format": 1, "files": [entry]})


def bare(rng: random.Random, path: Path) -> None:
    """Cut, and without the manifest that would tell."""
    cut(rng, path)
    manifest_of(path).unlink()


def swap(rng: random.Random, path: Path) -> None:
    """A whole manifest, of another file."""
    other = path.with_name("other.ckpt")
    write_verifiable(other, rng.randbytes(100))
    os.replace(manifest_of(other), manifest_of(path))


GARBAGE: list[Any] = [
    *(None, True, -1, 0.5, 10**400, "../../../etc/passwd", [], {}, [[[[]]]], {"a": {"b": []}}, "\x00", "é" * 200, [0]),
]


def forge(rng: random.Random, path: Path) -> None:
    """A manifest whose checksum fits, and that says what none may say."""
    content = read_checksummed_json(manifest_of(path))
    entry = content["files"][0]
    garbage = rng.choice(GARBAGE)
    place = rng.randrange(7)
    if place == 0:
        content["files"] = garbage
    elif place == 1:
        content["files"] = [garbage]
    elif place == 2:
        content["format"] = garbage
    elif place == 3:
        entry[rng.choice(["size", "sha256"])] = garbage
    elif place == 4:
        entry["versions"] = {"torch": garbage} if not isinstance(garbage, str) else garbage
    elif place == 5:
        entry[rng.choice(["path", "directory", "name"])] = garbage
    else:
        content[rng.choice(["path", "include"])] = garbage
    write_checksummed_json(manifest_of(path), content)


def nonsense(rng: random.Random, path: Path) -> None:
    """Bytes that are no manifest."""
    texts = [b"[" * 60_000, b"null", b"[1]", b'{"checksum": 1}', b"1" * 50_000, b"NaN", b"\xff\xfe", b" " * 70_000]
    texts += [b'{"a": NaN, "checksum": "0"}', b'{"a": 1e999, "checksum": "0"}', rng.randbytes(300), b'{"a":' * 9_000]
    manifest_of(path).write_bytes(rng.choice(texts))


def respell(rng: random.Random, path: Path) -> None:
    """The same JSON in other words: spaces, escapes, a key twice."""
    text = manifest_of(path).read_text()
    changed = [text + " ", text.replace("\n", "\n "), text.replace("torch", "\\u0074orch", 1)]
    changed += [text.replace('{\n "', '{\n "format": 7,\n "', 1), text.replace('"format": 1', '"format": 1.0')]
    manifest_of(path).write_text(rng.choice(changed))


def of_manifest(damage: Callable[[random.Random, Path], None]) -> Callable[[random.Random, Path], None]:
    def damaged(rng: random.Random, path: Path) -> None:
        damage(rng, manifest_of(path))

    return damaged


DAMAGES: dict[str, tuple[int, Callable[[random.Random, Path], None]]] = {
    "cut": (30, cut),
    "flipped": (40, flip),
    "empty": (1, empty),
    "longer": (5, lengthen),
    "hostile": (12, hostile),
    "bare and cut": (15, bare),
    "manifest cut": (15, of_manifest(cut)),
    "manifest flipped": (40, of_manifest(flip)),
    "manifest empty": (1, of_manifest(empty)),
    "manifest longer": (4, of_manifest(lengthen)),
    "manifest swapped": (4, swap),
    "manifest forged": (25, forge),
    "manifest of nonsense": (12, nonsense),
    "manifest respelled": (6, respell),
}


def test_at_least_two_hundred_damages() -> None:
    assert sum(count for count, _ in DAMAGES.values()) >= 200


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_refused_by_one_line_and_nothing_is_touched(name: str, run: Path) -> None:
    """Where `cli` reads first, and where Lightning loads."""
    count, damage = DAMAGES[name]
    folder, whole = LAST.parent, {path: path.read_bytes() for path in (LAST, manifest_of(LAST))}
    for case in range(count):
        for path, data in whole.items():
            path.write_bytes(data)
        damage(random.Random(f"{name} {case}"), LAST)
        before = hashes(folder)
        for read in (lambda: read_saved_run(str(LAST), ["game"]), lambda: AtomicCheckpointIO().load_checkpoint(LAST)):
            with pytest.raises(ConfigError, match="--ckpt_path: ") as error:
                read()
            assert len(str(error.value).splitlines()) == 1
        assert hashes(folder) == before
        assert not Path("executed").exists()


@pytest.mark.parametrize("name", DAMAGES)
def test_the_command_line_refuses_each_kind_of_damage(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[name][1](random.Random(name), LAST)
    refused(monkeypatch, capsys, "fit", *TINY, "--ckpt_path=last", "--trainer.max_epochs=2")
    assert not Path("executed").exists()


# ------------------------------------------------------------------------------------------------ manifests
def test_a_manifest_names_size_hash_and_versions_and_no_path(run: Path) -> None:
    (entry,) = read_manifest(LAST)
    data = LAST.read_bytes()
    assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert entry["versions"] == versions()
    assert {"python", "torch", "pytorch_lightning", "gymnasium", "ale_py", "numpy", "bayes_rl"} == versions().keys()
    assert os.sep not in manifest_of(LAST).read_text()
    assert read_manifest(LAST.with_name("best.ckpt"))


def test_a_checkpoint_without_a_manifest_is_read_with_a_note(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest_of(LAST).unlink()
    read_saved_run(str(LAST), ["game"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "no manifest" in line


@pytest.mark.parametrize("before", ["nothing", "a checkpoint", "one without a manifest", "a killed save"])
def test_a_save_killed_at_any_step_leaves_a_checkpoint_that_verifies(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one or the new one; and the next save goes through."""

    def content(number: int) -> bytes:
        file = tmp_path / "content"
        torch.save({"number": number}, file)
        return file.read_bytes()

    moment, was_killed, seen = 0, True, set()
    while was_killed:
        folder = tmp_path / f"{moment}"
        folder.mkdir()
        path = folder / "last.ckpt"
        allowed: set[int | None] = {None, 2} if before == "nothing" else {1, 2}
        if before != "nothing":
            write_verifiable(path, content(1))
        if before == "one without a manifest":
            manifest_of(path).unlink()
        if before == "a killed save":
            killed_at(7, monkeypatch, lambda path=path: write_verifiable(path, content(3)))  # type: ignore[misc]
            allowed.add(3)
        was_killed = killed_at(moment, monkeypatch, lambda path=path: write_verifiable(path, content(2)))  # type: ignore[misc]
        found = load_verified(path)[0]["number"] if path.exists() else None
        assert found in allowed
        seen.add(found)
        remove_temporaries(folder)
        write_verifiable(path, content(4))
        assert load_verified(path)[0] == {"number": 4}
        assert len(read_manifest(path)) == 1
        assert sorted(file.name for file in folder.iterdir()) == ["last.ckpt", "last.ckpt.json"]
        moment += 1
    assert moment > 8
    assert 2 in seen
    assert len(seen) > 1


def test_another_version_is_named_once_and_no_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = read_manifest(LAST)[0]
    older = entry | {"versions": entry["versions"] | {"torch": "2.12.0", "ale_py": "0.1", "bayes_rl": "0.0"}}
    write_checksummed_json(manifest_of(LAST), {"format": 1, "files": [older]})
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *TINY, "--ckpt_path=last", "--trainer.max_epochs=2"])
    cli.run()
    now, printed = versions(), capsys.readouterr().out
    expected = f"since this checkpoint: ale_py 0.1 -> {now['ale_py']}, torch 2.12.0 -> {now['torch']}; "
    assert printed.count("since this checkpoint") == 1
    assert expected + "a resumed run may differ\n" in printed
    assert changed_versions(now) == changed_versions({}) == ""


# ------------------------------------------------------------------------------------------------ signals
def test_a_save_is_finished_before_a_signal_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(path: Path, write: Any) -> Path:
        assert STOP.deferred
        assert STOP.saving
        STOP.received = signal.SIGTERM
        return files.write_temporary(path, write)

    monkeypatch.setattr(checkpoints, "write_temporary", signalled)
    monkeypatch.setattr(STOP, "received", None)  # restored afterwards
    with pytest.raises(Stopped) as stop:
        AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "last.ckpt")
    assert stop.value.code == 143
    assert not STOP.deferred
    assert not STOP.saving
    assert load_verified(tmp_path / "last.ckpt")[0] == {"number": 1}


# ------------------------------------------------------------------------------------------------ full disk
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("moment", range(3))
def test_a_full_disk_leaves_the_previous_checkpoint(
    number: int, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At any of the first three syncs: of the checkpoint, of its manifest, of the directory."""
    path = tmp_path / "last.ckpt"
    plugin = AtomicCheckpointIO("continue")
    plugin.save_checkpoint({"number": 1}, path)
    calls = iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == moment:
            raise OSError(number, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        plugin.save_checkpoint({"number": 2}, path)
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ("last.ckpt", "needed", "free", "previous one is intact"))
    assert not plugin.saved
    assert load_verified(path)[0] == {"number": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.json"]
    plugin.save_checkpoint({"number": 3}, path)
    assert plugin.saved
    assert load_verified(path)[0] == {"number": 3}


@pytest.mark.parametrize(("option", "code"), [("stop", 1), ("continue", None)])
def test_a_run_without_room_stops_or_goes_on(
    option: str, code: int | None, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, write: Any) -> Path:
        if path.suffix == ".ckpt":
            raise OSError(errno.ENOSPC, "full")
        return files.write_temporary(path, write)

    monkeypatch.setattr(checkpoints, "write_temporary", full)
    before = LAST.read_bytes()
    words = ["fit", *TINY, "--ckpt_path=last", "--trainer.max_epochs=2", f"--on_full_disk={option}"]
    monkeypatch.setattr(sys, "argv", ["cli.py", *words])
    if option == "stop":
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert "no room" in str(stop.value.code)  # a text: printed by Python, with exit code 1
        assert len(str(stop.value.code).splitlines()) == 1
    else:
        cli.main()
        assert "no room" in capfd.readouterr().err
    assert LAST.read_bytes() == before
    load_verified(LAST)


# ------------------------------------------------------------------------------------------ one writer, leftovers
def test_a_second_fit_into_a_directory_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    lock = DirectoryLock(RUN, "ckpt_path")
    line = refused(monkeypatch, capsys, "fit", *TINY, "--ckpt_path=last", "--trainer.max_epochs=2")
    assert str(RUN) in line
    assert "another fit" in line
    lock.release()
    (LAST.parent / "best.ckpt.tmp").write_bytes(b"half")
    (RUN / "metrics.npy.tmp").write_bytes(b"half")
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *TINY, "--ckpt_path=last", "--trainer.max_epochs=2"])
    cli.main()
    assert not list(Path.cwd().rglob("*.tmp"))
    DirectoryLock(RUN, "ckpt_path").release()  # the fit has let go of it


def test_a_fit_that_fails_lets_go_of_its_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(RUN / "replay")
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *TINY, "--ckpt_path=last", "--trainer.max_epochs=2"])
    with pytest.raises(SystemExit):
        cli.main()
    DirectoryLock(RUN, "ckpt_path").release()


def test_a_removed_checkpoint_takes_its_manifest_along(tmp_path: Path) -> None:
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({"state": 1}, tmp_path / "a.ckpt")
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_run_of_its_own_is_tidied_and_locked_until_it_ends(tmp_path: Path) -> None:
    left, kept = tmp_path / "checkpoints/last.ckpt.tmp", tmp_path / "checkpoints/last.ckpt"
    left.parent.mkdir()
    for file in (left, kept):
        file.write_bytes(b"half")
    writer = RunLock(tmp_path, "name")
    assert (left.exists(), kept.exists()) == (False, True)
    left.write_bytes(b"of the one that writes")
    with pytest.raises(ConfigError, match="is being written by another fit"):
        RunLock(tmp_path, "name")
    assert left.exists()
    writer.teardown(MagicMock(), MagicMock(), "fit")
    RunLock(tmp_path, "name").teardown(MagicMock(), MagicMock(), "fit")
