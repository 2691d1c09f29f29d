"""Checkpoints of a replay: its files are found again, or refused and left as they are."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_rl.data.replay_files import ReplayFiles, replay_layout
from bayes_rl.errors import ConfigError
from tests.helpers.replay_oracle import Recorder, Rules
from tests.helpers.replays import (
    SHAPE,
    UINT8,
    add,
    assert_agrees,
    copy_of_window,
    every_slot,
    play,
    replay_of,
    same_contents,
    same_transitions,
)
from tests.helpers.scripted_envs import through_a_file

RULES = Rules(n_step=3, frame_stack=2)


def test_a_saved_ring_is_found_again(tmp_path: Path) -> None:
    replay = replay_of(RULES, 2, 20, 10, tmp_path)
    fresh = play([replay], 90, 0, 2)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    again = replay_of(RULES, 2, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert len(again) == len(replay) == len(set(found)) < again.stored == 40
    assert found == slots
    assert same_transitions(before, after)
    play([again], 30, 7, 2, start=fresh)  # and goes on as the original would have
    reference = replay_of(RULES, 2, 20, 10)
    play([reference], 90, 0, 2)
    play([reference], 30, 7, 2, start=fresh)
    assert len(again) == len(reference) == len(set(every_slot(again)[0]))
    assert same_contents(again, reference)


def test_a_loaded_ring_knows_how_old_the_running_episode_is(tmp_path: Path) -> None:
    """Stacks right after a resume reach back into screens stored before it, and no further than the start."""
    rules = Rules(n_step=1, frame_stack=4)
    replay, recorder = replay_of(rules, 1, 20, 5, tmp_path), Recorder(1)
    for t in range(2):
        add([replay, recorder], [(t, 0, 0.0, "")], [t + 1])
    again = replay_of(rules, 1, 20, 5, tmp_path)
    again.load_state_dict(through_a_file(replay.state_dict()))
    for t in range(2, 8):
        add([again, recorder], [(t, 0, 0.0, "")], [t + 1])
    slots, got = every_slot(again)
    assert_agrees(recorder, rules, slots, got)


def test_slots_written_after_a_checkpoint_do_not_touch_what_it_refers_to(tmp_path: Path) -> None:
    """As many slots as the slack, in a run that is then killed."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert found == slots
    assert same_transitions(before, after)


