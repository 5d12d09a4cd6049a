"""The local stack on which faults happen, the small commands that meet them, and what undisturbed commands produce."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from PIL import Image

from infra.stack import BUCKET, Stack
from pipeline import storage
from tests.commands import Running, start
from tests.conftest import ROOT, SMALL, write_photos

Stage = Literal["preprocess", "train", "grid", "upscale"]

STEPS = 160
CHECKPOINT_EVERY = 20
IMAGES = 16
"""Number of images that are upscaled."""
CORES = 2
"""Cores of the two nodes, which is also the number of shards or images that are made at the same time."""
SHARDS = 12
"""Least number of shards that preprocessing makes."""

_MODULES = {"preprocess": "preprocess", "train": "train", "grid": "tune", "upscale": "upscale"}
_PREPROCESS = [option for option in SMALL if "holdout" not in option and "shard_mb" not in option]
_PREPROCESS += ["preprocess.holdout=0[0-2]", "preprocess.shard_mb=0.5"]
_TRAIN = [
    f"train.length={STEPS} steps",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    "train.validate_every=80",
    "train.log_every=2",
]
_TRAIN += ["cluster.max_failures=8", "cluster.wait_s=120", "tracking.system_metrics=false"]
_GRID = ['tune.grid={"train.loss": {"mse": {"mse": 1}, "l1": {"l1": 1}}}', "name=grid", "cluster.workers=1"]
_GRID += ["cluster.cpus_per_worker=1"]

FASTER = {
    # A node that does not answer is given up after 15 seconds instead of about 30 (a dead one is noticed at once), and
    # a lost head after 10 instead of 60.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # Workers get as much of the processor as the servers and commands, which share it with them.
    "RAY_worker_niceness": "0",
}
"""Settings of Ray that shorten its waiting, so that the whole run takes minutes."""


class ChaosError(AssertionError):
    """Something that a fault must not break is broken."""


def check(condition: object, problem: str) -> None:
    """Raise a ChaosError unless a condition holds."""
    if not condition:
        raise ChaosError(problem)


@dataclass
class Command:
    """A command of the pipeline that is running, or has ended."""

    process: subprocess.Popen[bytes] | Running
    log: Path

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def error(self) -> str:
        """The sentence with which it ended, or its last line."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self.process.poll() is None

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end, and return its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"the command did not end within {seconds:.0f} s: {self.output[-2000:]}") from None

    def succeed(self, seconds: float = 240) -> None:
        """Wait for its end, which has to be a success."""
        code = self.wait(seconds)
        check(code == 0, f"the command ended with code {code}: {self.output[-3000:]}")

    def kill(self) -> None:
        """Kill it with all that it has started."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        self.process.wait()


@dataclass
class Ground:
    """A running stack, the inputs of the commands, and the folder in which everything lies.

    Args:
        folder: empty folder, or that of an earlier run, whose undisturbed results are used again.
    """

    folder: Path
    stack: Stack = field(init=False)
    _commands: list[Command] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _quiet: bool = False
    _undisturbed: dict[Stage, tuple[dict[str, str], str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.steps_folder = self.folder / "steps"
        self.steps_folder.mkdir(exist_ok=True)
        self.disk = self.folder / "disk"
        places = os.pathsep.join([str(ROOT / "tests/chaos/site"), str(ROOT)])
        self.site = {"SR_CHAOS_STEPS": str(self.steps_folder), "PYTHONPATH": places}
        """Environment of processes that tests/chaos/site changes."""
        self.stack = Stack(self.folder / "stack", self.site | FASTER, self._report, cpus=2, lean=True)
        if not (self.folder / "photos").exists():
            write_photos(self.folder / "photos")
            _write_noise(self.folder / "noise", 24, 320)
            _write_noise(self.folder / "small", IMAGES, 72)

    def start(self) -> None:
        """Start what is not running."""
        if self._mount_disk():
            self.stack.second.stop()  # it sees the disks that are mounted when it starts
        self.stack.up()
        self._quiet = True
        os.environ.update(self.stack.exports | FASTER)  # also for what this process does

    def _mount_disk(self) -> bool:
        """Mount a small disk if it is not mounted, and return whether that was necessary and possible."""
        self.disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(self.disk)]
        return not self.disk.is_mount() and subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def _report(self, line: str) -> None:
        if not self._quiet:
            print(line, flush=True)

    def stop(self) -> None:
        """Stop all commands and servers."""
        self.end_commands()
        self.stack.down()
        subprocess.run(["umount", "-l", str(self.disk)], capture_output=True, check=False)

    def end_commands(self) -> None:
        """Kill the commands that are still running."""
        for command in self._commands:
            if command.running():
                command.kill()
        self._commands.clear()
        for file in self.steps_folder.iterdir():
            file.unlink()

    def run(self, stage: Stage, home: str, *more: str, cluster: bool = True, **environment: str) -> Command:
        """Start the command of a stage.

        Args:
            stage: which command.
            home: home of outputs; for `upscale`, the output folder.
            more: further options.
            cluster: False to start a Ray of its own instead of using that of the stack.
            environment: further environment variables.
        """
        module = _MODULES[stage]
        variables = {**os.environ, **FASTER, **self.stack.exports, **environment}
        if not cluster:
            del variables["RAY_ADDRESS"]
        log = self.folder / "logs" / f"{next(self._numbers):03}-{stage}"
        log.parent.mkdir(exist_ok=True)
        log.write_bytes(b"")
        argv = (*self._options(stage, home), *more)
        process = start(module, argv, log, variables) if cluster else _start_anew(module, argv, log, variables)
        command = Command(process, log)
        self._commands.append(command)
        return command

    def home(self, case: str, stage: Stage) -> str:
        """Return a new local home for a case; one that trains gets the patch set that all cases share."""
        home = self.folder / "homes" / case
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        if stage in ("train", "grid"):
            shutil.copytree(self._patch_sets(), home / "patchsets")
        return str(home)

    def url(self, case: str) -> str:
        """Return a new home for a case in the S3 store."""
        return f"s3://{BUCKET}/{case}-{time.time_ns()}"

    def undisturbed(self, stage: Stage) -> tuple[dict[str, str], str]:
        """Run the command of a stage without any fault, once for all cases and for later runs in the same folder.

        Returns:
            A checksum for each file that it made, by its name, and all that it printed.
        """
        kept = self.folder / f"undisturbed-{stage}.json"
        if stage not in self._undisturbed and kept.exists():
            made, printed = json.loads(kept.read_text())
            self._undisturbed[stage] = dict(made), str(printed)
        if stage not in self._undisturbed:
            home = self.home(f"undisturbed-{stage}", stage)
            start = time.monotonic()
            command = self.run(stage, home)
            command.succeed(400)
            print(f"  undisturbed {stage}: {time.monotonic() - start:.0f} s", flush=True)
            self.end_commands()
            self._undisturbed[stage] = results(stage, home), command.output
            kept.write_text(json.dumps(self._undisturbed[stage]))
        return self._undisturbed[stage]

    def _patch_sets(self) -> Path:
        """Make the patch set of the trainings, once for all cases, and return the folder that holds it."""
        home = self.folder / "homes" / "patch-set"
        if not (home / "patchsets").exists():
            options = [f"--source={self.folder / 'photos'}", f"--home={home}", *SMALL]
            done = subprocess.run(
                [sys.executable, "-m", "pipeline.preprocess", *options],
                cwd=ROOT, env={**os.environ, **FASTER, **self.stack.exports}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            check(done.returncode == 0, done.stdout + done.stderr)
        return home / "patchsets"

    def steps(self) -> int:
        """Return the most steps that any worker has finished since the case began."""
        found = []
        for file in self.steps_folder.iterdir():
            with suppress(OSError, ValueError):
                found.append(int(file.read_text()))
        return max(found, default=0)

    def wait_for(self, condition: Callable[[], object], command: Command, what: str, seconds: float = 120) -> None:
        """Wait until a condition holds while a command runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            code = command.process.poll()
            check(code is None, f"the command ended with code {code} before {what}: {command.output[-3000:]}")
            check(time.monotonic() < deadline, f"{what} took over {seconds:.0f} s: {command.output[-3000:]}")
            time.sleep(0.02)

    def _options(self, stage: Stage, home: str) -> list[str]:
        if stage == "upscale":
            return [str(self.folder / "small"), "-o", home]
        if stage == "preprocess":
            return [f"--source={self.folder / 'noise'}", f"--home={home}", *_PREPROCESS]
        options = [f"--source={self.folder / 'photos'}", f"--home={home}", *SMALL, *_TRAIN]
        return options + (_GRID if stage == "grid" else ["cluster.workers=2"])


