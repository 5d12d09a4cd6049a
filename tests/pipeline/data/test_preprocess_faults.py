"""Tests that kill a preprocessing run or fill its disk, and then rerun it."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.settings.command_line import parse
from tests.conftest import ROOT, SMALL, random_image
from tests.services import TwoNodes

OPTIONS = [option for option in SMALL if "holdout" not in option and "shard_mb" not in option]
OPTIONS += ["preprocess.holdout=0[0-2]", "preprocess.shard_mb=1", "preprocess.max_reject_share=0.2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write thirty images of noise, which are slow to decode, and a broken one."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(30):
        Image.fromarray(random_image(480, 480, seed=i)).save(folder / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def straight(images: Path, ray_session: None) -> PatchSet:
    """The patch set of a run without faults."""
    return prepare(images, images.parent / "straight")


def prepare(images: Path, home: Path | str) -> PatchSet:
    return preparation.prepare(parse(options(images, home), "preprocess", ""))[0]


def options(images: Path, home: Path | str) -> list[str]:
    return [f"--source={images}", f"--home={home}", *OPTIONS]


def start(images: Path, home: Path | str, *more: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.preprocess", *options(images, home), *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/faults"), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def files(home: Path) -> dict[str, str]:
    """Return the checksums of the existing shards."""
    found = [*home.glob("patchsets/*/train-*.parquet"), *home.glob("patchsets/*/holdout-*.parquet")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def wait_for_shards(home: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(files(home)) < count:
        assert time.monotonic() < deadline, "no shards were written"
        time.sleep(0.005)


def assert_same(made: PatchSet, expected: PatchSet, home: Path) -> None:
    assert made.name == expected.name
    assert made.manifest == expected.manifest
    assert files(home) == {shard.file: shard.sha256 for shard in expected.read_shards()}


@pytest.mark.long
def test_a_rerun_after_a_killed_driver_keeps_finished_shards(images: Path, straight: PatchSet, tmp_path: Path) -> None:
    with start(images, tmp_path) as driver:
        wait_for_shards(tmp_path, 3)
        os.kill(driver.pid, signal.SIGKILL)
    time.sleep(1)
    assert not list(tmp_path.glob("patchsets/*/manifest.json")), "the run ended too early"
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("patchsets/*/*.parquet")}
    made = prepare(images, tmp_path)
    assert_same(made, straight, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_run_survives_a_killed_worker(images: Path, straight: PatchSet, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        wait_for_shards(tmp_path, 2)
        for process in psutil.Process().children(recursive=True):
            if "ray::Map" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    made = prepare(images, tmp_path)
    killer.join()
    assert killed, "no worker was killed, because the run ended too early"
    assert_same(made, straight, tmp_path)


@pytest.mark.long
def test_a_full_disk_gives_one_sentence_and_incomplete_shards_are_rewritten(
    images: Path, straight: PatchSet, tmp_path: Path
) -> None:
    with start(images, f"faulty://{tmp_path}", FAULTY_DISK="8000000") as full:
        _, errors = full.communicate()
    assert full.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "could not be made" in line
    assert "No space left on device" in line
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("patchsets/*/manifest.json"))
    whole = {shard.sha256 for shard in straight.read_shards()}
    halves = {name for name, digest in files(tmp_path).items() if digest not in whole}
    assert halves, "the full disk left no incomplete file"
    made = prepare(images, tmp_path)
    assert_same(made, straight, tmp_path)


@pytest.mark.long
def test_a_lost_permission_gives_one_sentence(images: Path, ray_session: None, tmp_path: Path) -> None:
    with start(images, f"faulty://{tmp_path}", FAULTY_PERMISSION="1") as refused:
        _, errors = refused.communicate()
    assert refused.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "Permission denied" in line
    assert "Traceback" not in errors


@pytest.mark.long
def test_a_limited_file_size_leaves_no_partial_files(images: Path, straight: PatchSet, tmp_path: Path) -> None:
    """The kernel stops workers in the middle of a shard."""
    with start(images, tmp_path, FAULTY_FILE_SIZE="500000") as limited:
        _, errors = limited.communicate()
    assert limited.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "File too large" in line
    assert not files(tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert_same(prepare(images, tmp_path), straight, tmp_path)


@pytest.mark.long
def test_a_run_survives_a_killed_node_and_writes_the_same_bytes(
    images: Path, straight: PatchSet, tmp_path: Path, two_nodes: TwoNodes
) -> None:
    with start(images, tmp_path, f"cluster.address={two_nodes.address}") as driver:
        wait_for_shards(tmp_path, 2)
        two_nodes.kill()
        assert not list(tmp_path.glob("patchsets/*/manifest.json")), "the run ended too early"
        _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    assert_same(prepare(images, tmp_path), straight, tmp_path)
