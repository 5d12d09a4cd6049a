"""The lock on a home, with real processes."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from tests.conftest import ROOT

HOLD = "import sys; from pipeline import storage\nwith storage.lock_folder(sys.argv[1], 'python -m pipeline.tune'): "


def start(home: Path, block: str) -> subprocess.Popen[str]:
    """Start a process that holds a home while it runs `block`."""
    argv = [sys.executable, "-c", HOLD + block, str(home)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_second_command_ends_with_a_sentence_and_the_first_goes_on(
    tmp_path: Path, small: Callable[..., list[str]]
) -> None:
    home = tmp_path / "home"
    with start(home, "print('held', flush=True); input(); print('done')") as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        argv = [sys.executable, "-m", "pipeline.preprocess", *small()]
        second = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert time.monotonic() - began < 10  # Ray alone would take longer; most of this is the start of Python
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        assert re.fullmatch(
            rf"error: {home} is in use by python -m pipeline.tune \(process {holder.pid} on \S+, since \S+ \S+\): "
            "wait until it ends, or choose another --home",
            line,
        )
        assert {entry.name for entry in home.iterdir()} == {".lock"}
        out, _ = holder.communicate("\n")
    assert out == "done\n"
    with storage.lock_folder(str(home), "this test"):  # free again
        pass


def test_the_lock_of_a_killed_process_is_free_even_while_its_children_live(tmp_path: Path) -> None:
    block = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    with start(tmp_path / "home", block) as holder:
        assert holder.stdout
        child = int(holder.stdout.readline())
        with pytest.raises(storage.LockedError, match=r"in use by python -m pipeline.tune"):
            storage.lock_folder(str(tmp_path / "home"), "this test").__enter__()
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it still runs
        with storage.lock_folder(str(tmp_path / "home"), "this test"):
            pass
        os.kill(child, signal.SIGKILL)


def test_other_homes_are_free(tmp_path: Path) -> None:
    with storage.lock_folder(str(tmp_path / "a"), "one"), storage.lock_folder(str(tmp_path / "b"), "two"):
        pass


def test_an_error_in_the_block_frees_the_home(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), storage.lock_folder(str(tmp_path), "one"):
            raise KeyError


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with storage.lock_folder(str(tmp_path), "one"):
        pass
    assert f"the file system of {tmp_path} has no locks" in capsys.readouterr().err


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the home .*/file/home: Not a directory; expected a folder"):
        storage.lock_folder(str(tmp_path / "file/home"), "one").__enter__()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "home/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="cannot write to the home"):
        storage.lock_folder(str(tmp_path / "home"), "one").__enter__()
    assert (tmp_path / "precious").read_text() == "mine"
