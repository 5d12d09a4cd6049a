"""Output as lines of JSON, of a process that prints in every way."""

import json
import subprocess
import sys

import pytest

from pipeline.settings import Config, UserError
from pipeline.settings.places import resolve
from tests.conftest import ROOT

SCRIPT = """
import logging, sys, threading
from pipeline import terminal
from pipeline.settings.command_line import Parser, command, parse
from pipeline.terminal import LogContext, log_context, logged_as, print_json, stage
config = parse(sys.argv[1:], "train", "")
print("begins")
with logged_as("abc"), stage("preprocess", total=2, unit="images") as shown:
    print("a line,", "in parts")
    sys.stdout.write("two\\nlines\\n")
    shown.update(2)
    print("attention", file=sys.stderr)
    logging.warning("from a library")
    handed = log_context()
print("ends")
threads = [threading.Thread(target=lambda: [print("x" * 50, "y") for _ in range(200)]) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(repr(handed))
if "fail" in config.name:
    raise ValueError("a fault")
"""


def test_every_line_is_an_object_with_time_stage_and_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--log_format", "json", "--name=fail"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["message"] for line in printed[:5]] == [
        "begins", "a line, in parts", "two", "lines", "preprocess: 2 of 2 images in 0 s",
    ]  # fmt: skip
    assert [line.get("run") for line in printed[:6]] == [None, "abc", "abc", "abc", "abc", None]
    assert [line["stage"] for line in printed[:6]] == ["train", *["preprocess"] * 3, printed[4]["stage"], "train"]
    assert all(line["level"] == "info" and line["time"].endswith("+00:00") for line in printed)
    mixed = [line["message"] for line in printed[6:-1]]
    assert mixed == ["x" * 50 + " y"] * 800
    assert "LogContext(stage='preprocess', run='abc', worker='')" in printed[-1]["message"]

    complaints = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in complaints] == [
        "attention", "WARNING:root:from a library", "ValueError: a fault",
    ]  # fmt: skip
    assert [line["level"] for line in complaints] == ["warning", "warning", "error"]
    assert complaints[-1]["traceback"].startswith("Traceback")
    assert done.returncode == 1


def test_the_environment_chooses_the_form_and_the_option_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(Config()).log_format == "text"
    monkeypatch.setenv("SR_LOG_FORMAT", "json")
    assert resolve(Config()).log_format == "json"
    assert resolve(Config(log_format="text")).log_format == "text"
    assert "log_format" not in resolve(Config()).to_yaml()
    monkeypatch.setenv("SR_LOG_FORMAT", "yaml")
    with pytest.raises(UserError, match="SR_LOG_FORMAT is yaml, expected text or json"):
        resolve(Config())
