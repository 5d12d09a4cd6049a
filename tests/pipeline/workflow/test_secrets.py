"""Secrets in the URLs, the settings and the environment of a workflow are left nowhere, and asked for in a sentence."""

import functools
import http.server
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
import s3fs
import yaml

from infra.stack import Login
from tests.conftest import ROOT, SMALL, write_photos
from tests.services import BUCKET, MLflowServer, S3Server

MARK = b"NobodyMayReadThis"
"""Part of every secret in this test."""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[str]:
    """Serve an archive of photographs, and return its address with user, password and signatures."""
    write_photos(tmp_path / "photos")
    (tmp_path / "web").mkdir()
    with zipfile.ZipFile(tmp_path / "web" / "photos.zip", "w") as made:
        for file in (tmp_path / "photos").iterdir():
            made.write(file, file.name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mark = MARK.decode()
    yield (
        f"http://{mark}user:{mark}p%40ss@127.0.0.1:{server.server_address[1]}/photos.zip"
        f"?sig={mark}&X-Amz-Signature={mark}&X-Amz-Credential={mark}"
    )
    server.shutdown()
    server.server_close()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_secrets_of_sources_and_server_are_left_nowhere(tmp_path: Path, archive: str) -> None:
    server = MLflowServer(tmp_path / "server")
    server.start()
    try:
        uri = server.url.replace("://", f"://{MARK.decode()}me:{MARK.decode()}pw@")
        command = [sys.executable, "-m", "pipeline.tune", f"--source={archive}", f"--home={tmp_path / 'home'}"]
        command += [f"--cache={tmp_path / 'cache'}", f"--tracking.uri={uri}", f"tune.records={tmp_path / 'records'}"]
        command += [*SMALL, "cluster.workers=1", "cluster.cpus_per_worker=1", 'tune.grid={"train.seed": [1, 2]}']
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        command[2] = "pipeline.run"
        done_again = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert done_again.returncode == 0, done_again.stdout + done_again.stderr
        for output in (done.stdout, done.stderr, done_again.stdout, done_again.stderr):
            assert MARK not in output
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert {"report.html", "record.json", "mlflow.db"} <= {file.name for file in files}
        assert any(file.parent.name == "inventory" for file in files)
        assert [file for file in files if MARK in file.read_bytes()] == []
    finally:
        server.stop()


@contextmanager
def watched_processes() -> Iterator[set[str]]:
    """Collect the command lines of all processes of this machine that hold the mark, several times a second."""
    found: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for process in Path("/proc").iterdir():
                with suppress(OSError):
                    if process.name.isdecimal() and MARK in (line := (process / "cmdline").read_bytes()):
                        found.add(line.replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def holders(folder: Path) -> list[Path]:
    """Return the files below a folder whose content or name holds the mark."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert files, folder
    return [file for file in files if MARK in file.read_bytes() or MARK in os.fsencode(file)]


def test_the_watch_sees_what_stands_on_a_command_line() -> None:
    with watched_processes() as command_lines:
        subprocess.run(["sh", "-c", "sleep 0.5; true", MARK.decode()], check=True)
    assert command_lines == {f"sh -c sleep 0.5; true {MARK.decode()} "}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_secrets_of_the_environment_are_left_nowhere(tmp_path: Path, archive: str) -> None:
    mark = MARK.decode()
    given, used = tmp_path / "given", tmp_path / "used"
    given.mkdir()
    used.mkdir()
    s3 = S3Server(tmp_path / "s3", BUCKET, key=f"{mark}key", secret=f"{mark}secret")
    server = MLflowServer(tmp_path / "mlflow")
    server.login = Login(f"{mark}password", f"{mark}sessions", f"sqlite:///{server.folder}/users.db")
    settings = given / "settings.yaml"
    settings.write_text(
        yaml.safe_dump({"source": [archive], "home": f"s3://{BUCKET}/home", "tracking": {"uri": server.url}})
    )
    command = [sys.executable, "-m", "pipeline.run", "--config", str(settings), *SMALL]
    command += [f"--cache={used / 'cache'}", "cluster.workers=1", "cluster.cpus_per_worker=1"]
    # Ray's sockets allow 107 characters.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as ray, watched_processes() as command_lines:
        environment = {
            **os.environ, **s3.env, "MLFLOW_TRACKING_USERNAME": "admin", "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": f"{mark}token", "RAY_TMPDIR": ray, "TMPDIR": str(used), "HF_TOKEN": f"{mark}hub",
        }  # fmt: skip
        try:
            s3.start()
            server.start()
            refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
            assert refused.returncode == 2
            sentence = refused.stderr.decode().strip()
            assert len(sentence.splitlines()) == 1
            assert "refuses this user" in sentence
            assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in sentence

            environment["MLFLOW_TRACKING_PASSWORD"] = f"{mark}password"
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert states_of_runs(server.url, environment) == {"FINISHED"}
            written = read_store(s3)
        finally:
            server.stop()
            s3.stop()
        for output in (refused.stdout, refused.stderr, done.stdout, done.stderr):
            assert MARK not in output
        assert command_lines == set()
        assert any("runtime_env" in file.name for file in Path(ray).rglob("*.log"))
        assert holders(Path(ray)) == [], "Ray's logs and session files"
        assert holders(used) == []
        assert holders(server.folder) == [server.folder / "users.ini"], "log, databases and artifacts of MLflow"
        assert (server.folder / "users.ini").stat().st_mode & 0o777 == 0o600
        assert {"report.html", "manifest.json"} <= {name.rpartition("/")[2] for name in written}
        assert [name for name, content in written.items() if MARK in content] == []


def states_of_runs(url: str, environment: dict[str, str]) -> set[str]:
    """Return the states of all runs of the pipeline in MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, environment[name])
        client = mlflow.MlflowClient(url)
        found = [one.experiment_id for one in client.search_experiments() if one.name != "Default"]
        return {run.info.status for run in client.search_runs(found)}


def read_store(s3: S3Server) -> dict[str, bytes]:
    """Return the content of all outputs by their name in the object store."""
    keys = {"key": s3.env["AWS_ACCESS_KEY_ID"], "secret": s3.env["AWS_SECRET_ACCESS_KEY"]}
    store = s3fs.S3FileSystem(**keys, endpoint_url=s3.url)
    return {name: store.cat_file(name) for name in store.find(f"{BUCKET}/home")}
