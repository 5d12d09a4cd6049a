"""`infra/head`, as `make head` starts it."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT


def free_ports(count: int) -> list[int]:
    """Return ports outside of those that Ray's workers take."""
    found = [port for port in range(20_100, 21_000) if socket.socket().connect_ex(("127.0.0.1", port))]
    return found[os.getpid() % 400 :][:count]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_instructions_come_last_and_the_token_is_private(tmp_path: Path) -> None:
    if not (ROOT / ".venv/bin/activate").exists():
        pytest.skip("infra/head needs the environment .venv")
    home = tmp_path / "my home"
    home.mkdir()
    port, dashboard = free_ports(2)
    unset = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HOME": str(home), "PORT": str(port), "DASHBOARD_PORT": str(dashboard)}
    started = subprocess.Popen(
        ["infra/head"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stdout is not None
    try:
        printed = ""
        while "Outputs go to" not in printed:
            printed += started.stdout.readline()
            assert started.poll() is None
        assert not select.select([started.stdout], [], [], 5)[0], "more follows the instructions"
        assert printed.splitlines()[1].startswith("The Ray head runs until Ctrl-C")
        assert "Ray runtime started" not in printed
        assert f"RAY_API_SERVER_ADDRESS=http://127.0.0.1:{dashboard}" in printed
        assert "`ray job stop ID` stops it" in printed
        token = home / ".ray/auth_token"
        assert token.stat().st_mode & 0o777 == 0o600

        environment |= {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "token"}
        connect = [sys.executable, "-c", "from pipeline import cluster, settings; cluster.connect(settings.Config())"]
        for other, message in {"f" * 64: "refuses the token in RAY_AUTH_TOKEN", "": ""}.items():
            own = {"RAY_AUTH_TOKEN": other} if other else {}
            done = subprocess.run(connect, env=environment | own, cwd=ROOT, capture_output=True, text=True, check=False)
            assert (done.returncode == 0) == (not other), done.stderr
            assert message in done.stderr
    finally:
        os.killpg(started.pid, signal.SIGINT)
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(started.pid).children(recursive=True):
                process.kill()
            started.kill()
            raise
