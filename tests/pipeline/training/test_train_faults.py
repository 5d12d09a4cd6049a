"""Training that really loses workers, nodes, room and servers, and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import safetensors.torch
import torch

from pipeline import storage
from pipeline.data import preparation
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training import driver, runs, worker
from pipeline.training.job import LoopResult, TrainJob
from pipeline.training.learner import Learner, StepResult
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker
from tests.conftest import ROOT, SMALL, read_json, write_photos
from tests.recording import hashes
from tests.services import BUCKET, MLflowServer, S3Server, TwoNodes

pytestmark = [pytest.mark.long, pytest.mark.timeout(400), pytest.mark.usefixtures("ray_session")]

LONGER = ["train.length=1500 steps", "train.checkpoint_every=50", "train.validate_every=500", "train.log_every=10"]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    write_photos(tmp_path / "photos")
    return [f"--source={tmp_path / 'photos'}", f"--home={tmp_path / 'home'}", *SMALL, *LONGER, "cluster.workers=2"]


def start(module: str, argv: list[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(driver: subprocess.Popen[str], seconds: float = 200) -> tuple[str, str]:
    out, errors = driver.communicate(timeout=seconds)
    assert driver.returncode == 0, errors
    return out, errors


def folder_of(argv: list[str]) -> Path:
    config = parse(argv, "train", "")
    patch_set, _ = preparation.prepare(config)
    return Path(config.outputs, "trainings", runs.training_name(config, patch_set))


def wait_for(condition: Callable[[], object], driver: subprocess.Popen[str], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            raise AssertionError(f"waited too long: {driver.communicate()}")
        time.sleep(0.1)


def straight(argv: list[str], home: Path) -> runs.Trained:
    """The same training of one worker, undisturbed."""
    config = parse([*argv, "cluster.workers=1", f"home={home}", "tracking.uri="], "train", "")
    patch_set, _ = preparation.prepare(config)
    return driver.train(config, patch_set)


def objectives(trained: runs.Trained) -> dict[int, float]:
    return {r.step: r.metrics["train/objective"] for r in trained.history() if r.kind == "train"}


def trained_of(argv: list[str]) -> tuple[Config, runs.Trained]:
    config = parse(argv, "train", "")
    patch_set, _ = preparation.prepare(config)
    trained = runs.find_training(config, patch_set)
    assert trained is not None
    return config, trained


def test_losing_a_node_and_getting_it_back_changes_no_sample(
    options: list[str], two_nodes: TwoNodes, tmp_path: Path
) -> None:
    elastic = [*options, f"cluster.address={two_nodes.address}", "cluster.min_workers=1", "cluster.resize_s=3"]
    folder = folder_of(elastic)

    def steps(world: int) -> list[int]:
        return sorted({int(f.name[:6]) for f in folder.glob(f"samples/??????-{world}-*")})

    with start("tests.recording", elastic) as driver:
        wait_for(lambda: len(steps(2)) > 80, driver)
        two_nodes.kill()
        wait_for(lambda: len(steps(1)) > 80, driver)
        last_alone = max(steps(1))
        two_nodes.add()
        wait_for(lambda: max(steps(2)) > last_alone + 60, driver)
        (folder / "samples" / "hurry").touch()
        finish(driver)

    config, trained = trained_of(elastic)
    patch_set, _ = preparation.prepare(config)
    worker = Worker(config, patch_set, str(tmp_path / "none"), Ranks(torch.device("cpu")))
    batches = worker.make_reader(micro_batch=6).read(0, 1500)
    expected = [sorted(hashes(batch)) for batch in batches]
    parts: dict[tuple[int, str], dict[str, list[str]]] = {}
    for file in sorted(folder.glob("samples/??????-*")):
        step, world, rank = file.name.split("-")[:3]
        seen = file.read_text().split()
        own = parts.setdefault((int(step), world), {})
        assert own.setdefault(rank, seen) == seen, "a repeated step took other samples"
    whole = {
        step for (step, _), taken in parts.items() if sorted(chain.from_iterable(taken.values())) == expected[step]
    }
    assert whole == set(range(1500))
    sessions = [r.metrics["train/workers"] for r in trained.history() if r.kind == "session"]
    assert [workers for workers, _ in groupby(sessions)] == [2, 1, 2]
    alone = straight(options, tmp_path / "straight")
    assert objectives(trained) == pytest.approx(objectives(alone), rel=0.05)
    assert trained.result.metrics["val/psnr_y"] == pytest.approx(alone.result.metrics["val/psnr_y"], abs=0.1)


def test_a_node_that_is_about_to_be_taken_away_costs_no_step_and_counts_as_no_failure(
    options: list[str], two_nodes: TwoNodes
) -> None:
    elastic = [*options, f"cluster.address={two_nodes.address}", "cluster.min_workers=1", "cluster.resize_s=2"]
    elastic += ["cluster.max_failures=0", "train.checkpoint_every=10000", "train.validate_every=10000"]
    folder = folder_of(elastic)

    def steps(world: int) -> list[int]:
        return sorted({int(f.name[:6]) for f in folder.glob(f"samples/??????-{world}-*")})

    with start("tests.recording", elastic, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1") as driver:
        wait_for(lambda: len(steps(2)) > 40, driver)
        two_nodes.drain()
        wait_for(lambda: len(steps(1)) > 40, driver)
        two_nodes.kill()
        (folder / "samples" / "hurry").touch()
        out, _ = finish(driver)

    assert min(steps(1)) == max(steps(2)) + 1, "a step was repeated or left out"
    assert f"train: resuming from step {min(steps(1))} with 1 workers" in out
    _, trained = trained_of(elastic)
    assert trained.result.steps == 1500
    assert [r.metrics["train/workers"] for r in trained.history() if r.kind == "session"] == [2, 1]


def test_ray_train_knows_the_checkpoints_and_keeps_nothing_that_a_later_session_needs(options: list[str]) -> None:
    for length in (8, 12):
        config = parse([*options, f"train.length={length} steps", "train.checkpoint_every=2"], "train", "")
        patch_set, _ = preparation.prepare(config)
        folder = str(Path(config.outputs, "trainings", "reported"))
        Path(folder, "plan.json").unlink(missing_ok=True)
        Path(folder, "result.json").unlink(missing_ok=True)
        result = driver.make_trainer(config, patch_set, folder).fit()
        assert result.metrics["step"] == length
        assert result.checkpoint.path == f"{folder}/checkpoints/{length:09d}"
        assert "state.json" in os.listdir(result.checkpoint.path)
        assert not Path(folder, "checkpoint_manager_snapshot.json").exists()
    assert len(os.listdir(f"{folder}/checkpoints")) == 2  # those that were reported before are gone


def test_a_worker_that_hangs_is_found_and_training_goes_on(options: list[str]) -> None:
    argv = [*options, "cluster.timeout_s=15"]
    folder = folder_of(argv)
    with start("tests.recording", argv) as driver:
        wait_for(lambda: list(folder.glob("checkpoints/*/state.json")), driver)
        (folder / "samples" / "hurry").touch()
        tree = psutil.Process(driver.pid).children(recursive=True)
        workers = [p for p in tree if "RayTrainWorker" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[0].send_signal(signal.SIGSTOP)
        finish(driver)
    _, trained = trained_of(argv)
    sessions = [r.step for r in trained.history() if r.kind == "session"]
    assert len(sessions) == 2
    assert sessions[1] >= 50


def test_one_worker_without_memory_ends_the_training_with_one_sentence(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker waits for it, and no restart would mend it."""
    config = parse([*options, "train.length=60 steps", "train.checkpoint_every=10"], "train", "")
    patch_set, _ = preparation.prepare(config)

    def train_loop(arguments: dict[str, TrainJob]) -> LoopResult:
        real = Learner.step

        def step(self: Learner, number: int, *more: Any) -> StepResult:
            if self.ranks.rank == 1 and number == 25:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return real(self, number, *more)

        Learner.step = step  # type: ignore[assignment, method-assign]
        return worker.train_loop(arguments)

    monkeypatch.setattr(driver, "train_loop", train_loop)
    with pytest.raises(UserError, match=r"the memory of CPU.* is too small for micro-batches of up to 2 patches of 32"):
        driver.train(config, patch_set)
    folder = Path(config.outputs, "trainings", runs.training_name(config, patch_set))
    assert [record.step for record in runs.read_history(str(folder)) if record.kind == "session"] == [0]
    assert (folder / "checkpoints/000000020/state.json").exists()