def test_a_ring_that_has_moved_on_is_refused(tmp_path: Path) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    state = through_a_file(replay.state_dict())
    play([replay], 11, 1, 1, p_end=0.0, start=fresh)
    replay.state_dict()
    with pytest.raises(ConfigError, match=r"moved on.*--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


def test_a_ring_that_a_killed_run_has_moved_on_is_refused(tmp_path: Path) -> None:
    """Nobody saved after the writing that overwrote what the checkpoint refers to."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    older = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    replay.state_dict()
    play([replay], 10, 2, 1, p_end=0.0, start=fresh)
    with pytest.raises(ConfigError, match="moved on"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(older)


def test_a_ring_rewritten_from_an_older_checkpoint_is_refused_to_the_newer_one(tmp_path: Path) -> None:
    """Resumed from the older checkpoint and killed halfway: the newer one's last slots hold other games now."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    older = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    newer = through_a_file(replay.state_dict())
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(older)
    play([again], 5, 2, 1, p_end=0.0, start=fresh)
    with pytest.raises(ConfigError, match=r"--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(newer)


def test_going_back_twice_does_not_hide_what_was_overwritten(tmp_path: Path) -> None:
    """The ring went 20 slots beyond the oldest checkpoint; going back to the middle one does not undo that."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    oldest = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    middle = through_a_file(replay.state_dict())
    play([replay], 10, 2, 1, p_end=0.0, start=fresh)
    replay.state_dict()
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(middle)
    again.state_dict()
    with pytest.raises(ConfigError, match="moved on"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(oldest)


def test_a_ring_begun_anew_in_an_old_directory_is_found_again(tmp_path: Path) -> None:
    """What --data.refill_replay true does: the old files are used, what they held counts for nothing."""
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 90, 0, 1)
    old.state_dict()
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    play([replay], 40, 1, 1, start=fresh)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert found == slots
    assert same_transitions(before, after)


def test_a_ring_begun_anew_is_refused_to_the_old_checkpoint(tmp_path: Path) -> None:
    """Refilled and killed before anything was saved: the old files hold a mixture of both now."""
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 90, 0, 1)
    state = through_a_file(old.state_dict())
    play([replay_of(RULES, 1, 20, 10, tmp_path)], 15, 1, 1, start=fresh)
    with pytest.raises(ConfigError, match=r"--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_ring_that_is_missing_is_refused(tmp_path: Path, on_disk: bool) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path / "here")
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    elsewhere = tmp_path / "elsewhere" if on_disk else None
    with pytest.raises(ConfigError, match=r"not there.*--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, elsewhere).load_state_dict(state)


@pytest.mark.parametrize(("num_envs", "ring", "slack"), [(2, 10, 5), (1, 21, 10), (1, 20, 11)])
def test_a_ring_of_another_shape_is_refused(tmp_path: Path, num_envs: int, ring: int, slack: int) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    with pytest.raises(ConfigError, match="another shape"):
        replay_of(RULES, num_envs, ring, slack, tmp_path).load_state_dict(state)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize(("num_envs", "ring", "slack"), [(1, 40, 10), (1, 15, 5), (2, 10, 5), (2, 20, 10)])
def test_a_refused_shape_leaves_the_stored_screens_as_they_are(
    tmp_path: Path, num_envs: int, ring: int, slack: int
) -> None:
    """A typing error in the capacity is refused; the corrected command finds the ring whole."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    del replay
    stored = bytes_of(tmp_path)
    with pytest.raises(ConfigError, match="another shape"):
        replay_of(RULES, num_envs, ring, slack, tmp_path).load_state_dict(state)
    assert bytes_of(tmp_path) == stored
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert found == slots
    assert same_transitions(before, after)


def test_files_of_another_size_are_replaced_by_the_first_step_of_a_new_ring(tmp_path: Path) -> None:
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 60, 0, 1)
    state = through_a_file(old.state_dict())
    new = replay_of(RULES, 2, 30, 10, tmp_path)
    play([new], 60, 1, 2, start=fresh)
    again = replay_of(RULES, 2, 30, 10, tmp_path)
    again.load_state_dict(through_a_file(new.state_dict()))
    assert same_contents(again, new)
    with pytest.raises(ConfigError, match="not there"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


@pytest.mark.parametrize("steps", [60, 64])
def test_a_ring_refilled_as_far_as_the_old_one_is_refused_to_the_old_checkpoint(tmp_path: Path, steps: int) -> None:
    """The counters agree, the games do not."""
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 60, 0, 1, p_end=0.0)
    state = through_a_file(old.state_dict())
    new = replay_of(RULES, 1, 20, 10, tmp_path)
    play([new], steps, 1, 1, p_end=0.0, start=fresh)
    stored = bytes_of(tmp_path)
    with pytest.raises(ConfigError, match=r"another replay.*--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)
    assert bytes_of(tmp_path) == stored
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(through_a_file(new.state_dict()))


def test_a_folder_of_the_same_shape_in_place_of_the_own_one_is_refused(tmp_path: Path) -> None:
    """Two runs alike, but for their games; also if one was written by a version without histories."""
    states = {}
    for seed, name in enumerate(("mine", "other")):
        replay = replay_of(RULES, 1, 20, 10, tmp_path / name)
        play([replay], 60, seed, 1, p_end=0.0)
        states[name] = through_a_file(replay.state_dict())
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path / "other").load_state_dict(states["mine"])
    del states["mine"]["history"]
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path / "mine").load_state_dict(states["mine"])
    (tmp_path / "other" / "replay.json").unlink()
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path / "other").load_state_dict(states["other"])


