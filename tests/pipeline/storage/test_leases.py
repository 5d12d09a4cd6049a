"""The lock on a home in an object store."""

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline import storage
from pipeline.storage import leases
from pipeline.storage.leases import Holder
from tests.conftest import ROOT
from tests.services import BUCKET, S3Server

ELSEWHERE = Holder("python -m pipeline.tune", 7, "another-machine", "2026-11-27 12:00:00+00:00", "theirs")


@pytest.fixture
def home() -> str:
    return f"memory://home-{uuid4().hex}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LEASE_S": 1.0, "_RENEW_S": 0.1, "_POLL_S": 0.05, "_SETTLE_S": 0.05}.items():
        monkeypatch.setattr(leases, name, seconds)


def read(home: str) -> Holder | None:
    return storage.read_document(f"{home}/.lock", Holder)


@contextmanager
def renewed_elsewhere(home: str) -> Iterator[None]:
    """Renew the lock of another machine while the block runs."""
    ended = threading.Event()

    def renew() -> None:
        renewals = 0
        while not ended.wait(0.1):
            renewals += 1
            storage.write_document(f"{home}/.lock", replace(ELSEWHERE, renewals=renewals))

    thread = threading.Thread(target=renew)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_it_is_held_and_renewed_and_removed_at_the_end(home: str) -> None:
    with storage.lock_folder(home, "python -m pipeline.train"):
        first = read(home)
        time.sleep(0.35)
        later = read(home)
    assert first
    assert later
    assert (first.command, first.host) == ("python -m pipeline.train", platform.node())
    assert later.renewals > first.renewals
    assert later == replace(first, renewals=later.renewals)
    assert read(home) is None


def test_an_error_in_the_block_frees_the_home(home: str) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), storage.lock_folder(home, "one"):
            raise KeyError


def test_a_second_command_is_refused_while_the_first_renews(home: str) -> None:
    storage.write_document(f"{home}/.lock", ELSEWHERE)
    message = rf"{home} is in use by python -m pipeline.tune \(process 7 on another-machine, since .*\): wait until it"
    with renewed_elsewhere(home), pytest.raises(storage.LockedError, match=message):
        storage.lock_folder(home, "second").__enter__()
    left = read(home)
    assert left
    assert left.token == "theirs"


def test_a_lock_that_nobody_renews_is_taken(home: str, capfd: pytest.CaptureFixture[str]) -> None:
    storage.write_document(f"{home}/.lock", ELSEWHERE)
    began = time.monotonic()
    with storage.lock_folder(home, "second"):
        assert 1 <= time.monotonic() - began < 10
    assert "waiting up to 1 s to see whether it runs" in capfd.readouterr().err


def test_the_lock_of_a_process_that_died_on_this_machine_is_taken_at_once(
    home: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    storage.write_document(f"{home}/.lock", replace(ELSEWHERE, process=process.pid, host=platform.node()))
    with storage.lock_folder(home, "second"):
        pass
    assert capfd.readouterr().err == ""


def test_of_two_commands_that_start_together_one_holds_the_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_writes(seconds: float) -> None:
        storage.write_document(f"{home}/.lock", ELSEWHERE)

    monkeypatch.setattr(time, "sleep", other_writes)
    with pytest.raises(storage.LockedError, match=r"in use by python -m pipeline\.tune"):
        storage.lock_folder(home, "first").__enter__()


def test_a_command_that_lost_its_home_while_it_was_frozen_ends(home: str, capfd: pytest.CaptureFixture[str]) -> None:
    with storage.lock_folder(home, "frozen"):
        storage.write_document(f"{home}/.lock", ELSEWHERE)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
    assert "is held by python -m pipeline.tune (process 7 on another-machine" in capfd.readouterr().err
    assert read(home) == ELSEWHERE


def test_on_s3_a_killed_command_frees_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = S3Server(tmp_path, BUCKET)
    server.start()
    try:
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
        home = f"s3://{BUCKET}/locked"
        program = (
            "import sys; from pipeline import storage; storage.leases._RENEW_S = 0.5\n"
            "with storage.lock_folder(sys.argv[1], 'python -m pipeline.tune'): print('held', flush=True); input()"
        )
        argv = [sys.executable, "-c", program, home]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as first:
            assert first.stdout
            assert first.stdout.readline() == "held\n"
            monkeypatch.setattr(leases, "LEASE_S", 30.0)
            with pytest.raises(storage.LockedError, match=rf"in use by .* \(process {first.pid} "):
                storage.lock_folder(home, "second").__enter__()
            first.kill()
            first.wait()
            with storage.lock_folder(home, "second"):
                pass
        assert storage.names(home) == []
    finally:
        server.stop()
