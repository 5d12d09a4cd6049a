"""A workflow whose sources and MLflow server have secrets in their URLs leaves none of them anywhere."""

import functools
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, write_photos
from tests.services import MLflowServer

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
        assert {"report.html", "record.json", "mlflow.db", "inventory.json"} <= {file.name for file in files}
        assert [file for file in files if MARK in file.read_bytes()] == []
    finally:
        server.stop()
