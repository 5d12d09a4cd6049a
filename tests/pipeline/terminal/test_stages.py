"""Stages: their live line on a terminal, and their lines in a pipe."""

import os
import pty
import re
import subprocess
import sys
import textwrap
import time

import pytest

from pipeline import terminal
from pipeline.terminal import stages
from tests.conftest import ROOT


def test_in_a_pipe_a_quick_stage_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.stage("preprocess", total=1000, unit="images") as shown:
        for done in range(1, 1001):
            shown.update(done, details="2 rejected")
    assert capsys.readouterr().out == "preprocess: 1000 of 1000 images in 0 s, 2 rejected\n"


def test_a_stage_that_counts_nothing_and_is_over_soon_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.stage("", "Ray is starting"):
        pass
    assert capsys.readouterr().out == ""


def test_a_stage_from_which_nothing_is_heard_prints_lines_at_a_bounded_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_FIRST_LINE_AFTER_S", 0.2)
    monkeypatch.setattr(stages, "LINE_EVERY_S", 1.5)
    with terminal.stage("", "Ray is starting"):
        time.sleep(3.2)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 3
    assert all(re.fullmatch(r"Ray is starting, [123] s so far", line) for line in lines)


def test_lines_are_printed_at_most_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "LINE_EVERY_S", 0.5)
    start = time.monotonic()
    with terminal.stage("evaluate", total=10**9, unit="images") as shown:
        done = 0
        while time.monotonic() < start + 1.8:
            done += 1
            shown.update(done)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_first_slow_result_does_not_shape_the_rate() -> None:
    start = time.monotonic()
    with terminal.stage("preprocess", total=100, unit="images") as shown:
        time.sleep(1)
        for done in range(1, 11):
            time.sleep(0.01)
            shown.update(done)
        average = 10 / (time.monotonic() - start)
        assert shown.rate
        assert shown.rate > 2 * average
        assert "left" in shown.line()


def test_results_of_earlier_sessions_do_not_shape_the_rate() -> None:
    with terminal.stage("train", "the workers are starting", unit="steps") as shown:
        assert "of" not in shown.line()
        shown.begin_at(500, 1000)
        shown.update(510)
        assert shown.rate is None
        time.sleep(0.1)
        shown.update(520)
        assert shown.rate
        assert shown.rate < 110
        assert shown.line().startswith("train: 520 of 1000 steps in 0 s, about ")


def test_an_error_ends_the_stage_without_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with terminal.stage("preprocess", total=2, unit="images") as shown:
            shown.update(1)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    with terminal.stage("evaluate", total=1, unit="images") as shown:
        shown.update(1)
    assert capsys.readouterr().out == "evaluate: 1 of 1 images in 0 s\n"


SCRIPT = """
import time
from pipeline import terminal
with terminal.stage("", "Ray is starting"):
    time.sleep(0.3)
    print("/a/long/path" * 20)
with terminal.stage("train", total=3, unit="steps") as outer:
    for step in range(1, 4):
        time.sleep(0.2)
        outer.update(step, details="a detail that does not fit on the line of a terminal; " * 5)
        with terminal.stage("evaluate", total=1, unit="images") as inner:
            time.sleep(0.2)
            inner.update(1)
"""


def on_a_terminal(script: str) -> bytes:
    """Run a script with 80 columns, and return what the terminal received."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=slave, stderr=slave, env=environment, cwd=ROOT
    )
    os.close(slave)
    received = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        received += part
    os.close(master)
    assert process.wait() == 0
    return received


def test_on_a_terminal_one_line_is_updated_in_place() -> None:
    received = on_a_terminal(SCRIPT).decode()
    assert "Ray is starting" in received
    assert "/a/long/path" * 20 in received  # other output is not broken into lines
    assert received.rindex("\x1b[?25h") > received.rindex("\x1b[?25l")  # the cursor is shown again
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", received).replace("\r\n", "\n").split("\n")
    kept = [line.rpartition("\r")[2] for line in lines]
    live = [part for line in lines for part in line.split("\r") if "━" in part]
    assert live
    assert all(len(part) <= 80 for part in live)
    assert sum(line.startswith("evaluate: 1 of 1 images") for line in kept) == 3
    assert sum("train: 3 of 3 steps in" in line for line in kept) == 1
    assert "Ray is starting" not in "\n".join(kept)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2.5 minutes"), (7100, "118.3 minutes"), (9000, "2.5 hours")],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text
