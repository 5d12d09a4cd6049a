"""`infra/local`: what it writes, how it ends processes, and (long) the whole stack with a job."""

import fcntl
import json
import os
import stat
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra.stack import Prometheus, Stack
from infra.stack.command import main
from infra.stack.files import Note, write_private
from infra.stack.processes import Server, is_free
from tests.conftest import ROOT


class Sleeper(Server):
    """A server that starts a process which leaves its group, and then sleeps."""

    def start(self) -> None:
        script = (
            "import subprocess, time\n"
            "subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
            "print('ready', flush=True)\ntime.sleep(300)"
        )
        self._start_process([sys.executable, "-c", script], {})
        self._wait_until(lambda: "ready" in (self.folder / "log").read_text())


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Sleeper]:
    server = Sleeper(tmp_path / "sleeper")
    server.start()
    yield server
    server.stop()


def test_a_server_is_found_by_a_later_command_and_stops_with_all_that_it_started(sleeper: Sleeper) -> None:
    later = Server(sleeper.folder)
    assert later.alive()
    started = later.processes()
    assert {process.name() for process in started} >= {"sleep"}
    later.stop()
    assert not sleeper.alive()
    assert not any(psutil.pid_exists(p.pid) and p.status() != psutil.STATUS_ZOMBIE for p in started)


def test_what_an_ended_server_left_behind_is_stopped(sleeper: Sleeper) -> None:
    sleeper.process().kill()
    while sleeper.alive():
        time.sleep(0.01)
    assert [process.name() for process in sleeper.processes()] == ["sleep"]
    sleeper.stop()
    assert sleeper.processes() == []


def test_secrets_and_ports_stay_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    note = Note(tmp_path / "stack.json")
    secret, port = note.secret("token"), note.port("head")
    assert len(secret) == 64
    assert is_free(port)
    again = Note(tmp_path / "stack.json", usual_ports=True)
    assert (again.secret("token"), again.port("head", 6379)) == (secret, port)
    assert again.secret("other") != secret
    write_private(tmp_path / "file", "text")
    for name in ("stack.json", "file"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_prometheus_reads_the_shipped_rules_and_asks_this_head(tmp_path: Path) -> None:
    made = Prometheus(tmp_path, 9090, "http://127.0.0.1:1234", tmp_path / "token").configuration()
    assert made["rule_files"] == [str(ROOT / "infra" / "monitoring" / "rules.yml")]
    (discovery,) = (found for job in made["scrape_configs"] for found in job.get("http_sd_configs", []))
    assert discovery["url"] == "http://127.0.0.1:1234/api/prometheus/sd"
    assert discovery["authorization"] == {"type": "Bearer", "credentials_file": str(tmp_path / "token")}


def test_the_status_of_a_folder_without_a_stack_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["status", "--folder", str(tmp_path)])
    assert capsys.readouterr().out == f"There is no stack in {tmp_path}.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_stack_that_is_stopped_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Stack(tmp_path)
    main(["status", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(" stopped " in line for line in lines)


def test_stopping_what_does_not_exist_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["down", "--folder", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: there is no stack in {tmp_path}, expected ")


def test_two_commands_do_not_change_a_stack_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Stack(tmp_path)
    with (tmp_path / ".lock").open("w") as other:  # as another process would hold it
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            main(["down", "--folder", str(tmp_path)])
    assert "another command is starting or stopping the stack" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(900)
def test_from_up_to_a_finished_job_in_mlflow_and_its_metrics_in_prometheus(tmp_path: Path) -> None:
    """The commands of docs/guides/local-stack.md, with a shorter training."""

    def shell(command: str) -> str:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    folder = tmp_path / "stack"
    try:
        assert "MLflow" in shell(f"infra/local up --folder {folder}")
        running = shell(f"infra/local status --folder {folder}").count(" running ")
        assert running == (6 if Prometheus.is_installed() else 5)
        shell(f"infra/local up --folder {folder}")
        for name in ("environment", "stack.json", "ray_token"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        job = "ray job submit --working-dir . -- python pipeline/run.py --config configs/demo.yaml"
        printed = shell(f"source {folder}/environment && {job} --train.length '30 steps'")
        assert "succeeded" in printed
        client = "from mlflow import MlflowClient; print([r.info.status for r in MlflowClient().search_runs(['1'])])"
        runs = shell(f'source {folder}/environment && python -c "{client}"')
        assert "FINISHED" in runs
        assert "FAILED" not in runs
        if Prometheus.is_installed():
            port = json.loads((folder / "stack.json").read_text())["ports"]["prometheus"]
            assert ask(port, "count(ray_node_cpu_utilization)") == 2
            assert ask(port, "count({__name__=~'ray_data_.*|ray_train_.*'})") > 0
    finally:
        shell(f"infra/local down --folder {folder}")
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                left.append(process)
    assert left == []


def ask(port: int, query: str) -> float:
    """Ask Prometheus for one number, until it has it."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    for _ in range(60):
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        if found:
            return float(found[0]["value"][1])
        time.sleep(1)
    raise AssertionError(f"Prometheus has nothing for {query}")
