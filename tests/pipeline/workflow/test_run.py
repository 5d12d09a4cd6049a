"""The whole workflow, started as users start it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from pipeline.networks.sources import find_model
from tests import commands
from tests.conftest import ROOT, SMALL, write_photos

Small = Callable[..., list[str]]


def run(*argv: str, module: str = "run", code: int = 0) -> tuple[str, str]:
    """Output and errors of a stage's command."""
    done = commands.run(module, *argv)
    assert done.code == code, done
    return done.stdout, done.stderr


class Head:
    """A real Ray head with dashboard and token, started in the checkout."""

    def __init__(self, folder: Path) -> None:
        ports = []
        for _ in range(3):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        self.home = folder / "outputs"
        self.temp = Path("/tmp") / f"ray-head-{os.getpid()}"  # a short path: sockets allow 107 characters
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "SR_HOME": str(self.home),
        }
        start = ["ray", "start", "--head", "--block", "--port", str(ports[0]), "--dashboard-port", str(ports[1])]
        start += ["--num-cpus", "2", "--object-store-memory", str(200 * 2**20), "--temp-dir", str(self.temp)]
        start += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "true", "--disable-usage-stats"]
        start += ["--dashboard-agent-listen-port", str(ports[2])]  # the default's is taken by any other Ray here
        self.log = (folder / "head.log").open("wb")
        self.process = subprocess.Popen(
            start, cwd=ROOT, env=self.env, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self.env["RAY_ADDRESS"] = f"http://127.0.0.1:{ports[1]}"
        self.address = f"127.0.0.1:{ports[0]}"

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while self.ray("job", "list").returncode:
            assert self.process.poll() is None, Path(self.log.name).read_text()
            assert time.monotonic() < deadline
            time.sleep(1)

    def ray(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ray", *argv], cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        marker = str(self.temp)
        for process in psutil.process_iter(["cmdline"]):
            if marker in " ".join(process.info["cmdline"] or []):
                process.kill()
        shutil.rmtree(self.temp, ignore_errors=True)


def submit(head: Head, *argv: str) -> str:
    """Submit a job and return its output."""
    for _ in range(30):
        done = head.ray("job", "submit", *argv)
        if "No available agent" not in done.stderr:  # the head answers before its agent is up
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    """A finished workflow, submitted as a job to a Ray head: its options, its folder, what it printed."""
    base = tmp_path_factory.mktemp("workflow")
    write_photos(base / "photos")
    (base / "Bench/HR").mkdir(parents=True)
    image = Image.open(base / "photos/chelsea0.png")
    image.save(base / "Bench/HR/colour.png")
    image.convert("L").save(base / "Bench/HR/grey.png")
    options = [f"--source={base / 'photos'}", *SMALL, "--evaluate.benchmarks", f"Bench={base / 'Bench'}", "name=small"]
    head = Head(base)
    try:
        head.wait()
        lines = submit(head, "--working-dir=.", "--", "pipeline/run.py", *options).splitlines(keepends=True)
    finally:
        head.stop()
    assert not head.temp.exists()
    (folder,) = (head.home / "workflows").iterdir()
    printed = "".join(line for line in lines if not re.match(r"[-\d]+ [:,\d]+\t", line))  # without those of Ray
    return [*options, f"--home={head.home}"], folder, printed


def test_prints_table_report_and_the_command_of_the_ui(finished: tuple[list[str], Path, str]) -> None:
    _, folder, printed = finished
    for line in (
        r"held-out \(2\) +bicubic +\d\d\.\d\d",
        r"Bench \(2\) +untrained",
        r"Bench \(2\) +trained network",
    ):
        assert re.search(line, printed), printed
    assert f"report: {folder}/report.html" in printed
    assert "mlflow ui --backend-store-uri sqlite:///" in printed


def test_leaves_scores_report_and_images(finished: tuple[list[str], Path, str]) -> None:
    _, folder, _ = finished
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores["sets"]) == {"held-out", "Bench"}
    assert [p["name"] for p in scores["sets"]["held-out"]["images"]] == ["coffee0.png", "coffee1.png"]
    assert 20 < scores["sets"]["Bench"]["mean"]["bicubic"]["psnr_y"] < 45
    assert Image.open(folder / "comparison.png").width > 600
    assert Image.open(folder / "images/Bench/1_grey-trained.png").mode == "L"


def test_the_report_asks_nothing_of_the_network(finished: tuple[list[str], Path, str]) -> None:
    page = (finished[1] / "report.html").read_text()
    loads = [a or b for a, b in re.findall(r'(?:src|href)="([^"]+)"|url\(["\']?([^"\')]+)', page)]
    assert len(loads) > 5
    assert all(target.startswith(("data:", "#")) for target in loads), [t for t in loads if not t.startswith("data:")]


def test_a_second_run_takes_seconds_and_says_what_it_reused(finished: tuple[list[str], Path, str]) -> None:
    options, folder, _ = finished
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    start = time.monotonic()
    printed, _ = run(*options)
    assert time.monotonic() - start < 30
    assert "patch set reused" in printed
    assert "training, evaluation and report reused" in printed
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_rerun_registers_the_model_under_another_name_and_writes_the_same_report(
    finished: tuple[list[str], Path, str],
) -> None:
    options, folder, _ = finished
    before = {name: (folder / name).read_bytes() for name in ("report.html", "comparison.png", "scores.json")}
    printed, _ = run(*options, "--register", "other")
    assert "training reused" in printed
    assert "models:/other@best-psnr is now version 1" in printed
    after = {name: (folder / name).read_bytes() for name in before}
    after["report.html"] = after["report.html"].replace(b"register_as: other", b"register_as: null")
    assert after == before
    client = mlflow.MlflowClient(f"sqlite:///{folder.parents[1]}/mlflow.db")
    first, second = (client.get_model_version_by_alias(name, "best-psnr") for name in ("srresnet-x4", "other"))
    assert (first.source, first.run_id) == (second.source, second.run_id)


def test_the_folder_of_the_training_says_its_settings(finished: tuple[list[str], Path, str]) -> None:
    _, folder, _ = finished
    (file,) = folder.parents[1].glob("trainings/*/config.yaml")
    settings = yaml.safe_load(file.read_text())
    assert settings["name"] == "small"
    assert settings["train"]["length"] == "8 steps"
    assert settings["model"]["channels"] == 8


def test_its_output_in_a_pipe_has_no_control_characters(finished: tuple[list[str], Path, str]) -> None:
    assert re.findall(r"[^\n -~\u00a0-\uffff]", finished[2]) == []


def test_mlflow_has_a_parent_and_a_child(finished: tuple[list[str], Path, str]) -> None:
    _, folder, _ = finished
    client = mlflow.MlflowClient(f"sqlite:///{folder.parents[1]}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'super-resolution'")
    runs = client.search_runs([experiment.experiment_id])
    by_stage = {r.data.tags["stage"]: r for r in runs}
    assert set(by_stage) == {"workflow", "train"}
    assert by_stage["train"].data.tags["mlflow.parentRunId"] == by_stage["workflow"].info.run_id
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert by_stage["workflow"].data.metrics["held-out/trained/psnr_y"] > 15
    artifacts = {f.path for f in client.list_artifacts(by_stage["workflow"].info.run_id)}
    assert artifacts == {"config.yaml", "comparison.png", "report.html"}
    for tracked in runs:
        (data,) = tracked.inputs.dataset_inputs
        assert data.dataset.name == "photos"
    assert len(by_stage["train"].data.params) < 12
    assert by_stage["train"].data.metrics["system/system_memory_usage_megabytes"] > 10
    commit = by_stage["workflow"].data.tags.get("mlflow.source.git.commit")
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_the_network_is_a_registered_model_that_mlflow_can_load(
    finished: tuple[list[str], Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SR_CACHE", str(tmp_path))
    _, folder, printed = finished
    assert "models:/srresnet-x4@best-psnr is now version 1" in printed
    uri = f"sqlite:///{folder.parents[1]}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs(["1"], "tags.stage = 'train'")
    version = client.get_model_version_by_alias("srresnet-x4", "best-psnr")
    psnr = json.loads((folder / "scores.json").read_text())["sets"]["held-out"]["mean"]["trained"]["psnr_y"]
    assert version.run_id == run.info.run_id
    assert float(version.tags["held-out/psnr_y"]) == pytest.approx(psnr, rel=1e-5)
    assert version.description.startswith("training of the workflow small, scored on held-out images ([run](#/exp")
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/srresnet-x4@best-psnr")
    finally:
        mlflow.set_tracking_uri(None)
    assert model.predict(np.zeros((1, 6, 7, 3), np.uint8)).shape == (1, 24, 28, 3)
    (weights,) = folder.parents[1].glob("trainings/*/model.safetensors")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Path(find_model(f"runs:/{run.info.run_id}").weights).read_bytes() == weights.read_bytes()


def test_finished_work_needs_no_mlflow_and_other_work_does_not_begin_without_it(
    finished: tuple[list[str], Path, str],
) -> None:
    options, folder, _ = finished
    away = "tracking.uri=http://127.0.0.1:9"
    printed, _ = run(*options, away)
    assert "training, evaluation and report reused" in printed
    before = sorted(folder.parents[1].rglob("*"))
    start = time.monotonic()
    printed, errors = run(*options, away, "train.lr=1", code=2)
    assert time.monotonic() - start < 20
    assert "error: MLflow at http://127.0.0.1:9 cannot be used: nothing listens at this port" in errors
    assert printed == ""
    assert sorted(folder.parents[1].rglob("*")) == before


def test_evaluate_by_itself_prints_the_same_table(finished: tuple[list[str], Path, str]) -> None:
    options, _, printed = finished
    again, _ = run(*options, module="evaluate")
    table = re.search(r"^set .*?(?=\n\n)", again, re.MULTILINE | re.DOTALL)
    assert table
    assert table[0] in printed


@pytest.mark.long
def test_evaluate_on_other_sets_leaves_the_workflow_as_it_is(finished: tuple[list[str], Path, str]) -> None:
    options, folder, _ = finished
    before = (folder / "scores.json").read_bytes()
    fast = ["evaluate.images=0", "evaluate.st_lpips=false"]
    printed, _ = run(*options, *fast, "--sets", f"Other={folder.parents[2]}/Bench", module="evaluate")
    assert "Other (2)" in printed
    assert "Bench (2)" not in printed
    (written,) = (folder.parents[1] / "evaluations").glob("*/scores.json")
    assert f"scores: {written}" in printed
    assert (folder / "scores.json").read_bytes() == before


def test_evaluate_makes_no_patch_set_without_a_training_on_it(finished: tuple[list[str], Path, str]) -> None:
    options, folder, _ = finished
    before = sorted(path.name for path in (folder.parents[1] / "patchsets").iterdir())
    _, errors = run(*options, "preprocess.stride=16", module="evaluate", code=2)
    assert "has no finished training of exactly these images and settings: run pipeline.train" in errors
    assert sorted(path.name for path in (folder.parents[1] / "patchsets").iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.lrr=1"], "error: unknown key train.lrr, did you mean train.lr?"),
        (["--source=/no/such/folder"], "error: source /no/such/folder does not exist, expected a folder"),
        (["--evaluate.benchmarks", "Set5=/none"], "error: evaluate.benchmarks.Set5 is /none, which does not"),
        (["cluster.address=http://127.0.0.1:8265"], "error: cluster.address is http://127.0.0.1:8265, the address of"),
        (["tracking.uri=http://127.0.0.1:9"], "error: MLflow at http://127.0.0.1:9 cannot be used"),
        (["cluster.address=127.0.0.1:9"], "error: no Ray cluster answers at 127.0.0.1:9"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    small: Small, tmp_path: Path, options: list[str], message: str
) -> None:
    _, errors = run(*small(*options), code=2)
    assert not (tmp_path / "home/trainings").exists()
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert "Traceback" not in errors


@pytest.fixture
def browser_page(finished: tuple[list[str], Path, str]) -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


def test_the_slider_moves_in_a_browser(finished: tuple[list[str], Path, str], browser_page: object) -> None:
    page = browser_page
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)  # type: ignore[attr-defined]
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))  # type: ignore[attr-defined]
    page.goto((finished[1] / "report.html").as_uri())  # type: ignore[attr-defined]
    slider = page.locator(".slider:visible")  # type: ignore[attr-defined]
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)  # type: ignore[attr-defined]
    at = float(slider.evaluate("e => e.style.getPropertyValue('--at')").rstrip("%"))
    assert at == pytest.approx(25, abs=4)
    page.locator(".tabs button").nth(1).click()  # type: ignore[attr-defined]
    assert page.locator(".slider:visible").get_attribute("data-image") == "1"  # type: ignore[attr-defined]
    assert problems == []


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    started = Head(tmp_path)
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def statuses(home: Path) -> dict[str, str]:
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return {r.info.run_name: r.info.status for r in client.search_runs(experiments)}


