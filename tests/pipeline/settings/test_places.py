"""Places are resolved once, and then mean the same in every process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.settings import Config, UserError, resolve
from pipeline.settings.command_line import parse, parse_with


def read(*argv: str) -> Config:
    return parse(argv, "run", "Test.")


def test_outputs_go_where_the_contract_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read().outputs == str(tmp_path / "runs")
    assert read("home=s3://bucket/x").outputs == "s3://bucket/x"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert read().outputs == str(tmp_path / "me" / "sr-runs")
    monkeypatch.setenv("SR_HOME", str(tmp_path / "elsewhere"))
    assert read().outputs == str(tmp_path / "elsewhere")


def test_downloads_go_to_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SR_CACHE", raising=False)
    assert read().downloads == str(tmp_path / ".cache" / "sr-pipeline")
    monkeypatch.setenv("SR_CACHE", "s3://bucket/cache")
    assert read().downloads == "s3://bucket/cache"
    assert read("cache=/c").downloads == "/c"


def test_the_tracking_uri_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("home=/h").tracking_uri == "sqlite:////h/mlflow.db"
    assert read("tracking.uri=sqlite:///a.db").tracking_uri == f"sqlite:///{tmp_path}/a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert read("home=/h").tracking_uri == "http://server:5000"


def test_a_remote_home_needs_a_tracking_server() -> None:
    config = read("home=s3://bucket/x")
    with pytest.raises(UserError, match=r"set tracking.uri to an MLflow server"):
        _ = config.tracking_uri


def test_a_jobs_records_outlive_what_was_uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["tune.records=models", "home=/home"]
    assert read(*options).new_records == str(tmp_path / "models")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = read(*options)
    assert (config.tune.records, config.new_records) == (str(tmp_path / "models"), "/home/records")
    assert read("tune.records=s3://bucket/models").new_records == "s3://bucket/models"
    assert read(*options, "tune.new_records=/kept").new_records == "/kept"
    assert read("home=/home").new_records is None


PLACES = """
import json, sys
from pipeline.settings import Config, resolve
config = Config(**json.loads(sys.argv[1]))
assert resolve(config) == config
print(json.dumps([config.outputs, config.downloads, config.tracking_uri, config.new_records]))
"""


def test_places_are_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SR_CACHE", raising=False)
    config = read("home=out", "tune.records=models")
    other = tmp_path / "other"
    other.mkdir()
    environment = {"HOME": str(other), "SR_HOME": "/x", "SR_CACHE": "/y", "MLFLOW_TRACKING_URI": "http://z"}
    printed = subprocess.run(
        [sys.executable, "-c", PLACES, json.dumps(config.model_dump(mode="json"))],
        env=environment | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"},
        cwd=other,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(printed) == [config.outputs, config.downloads, config.tracking_uri, config.new_records]
    assert config.outputs == str(tmp_path / "out")


def test_a_configuration_with_a_home_needs_no_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SR_HOME", "SR_CACHE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "/elsewhere")
    config = Config(home="/home")
    assert (config.outputs, config.downloads, config.tracking_uri) == (
        "/home", "/home/downloads", "sqlite:////home/mlflow.db",
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no home"):
        _ = Config().outputs


def test_a_stored_configuration_names_no_place_and_no_password(tmp_path: Path) -> None:
    config = read(
        f"home={tmp_path}", "cache=/c", "tracking.uri=http://me:secret@server", "tune.records=/models",
        "evaluate.benchmarks=Set5=https://me:secret@host/set5",
    )  # fmt: skip
    text = config.to_yaml()
    assert "secret" not in text
    assert "server" not in text
    assert str(tmp_path) not in text
    stored = yaml.safe_load(text)
    assert not {"home", "cache"} & set(stored)
    assert stored["evaluate"]["benchmarks"] == {"Set5": "https://host/set5"}
    assert "new_records" not in stored["tune"]


def test_a_run_from_another_machine_uses_the_places_of_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = resolve(Config(home="/there", cache="/there/cache", name="mine")).to_yaml()
    asked: list[str] = []

    def fetch(config: Config, run_id: str) -> str:
        asked.append(config.tracking_uri)
        return stored

    monkeypatch.setenv("SR_HOME", str(tmp_path))
    monkeypatch.setenv("SR_CACHE", str(tmp_path / "cache"))
    config, _ = parse_with({}, ["--from-run", "1", "train.lr=1"], "run", "", fetch)
    assert (config.name, config.train.lr) == ("mine", 1)
    assert (config.outputs, config.downloads) == (str(tmp_path), str(tmp_path / "cache"))
    assert [config.tracking_uri] == asked == [f"sqlite:///{tmp_path}/mlflow.db"]
