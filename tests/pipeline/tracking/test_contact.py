"""A tracking server that would fail later is one sentence within seconds, before any work; a good one costs no time."""

import http.server
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import mlflow
import pytest

from pipeline import tracking
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.tracking import Tracker, fetch_config, find_problem, ui_command


def config(home: Path, *more: str) -> Config:
    return parse([f"home={home}", *more], "run", "")


def problem(checked: Config) -> str:
    """The sentence about MLflow, which must come soon and say no more than one thing."""
    start = time.monotonic()
    found = find_problem(checked)
    assert time.monotonic() - start < 8
    assert found is not None
    assert "\n" not in str(found)
    return str(found)


def change(home: Path, statement: str) -> None:
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute(statement)
    database.close()


def test_nothing_is_wrong_and_nothing_is_created(home: Path) -> None:
    start = time.monotonic()
    assert find_problem(config(home)) is None
    assert time.monotonic() - start < 1
    assert find_problem(config(home / "new" / "home")) is None
    assert [file.name for file in home.iterdir()] == ["mlflow.db"]


def test_a_deleted_experiment_names_the_command_that_restores_it(home: Path) -> None:
    uri = config(home).tracking_uri
    Tracker(config(home))
    mlflow.MlflowClient(uri).delete_experiment("1")
    said = problem(config(home))
    assert "the experiment super-resolution" in said
    assert f"`MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id 1`" in said
    assert "tracking.experiment" in said
    with pytest.raises(UserError, match="was deleted: restore it with"):
        Tracker(config(home))
    assert find_problem(config(home, "tracking.experiment=other")) is None
    mlflow.MlflowClient(uri).restore_experiment("1")
    assert find_problem(config(home)) is None


