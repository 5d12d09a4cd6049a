import errno
import time
from pathlib import Path

import pytest

from pipeline.storage import files
from pipeline.tracking import Best
from pipeline.training.checkpoints import Checkpoints, TrainingState


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save({"weights": b"%d" % step * 1000}, TrainingState(step, best=Best(step, step / 2)))


def restored(checkpoints: Checkpoints) -> tuple[int, float, bytes] | None:
    found = checkpoints.restore()
    if found is None:
        return None
    files, state = found
    assert state.best is not None
    return state.step, state.best.value, files["weights"]


def test_the_newest_are_kept_and_the_newest_is_restored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    assert restored(checkpoints) is None
    for step in (10, 20, 30):
        save(checkpoints, step)
    checkpoints.wait()
    assert checkpoints.steps() == [20, 30]
    assert restored(Checkpoints(str(tmp_path), keep=2)) == (30, 15, b"30" * 1000)


def test_what_was_being_written_or_is_damaged_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    for step in (10, 20, 30):
        save(checkpoints, step)
    checkpoints.wait()
    (tmp_path / "000000030" / "state.json").unlink()
    assert restored(checkpoints) == (20, 10, b"20" * 1000)
    damaged = tmp_path / "000000020" / "weights"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert restored(checkpoints) == (10, 5, b"10" * 1000)
    assert "000000020 is damaged: falling back to the previous one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        b'{"state": {"step": 20}}',
        b'{"state": {"step": 20}, "files": {}}',
        b'{"state": {"step": 20}, "files": {"../000000010/weights": "0"}}',
        b'{"state": {"step": 20}, "files": {"weights": "0"}}',
        b'{"state": {"step": 20}, "files": {"weights": 7}}',
        b'{"state": {"step": 20}, "files": {"elsewhere": "0"}}',
        b'{"state": {"step": -20}, "files": {"weights": "0"}}',
    ],
)
def test_a_damaged_state_falls_back_to_the_checkpoint_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: bytes
) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    for step in (10, 20):
        save(checkpoints, step)
    checkpoints.wait()
    (tmp_path / "000000020" / "state.json").write_bytes(state)
    assert restored(checkpoints) == (10, 5, b"10" * 1000)
    (line,) = capsys.readouterr().err.splitlines()
    assert "000000020 is damaged: falling back to the previous one" in line


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    save(checkpoints, 10)
    checkpoints.wait()
    (tmp_path / "000000010").rename(tmp_path / "000000030")
    save(checkpoints, 20)
    checkpoints.wait()
    assert restored(checkpoints) == (20, 10, b"20" * 1000)


def test_an_unfinished_one_of_a_higher_step_costs_none_that_is_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    save(checkpoints, 200)
    checkpoints.wait()
    (tmp_path / "000000300").mkdir()
    (tmp_path / "000000300/weights").write_bytes(b"killed while it was being written")
    save(checkpoints, 250)
    checkpoints.wait()
    assert restored(checkpoints) == (250, 125, b"250" * 1000)


@pytest.mark.parametrize("after", range(3))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    save(checkpoints, 10)
    checkpoints.wait()
    real, left = files.put, iter([True] * after)

    def put(part: Path, url: str, sync: bool = True) -> None:
        if not next(left, False):
            part.write_bytes(part.read_bytes()[:3])
            raise OSError(errno.ENOSPC, "No space left on device", url)
        real(part, url, sync)

    with monkeypatch.context() as full:
        full.setattr(files, "put", put)
        save(checkpoints, 20)
        if after < 2:
            with pytest.raises(OSError, match="No space left"):
                checkpoints.wait()
        else:
            checkpoints.wait()
    assert restored(checkpoints) == ((10, 5, b"10" * 1000) if after < 2 else (20, 10, b"20" * 1000))
    save(checkpoints, 20)  # with room again
    checkpoints.wait()
    assert restored(checkpoints) == (20, 10, b"20" * 1000)


def test_a_failure_is_noticed_without_waiting_for_the_next_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "file"), keep=1)
    checkpoints.check()  # nothing was written yet
    (tmp_path / "file").write_text("no folder")
    save(checkpoints, 10)
    deadline = time.monotonic() + 20
    with pytest.raises(OSError):  # noqa: PT011, PT012
        while time.monotonic() < deadline:
            checkpoints.check()
            time.sleep(0.01)
    checkpoints.check()  # the failure was told