def _start_anew(module: str, argv: tuple[str, ...], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command that is not forked, because its environment changes what it loads."""
    with log.open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{module}", *argv],
            cwd=ROOT, env=environment, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def progress(ground: Ground, stage: Stage, home: str) -> int:
    """Return how much a command has done: shards, steps or images."""
    if stage in ("train", "grid"):
        return ground.steps()
    if stage == "preprocess":
        return len(_shards(home))
    return len(_files(home, ".png"))


def results(stage: Stage, home: str) -> dict[str, str]:
    """Return a checksum for each file that a finished command has made, by its name."""
    if stage == "preprocess":
        found = _shards(home)
    else:
        found = _files(home, ".png") if stage == "upscale" else _files(f"{home}/trainings", "/model.safetensors")
    return {name: hashlib.sha256(storage.read(url) or b"").hexdigest() for name, url in found.items()}


def finished_files(stage: Stage, home: str) -> dict[str, int]:
    """Return when each finished shard or image last changed, in nanoseconds; empty for other stages and on S3."""
    if storage.is_url(home) or stage in ("train", "grid"):
        return {}
    found = _shards(home) if stage == "preprocess" else _files(home, ".png")
    return {name: Path(url).stat().st_mtime_ns for name, url in found.items()}


def _shards(home: str) -> dict[str, str]:
    files = _files(f"{home}/patchsets", ".parquet")
    return {name: url for name, url in files.items() if re.fullmatch("[^/]+/(train|holdout)-[^/]+", name)}


def _files(url: str, ending: str) -> dict[str, str]:
    fs, root = storage.locate(url)
    if hasattr(fs, "invalidate_cache"):
        fs.invalidate_cache()
    try:
        found = fs.find(root)
    except FileNotFoundError:
        return {}
    base = url[: len(url) - len(root)] if url.endswith(root) else ""
    return {path[len(root) :].lstrip("/"): f"{base}{path}" for path in found if path.endswith(ending)}


def read_json(url: str) -> dict[str, object]:
    """Return the mapping in a JSON file."""
    content = storage.read(url)
    check(content is not None, f"{url} does not exist")
    return dict(json.loads(content or b""))


def _write_noise(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


@contextmanager
def small_disk(ground: Ground, megabytes: int) -> Iterator[Callable[[int], None]]:
    """Empty the ground's disk and give it so many MB; the function that is yielded changes its size.

    Raises:
        Skipped: if this user may not mount a disk.
    """
    if not ground.disk.is_mount():
        raise Skipped("only root may mount a small disk")

    def resize(to: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={to}m", str(ground.disk)], check=True)

    def empty() -> None:
        for path in ground.disk.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    empty()
    resize(megabytes)
    try:
        yield resize
    finally:
        ground.end_commands()
        empty()


class Skipped(Exception):  # noqa: N818
    """This machine cannot cause the fault. The text says why."""