def test_a_locked_database(home: Path) -> None:
    holder = sqlite3.connect(home / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "is locked by another program" in problem(config(home))
    holder.execute("ROLLBACK")
    holder.close()
    assert find_problem(config(home)) is None


@pytest.mark.parametrize("beginning", [b"no database", b"SQLite format 3\0"])
def test_a_damaged_database(home: Path, beginning: bytes) -> None:
    (home / "mlflow.db").write_bytes(beginning + b"\xff" * 5000)
    assert f"is damaged: {home}/mlflow.db is no whole SQLite database" in problem(config(home))


def test_a_database_that_lost_its_end(home: Path) -> None:
    with (home / "mlflow.db").open("r+b") as file:
        file.truncate(30_000)
    assert "is damaged" in problem(config(home))


def test_a_database_that_cannot_be_written(home: Path) -> None:
    home.chmod(0o755)
    (home / "mlflow.db").chmod(0o444)
    with as_another_user(home):
        assert "is read-only: you need permission to write" in problem(config(home))


@contextmanager
def as_another_user(*folders: Path) -> Iterator[None]:
    """Give up the rights of root, who may write everywhere, for the duration of the block."""
    if os.geteuid():
        yield
        return
    for folder in folders:
        for parent in (folder, *folder.parents):
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_databases_of_other_versions_of_mlflow(home: Path) -> None:
    Tracker(config(home))
    change(home, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert "was made by a newer version of MLflow" in problem(config(home))
    change(home, "UPDATE alembic_version SET version_num = '451aebb31d03'")  # of MLflow 1.0
    said = problem(config(home))
    assert f"run `mlflow db upgrade sqlite:///{home}/mlflow.db`" in said
    with pytest.raises(UserError, match="mlflow db upgrade"):
        Tracker(config(home))


def test_a_database_whose_creation_was_interrupted_is_completed(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "mlflow.db")
    database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    database.commit()
    database.close()
    assert find_problem(config(tmp_path)) is None
    assert Tracker(config(tmp_path)).experiment_id == "1"


class Server:
    """An HTTP server that gives the same answer to every request."""

    def __init__(self, status: int, content: bytes = b"", delay: float = 0) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.headers)
                time.sleep(delay)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        asked: list[Message] = []
        self.asked = asked
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server."""
    servers: list[Server] = []

    def start(*arguments: object) -> Server:
        servers.append(Server(*arguments))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize(
    ("status", "content", "sentence"),
    [
        (200, b"<html>a web page</html>", "is no MLflow server"),
        (404, b"not found", "is no MLflow server"),
        (200, b'{"other": "service"}', "is no MLflow server"),
        (401, b"who are you", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "set MLFLOW_TRACKING_USERNAME"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "start the server with --allowed-hosts"),
        (503, b"starting", "does not work at the moment (status 503: starting)"),
    ],
)
def test_wrong_and_refusing_servers(
    tmp_path: Path, serve: Callable[..., Server], status: int, content: bytes, sentence: str
) -> None:
    url = serve(status, content).url
    said = problem(config(tmp_path, f"tracking.uri={url}"))
    assert said.startswith(f"MLflow at {url} ")
    assert sentence in said


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("http://127.0.0.1:9", "cannot be used: nothing listens at this port; expected a running server"),
        ("http://no-such-host.invalid", "cannot be used: no host has this name; expected a running server"),
        ("postgresql+psycopg2://u:hidden@127.0.0.1:9/mlflow", "cannot be used: connection to server at"),
        ("postgresql+nodriver://host/mlflow", "cannot be used: "),
    ],
)
def test_unreachable_servers(tmp_path: Path, uri: str, sentence: str) -> None:
    if "psycopg2" in uri:
        pytest.importorskip("psycopg2")
    said = problem(config(tmp_path, f"tracking.uri={uri}"))
    assert sentence in said
    assert "hidden" not in said


def test_a_server_that_never_answers(tmp_path: Path, serve: Callable[..., Server]) -> None:
    assert "within" in problem(config(tmp_path, f"tracking.uri={serve(200, b'', 30).url}"))


def test_the_user_of_the_environment_is_sent(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}}
    server = serve(200, json.dumps(found).encode())
    checked = config(tmp_path, f"tracking.uri={server.url}")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    assert find_problem(checked) is None
    assert server.asked[-1]["Authorization"] == "Bearer abc"
    assert ui_command(checked) == f"{server.url}/#/experiments/7/runs?workflowType=machine_learning"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    assert find_problem(checked) is None
    assert server.asked[-1]["Authorization"].startswith("Basic ")


def test_a_home_with_any_characters_has_its_database(tmp_path: Path) -> None:
    home = tmp_path / "what? 50%20#x"
    tracker = Tracker(config(home))
    assert (home / "mlflow.db").exists()
    with tracker.run(str(home / "work"), "name", {}) as run:
        run.describe({"x": 1}, config(home))
    assert [entry.name for entry in tmp_path.iterdir()] == [home.name]
    assert list(home.glob("mlartifacts/*/artifacts/config.yaml"))
    assert "name: srresnet" in fetch_config(config(home), run.id)
    again = Tracker(config(home, f"tracking.uri={tracker.uri}"))
    assert (again.uri, again.experiment_id) == (tracker.uri, tracker.experiment_id)


def test_a_failed_request_for_a_run_leaves_nothing(tmp_path: Path, home: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError, match=rf"there is no database {nowhere}/mlflow.db: name that of the run"):
        fetch_config(config(nowhere), "0" * 32)
    assert not nowhere.exists()
    before = (home / "mlflow.db").read_bytes()
    with pytest.raises(UserError, match="expected the id of a run of this pipeline"):
        fetch_config(config(home), "0" * 32)
    assert (home / "mlflow.db").read_bytes() == before
    with pytest.raises(UserError, match="nothing listens at this port"):
        fetch_config(config(home, "tracking.uri=http://127.0.0.1:9"), "0" * 32)


def test_the_printed_command_opens_the_page_for_trainings(home: Path) -> None:
    Tracker(config(home))
    command, address = ui_command(config(home), 5001).splitlines()
    assert command.endswith(f"mlflow ui --backend-store-uri sqlite:///{home}/mlflow.db --port 5001")
    assert address.endswith("http://127.0.0.1:5001/#/experiments/1/runs?workflowType=machine_learning")
    secret = config(home, "tracking.uri=postgresql+nodriver://u:pw@host/db")
    assert "pw" not in ui_command(secret)
    assert '"$MLFLOW_TRACKING_URI"' in ui_command(secret)


def test_waiting_for_a_server_ends_at_once_if_waiting_cannot_help(home: Path) -> None:
    Tracker(config(home))
    mlflow.MlflowClient(config(home).tracking_uri).delete_experiment("1")
    start = time.monotonic()
    with pytest.raises(UserError, match="was deleted"):
        tracking.wait_for_server(config(home), 60)
    assert time.monotonic() - start < 5
