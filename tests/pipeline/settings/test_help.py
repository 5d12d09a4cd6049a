"""--help lists what concerns a command, --help-all lists everything."""

import re

import pytest

from pipeline.settings.command_line import parse_with
from pipeline.settings.mistakes import known_keys


def shown(capsys: pytest.CaptureFixture[str], module: str, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_with({"--dry-run": "plan only"}, argv, module, "Do it.", lambda _, __: "")
    assert stopped.value.code == 0
    return capsys.readouterr().out


def options(text: str) -> list[str]:
    return re.findall(r"^  --(\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("request_for_all", [["--help-all"], ["--help", "all"], ["-h", "all"]])
def test_everything_is_listed_on_request(capsys: pytest.CaptureFixture[str], request_for_all: list[str]) -> None:
    text = shown(capsys, "run", *request_for_all)
    assert set(options(text)) == {*known_keys(), "config", "from-run", "register", "dry-run", "help", "help-all"}
    assert "(default: 0.0004)" in text
    assert "(default: None)" not in text
    assert "(default: null)" not in text


def test_help_lists_the_settings_of_the_command_and_common_ones_first(capsys: pytest.CaptureFixture[str]) -> None:
    listed = options(shown(capsys, "run", "--train.lr", "3", "--help"))
    assert listed[:4] == ["config", "from-run", "register", "dry-run"]
    assert listed.index("source") < listed.index("train.lr") < listed.index("data.window")
    assert not [key for key in listed if key.startswith("tune.")]
    preprocess = options(shown(capsys, "preprocess", "-h"))
    assert "preprocess.row_group" in preprocess
    assert "cluster.object_store_mb" in preprocess
    assert not [key for key in preprocess if key.startswith(("train.", "model.", "tune.", "evaluate.", "tracking."))]
    assert [key for key in options(shown(capsys, "tune", "-h")) if key.startswith("tune.")]


def test_help_names_the_program_that_was_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys, "run", "--help").startswith("usage: python -m pipeline.run ")
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/sr-run"])
    assert shown(capsys, "run", "--help").startswith("usage: sr-run ")