def test_a_ring_of_a_version_without_histories_is_found_again(tmp_path: Path) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    del state["history"]
    (tmp_path / "replay.json").unlink()
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    assert same_contents(again, replay)
    play([again], 10, 1, 1, start=fresh)
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(through_a_file(again.state_dict()))


@pytest.mark.parametrize("damage", ["flipped", "cut", "a screen less", "swapped"])
def test_files_or_a_manifest_that_do_not_fit_are_refused_and_kept(tmp_path: Path, damage: str) -> None:
    mine, other = (replay_of(RULES, 1, ring, 10, tmp_path / name) for ring, name in ((20, "mine"), (21, "other")))
    play([mine, other], 60, 0, 1)
    state = through_a_file(mine.state_dict())
    manifest = tmp_path / "mine" / "replay.json"
    data = manifest.read_bytes()
    if damage == "flipped":
        manifest.write_bytes(data.replace(b"1", b"3", 1))
    elif damage == "cut":
        manifest.write_bytes(data[:-1])
    elif damage == "swapped":
        manifest.write_bytes((tmp_path / "other" / "replay.json").read_bytes())
    else:
        screens = tmp_path / "mine" / "screens.uint8"
        screens.write_bytes(screens.read_bytes()[: -int(np.prod(SHAPE))])
    stored = bytes_of(tmp_path / "mine")
    with pytest.raises(ConfigError, match="not there"):
        replay_of(RULES, 1, 20, 10, tmp_path / "mine").load_state_dict(state)
    assert bytes_of(tmp_path / "mine") == stored


class Killed(BaseException):
    """Stands in for SIGKILL."""


@pytest.mark.parametrize("moment", ["before the slots", "before the end is counted"])
def test_a_kill_in_the_midst_of_a_step_is_counted_as_overwriting(tmp_path: Path, moment: str) -> None:
    """The slack is used up to its last slot, and the step under way takes the first slot of the checkpoint."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    state = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)

    class Dying:
        """Stands in for an array that is being written to."""

        shape = replay.files.screens.shape

        def __setitem__(self, slot: Any, value: Any) -> None:
            raise Killed

    setattr(replay.files, "screens" if moment == "before the slots" else "ages", Dying())
    with pytest.raises(Killed):
        play([replay], 1, 2, 1, p_end=0.0, start=fresh)
    with pytest.raises(ConfigError, match=r"moved on|not there"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


def test_a_checkpoint_of_the_very_start_leaves_what_is_there_to_the_others(tmp_path: Path) -> None:
    """It refers to no slot; until a step is taken, the newest checkpoint finds all of its own."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    start = through_a_file(replay.state_dict())
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(start)
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)
    play([again], 3, 1, 1)
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


# ------------------------------------------------------------------ the files alone
def test_arrays_and_the_history_are_found_in_the_files_again(tmp_path: Path) -> None:
    arguments = (tmp_path / "replay", 2, 10, (1, 2, 2), UINT8)
    files = ReplayFiles(*arguments)
    assert not files.mapped
    assert files.history is None
    assert not files.directory.exists(), "nothing is written before a history begins"  # type: ignore[union-attr]
    files.begin_history()
    assert files.mapped
    files.screens[3], files.rewards[19], files.written[1] = 7, 2.5, 4
    files.flush()
    again = ReplayFiles(*arguments)
    assert again.mapped
    assert again.history == files.history is not None
    assert (again.screens[3].tolist(), again.rewards[19], again.written[1].tolist()) == ([7] * 4, 2.5, [4, 4])
    again.begin_history()
    assert again.history != files.history
    assert not files.written.any(), "a new history counts no slot of the old one"