def assert_left_by(head: Head, names: list[str]) -> None:
    """The outputs of workflows lie where the contract says, after head and upload are gone."""
    head.stop()
    assert not head.temp.exists()
    for name in names:
        (folder,) = (head.home / "workflows").glob(f"{name}-*")
        assert (folder / "report.html").stat().st_size > 10_000
        (training,) = (head.home / "trainings").glob(f"{name}-*")
        assert (training / "best.safetensors").exists()
    assert set(statuses(head.home).values()) == {"FINISHED"}
    assert len(statuses(head.home)) == 2 * len(names)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_job_in_the_checkout_reuses_what_is_finished_and_needs_the_token(head: Head, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    options = [f"source={tmp_path / 'photos'}", *SMALL, "name=submitted"]
    submit(head, "pipeline/run.py", *options)
    again = submit(head, "pipeline/run.py", *options)
    assert "succeeded" in again
    assert "training, evaluation and report reused" in again
    elsewhere = {**head.env, "RAY_ADDRESS": head.address, "RAY_AUTH_TOKEN": "f" * 64}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.preprocess", *options[:1], f"--home={tmp_path / 'other'}", *SMALL],
        cwd=ROOT, env=elsewhere, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "refuses the token in RAY_AUTH_TOKEN: expected the content of ~/.ray/auth_token of the head" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(400)
def test_ray_job_stop_leaves_a_resumable_run_marked_killed(head: Head, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    job = ["--", "python", "pipeline/run.py", "--source", str(tmp_path / "photos"), *SMALL]
    job += ["name=stopped", "train.length=1500 steps", "train.checkpoint_every=50"]
    submit(head, "--no-wait", "--submission-id=first", *job)
    deadline = time.monotonic() + 150
    while not list((head.home / "trainings").glob("stopped-*/checkpoints/*/state.json")):
        assert time.monotonic() < deadline, head.ray("job", "logs", "first").stdout
        time.sleep(0.5)
    assert head.ray("job", "stop", "first").returncode == 0
    assert "was stopped" in head.ray("job", "status", "first").stdout
    assert list(statuses(head.home).values()) == ["KILLED", "KILLED"]
    assert not list((head.home / "trainings").glob("stopped-*/result.json"))
    assert "succeeded" in submit(head, *job)
    assert_left_by(head, ["stopped"])