def test_a_full_disk_while_checkpointing_leaves_the_checkpoint_before(options: list[str]) -> None:
    """The kernel's limit on the size of files, which the moments of the optimizer are the first to meet."""
    folder = folder_of(options)
    with start("tests.recording", options) as driver:
        wait_for(lambda: list(folder.glob("checkpoints/*/state.json")), driver)
        os.killpg(driver.pid, signal.SIGKILL)
    newest = sorted(folder.glob("checkpoints/*/state.json"))[-1].parent
    largest = max(newest.iterdir(), key=lambda file: file.stat().st_size)
    limit = {"FAULTY_FILE_SIZE": str(largest.stat().st_size - 1), "PYTHONPATH": str(ROOT / "tests/faults")}
    with start("pipeline.train", options, **limit) as driver:
        _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "its checkpoint cannot be written (the earlier ones are whole)" in line
    assert "File too large" in line
    assert "Traceback" not in errors
    assert json.loads((newest / "state.json").read_text())["state"]["step"] == int(newest.name)
    with start("pipeline.train", options) as driver:
        out, _ = finish(driver)
    assert f"resuming from step {int(newest.name)} with 2 workers" in out


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(tmp_path / "s3", BUCKET)
    server.start()
    yield server
    server.stop()


def test_checkpoints_on_s3_outlive_the_stores_death_and_the_drivers(
    options: list[str], s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.env.items():
        monkeypatch.setenv(key, value)
    home = f"s3://{BUCKET}/home"
    argv = [*options, f"home={home}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "train.length=600 steps"]

    def checkpoints() -> list[str]:
        names = storage.names(f"{home}/trainings")
        return storage.names(f"{home}/trainings/{names[0]}/checkpoints") if names else []

    with start("pipeline.train", argv) as driver:
        wait_for(checkpoints, driver)
        os.killpg(driver.pid, signal.SIGKILL)
    with start("pipeline.train", argv) as driver:
        before = checkpoints()
        wait_for(lambda: checkpoints()[-1:] > before[-1:], driver)
        s3.stop()
        time.sleep(5)
        s3.start()
        out, _ = finish(driver)
    assert "resuming from step" in out
    (name,) = storage.names(f"{home}/trainings")
    folder = f"{home}/trainings/{name}"
    whole = [
        n for n in storage.names(f"{folder}/checkpoints") if storage.exists(f"{folder}/checkpoints/{n}/state.json")
    ]
    assert whole == ["000000550", "000000600"]
    mine = safetensors.torch.load(storage.read(f"{folder}/model.safetensors") or b"")
    same = straight([*argv, "cluster.workers=2"], tmp_path / "straight")
    for key, value in safetensors.torch.load_file(same.weights).items():
        torch.testing.assert_close(mine[key], value, atol=5e-3, rtol=0)


def test_with_the_mlflow_server_away_for_a_minute_nothing_is_lost_or_delayed(
    options: list[str], tmp_path: Path
) -> None:
    server = MLflowServer(tmp_path / "mlflow")
    server.start()
    argv = [*options, f"tracking.uri={server.url}"]
    folder = folder_of(argv)

    def steps() -> int:
        return len(list(folder.glob("samples/*-0-*")))

    try:
        with start("tests.recording", argv) as driver:
            wait_for(lambda: steps() > 50, driver)
            server.stop()
            gone, before = time.monotonic(), steps()
            wait_for(lambda: time.monotonic() - gone > 60, driver)
            assert steps() - before > 500, "training waited"
            server.start()
            (folder / "samples" / "hurry").touch()
            _, errors = finish(driver)
        assert "does not answer; the run continues without it" in errors
        run_id = read_json(f"{folder}/tracking.json")["runs"][""]
        client = mlflow.MlflowClient(server.url)
        assert client.get_run(run_id).info.status == "FINISHED"
        history = client.get_metric_history(run_id, "train/objective")
        assert [m.step for m in history] == list(range(10, 1501, 10))
        assert [m.step for m in client.get_metric_history(run_id, "val/psnr_y")] == [0, 500, 1000, 1500]
    finally:
        server.stop()