def test_the_layout_is_what_lies_on_the_disk(tmp_path: Path) -> None:
    files = ReplayFiles(tmp_path, 2, 10, (3, 2), np.dtype(np.float32))
    files.begin_history()
    layout = replay_layout(2, 10, (3, 2), files.screens.dtype)
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, (shape, dtype) in layout.items()}
    assert sizes == {p.name: p.stat().st_size for p in tmp_path.iterdir() if p.name != "replay.json"}
    assert files.nbytes == sum(size for name, size in sizes.items() if name != "written.int64") == 20 * (6 * 4 + 8)


def test_without_a_directory_everything_is_in_memory() -> None:
    files = ReplayFiles(None, 1, 5, (2,), UINT8)
    files.begin_history()
    files.flush()
    assert (files.mapped, files.history, files.geometry) == (False, None, [1, 5, 2])


# ------------------------------------------------------------------ room on the disk
def held(folder: Path) -> dict[str, bool]:
    """Return whether each file of a replay has all its blocks on the disk."""
    files = [path for path in folder.iterdir() if path.name != "replay.json"]
    return {path.name: path.stat().st_blocks * 512 >= path.stat().st_size for path in files}


def begin(folder: Path) -> ReplayFiles:
    files = ReplayFiles(folder, 2, 50_000, (1, 2, 2), UINT8)
    files.begin_history()
    return files


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="allocates no blocks ahead")
def test_all_blocks_are_on_the_disk_before_the_first_write(tmp_path: Path) -> None:
    files = begin(tmp_path)
    assert len(held(tmp_path)) == 6
    assert all(held(tmp_path).values())
    assert not files.screens.any()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="allocates no blocks ahead")
def test_holes_of_earlier_versions_are_filled_and_what_was_written_stays(tmp_path: Path) -> None:
    files = begin(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "replay.json":
            size = path.stat().st_size
            os.truncate(path, 0)
            os.truncate(path, size)
    assert not all(held(tmp_path).values())
    (tmp_path / "actions.int16").write_bytes(np.arange(100_000, dtype=np.int16).tobytes())
    again = ReplayFiles(tmp_path, 2, 50_000, (1, 2, 2), UINT8)
    assert again.mapped
    assert again.history == files.history
    assert all(held(tmp_path).values())
    assert again.actions[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("file", range(6))
def test_a_full_disk_is_one_line_and_leaves_no_files(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def full(*_: Any) -> None:
        if next(calls) == file:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    replay = replay_of(RULES, 2, 20, 10, tmp_path)
    with pytest.raises(ConfigError) as error:
        play([replay], 1, 0, 2)
    assert str(error.value) == f"--data.replay.capacity: 40 finds no room on the disk of {tmp_path}"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_a_resume_is_one_line_and_leaves_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play([replay_of(RULES, 2, 20, 10, tmp_path)], 30, 0, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.EDQUOT, "full")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ConfigError, match=r"data\.replay\.capacity"):
        replay_of(RULES, 2, 20, 10, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_allocates_nothing_ahead_is_used(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(number, "unsupported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    play([replay_of(RULES, 2, 20, 10, tmp_path)], 30, 0, 2)


def test_any_other_error_of_the_disk_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "posix_fallocate", broken, raising=False)
    with pytest.raises(OSError, match="screens"):
        play([replay_of(RULES, 2, 20, 10, tmp_path)], 1, 0, 2)


def test_a_return_that_a_checkpoint_did_not_know_is_not_known_after_it() -> None:
    """The episode ended after the checkpoint; in the run that goes on it may end otherwise."""
    replay = replay_of(Rules(n_step=1), 1, 20, slack=5)
    for step in range(3):
        add([replay], [(step, 0, 1.0, "")], [step + 1])
    state = replay.state_dict()
    add([replay], [(3, 0, 1.0, "T")], [4])
    known = every_slot(replay)[1].realised_return
    assert known is not None
    assert known.isfinite().all()
    replay.load_state_dict(state)
    known = every_slot(replay)[1].realised_return
    assert known is not None
    assert known.isnan().all()
