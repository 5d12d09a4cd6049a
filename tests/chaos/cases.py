"""The cases: each pairs a fault with a command and says how the command has to end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.faults import (
    cut_off,
    find_worker,
    kill_part,
    kill_postgres,
    pause,
    slow_network,
)
from tests.chaos.ground import Stage, check, small_disk
from tests.chaos.scene import Scene

_BY_ITSELF = "The command continues by itself."
_CATCHES_UP = "Training continues. Rerun the command to send MLflow the missing records."
_RERUN = "Rerun the same command to resume."
_REFUSED = "The second command is refused."


@dataclass(frozen=True)
class Case:
    """A fault that meets a command."""

    name: str
    stage: Stage
    fault: str
    """The event, as a cell of a table."""
    outcome: str
    """The sentence that the table shows about the result."""
    play: Callable[[Scene], None]


def _worker(scene: Scene) -> None:
    scene.survive(lambda: find_worker(scene.ground.stack, scene.stage, scene.rng).kill())


def _raylet(scene: Scene) -> None:
    stack = scene.ground.stack
    scene.survive(lambda: kill_part(stack.second, "raylet"), stack.up)


def _node(scene: Scene) -> None:
    stack = scene.ground.stack
    scene.survive(stack.second.stop, stack.up)


def _head(scene: Scene) -> None:
    stack = scene.ground.stack
    scene.rerun(lambda command: kill_part(stack.head, "gcs_server"), stack.up)


def _driver(scene: Scene) -> None:
    scene.rerun(lambda command: command.process.kill())


def _mlflow(scene: Scene) -> None:
    server = scene.ground.stack.services.mlflow
    _without_tracking(scene, server.stop, server.launch)


def _postgres(scene: Scene) -> None:
    stack = scene.ground.stack
    _without_tracking(scene, lambda: kill_postgres(stack), lambda: _later(scene, stack.services.start))


def _without_tracking(scene: Scene, fault: Callable[[], None], heal: Callable[[], None]) -> None:
    """Disturb the tracking; if the command ended while MLflow was away, the next one sends the rest."""
    command = scene.start()
    for moment in scene.moments():
        scene.reach(moment, command)
        scene.disturb(fault)
        heal()
    command.succeed()
    scene.ground.start()
    scene.start().succeed()
    scene.check_end()


def _s3(scene: Scene) -> None:
    services = scene.ground.stack.services
    scene.home = scene.ground.url(scene.name)
    scene.survive(services.s3.stop, lambda: _later(scene, services.start))


def _later(scene: Scene, start: Callable[[], None]) -> None:
    """Leave a server away for up to three seconds, and start it again."""
    time.sleep(3 * scene.rng.random())
    start()


def _full_disk(free_mb: float) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        with small_disk(scene.ground, 64) as resize:
            _fill(scene.ground.disk, scene, free_mb)
            command = scene.start()
            code = command.wait()
            check(code in (1, 2), f"the command ended with code {code} on a full disk: {command.output[-2000:]}")
            check("Traceback" not in command.output, f"a traceback on a full disk: {command.output[-3000:]}")
            check("No space left on device" in command.output, f"nothing says that the disk is full: {command.output}")
            scene.disturb(lambda: None)
            scene.most_lost += 10  # a checkpoint is written beside the next steps, so its failure is noticed later
            resize(512)
            scene.start().succeed()
            scene.check_end()

    return play


def _fill(home: Path, scene: Scene, free_mb: float) -> None:
    """Copy what the stage needs to the small disk, and leave so many MB free."""
    patch_sets = Path(scene.home, "patchsets")
    if patch_sets.exists():
        shutil.copytree(patch_sets, home / "patchsets")
    scene.home = str(home)
    free = shutil.disk_usage(home).free - round(free_mb * 2**20)
    with (home / "filling").open("wb") as sink:
        sink.write(bytes(max(free, 0)))


def _cut(seconds: float) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        stack = scene.ground.stack

        def fault() -> None:
            with cut_off(stack):
                time.sleep(seconds)

        scene.survive(fault, lambda: _return(scene), times=1)

    return play


def _return(scene: Scene) -> None:
    """Start the second node again if it ended, as a node does that the head has given up."""
    stack, deadline = scene.ground.stack, time.monotonic() + 15
    while stack.second.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    stack.up()


def _slow(scene: Scene) -> None:
    with slow_network(scene.ground.stack) as how:
        print(f"  {how}", flush=True)
        scene.start().succeed()
    scene.check_end()


def _pause_worker(scene: Scene) -> None:
    stack = scene.ground.stack
    scene.survive(lambda: pause(find_worker(stack, scene.stage, scene.rng), 60), times=1)


def _pause_driver(scene: Scene) -> None:
    command = scene.start()
    (moment,) = scene.moments(1)
    scene.reach(moment, command)
    scene.disturb(lambda: pause(psutil.Process(command.process.pid), 60))
    command.succeed()
    scene.check_end()


def _clock(scene: Scene) -> None:
    file = scene.ground.folder / "clock"
    file.write_text("0")
    command = scene.start(cluster=False, SR_CHAOS_CLOCK=str(file), **scene.ground.site)
    for moment, jump in zip(scene.moments(2), ("3600", "-3600"), strict=True):
        scene.reach(moment, command)
        scene.disturb(lambda jump=jump: file.write_text(jump))  # type: ignore[misc]
    command.succeed()
    scene.disturbances.clear()  # the times in the journal are those of the moved clock
    scene.check_end()


def _twice(scene: Scene) -> None:
    first = scene.start()
    scene.reach(1, first)
    second = scene.start()
    check(second.wait() == 2, f"the second command was not refused: {second.output[-2000:]}")
    check("is in use by" in second.error, f"the second command ended with: {second.error}")
    first.succeed()
    scene.check_end()


def _twice_on_s3(scene: Scene) -> None:
    scene.home = scene.ground.url(scene.name)
    _twice(scene)


def _together(scene: Scene) -> None:
    """Start two commands at the same moment; neither knows of the other."""
    commands = [scene.start(), scene.start()]
    codes = sorted(command.wait() for command in commands)
    check(codes == [0, 2], f"the commands ended with codes {codes}: {[c.output[-1500:] for c in commands]}")
    scene.check_end()


def _both(scene: Scene) -> None:
    """Start two commands that may write to the same folder."""
    commands = [scene.start(), scene.start()]
    for command in commands:
        command.succeed()
    scene.check_end()


CASES = [
    Case("preprocess-worker", "preprocess", "a worker process is killed", _BY_ITSELF, _worker),
    Case("preprocess-node", "preprocess", "the second node is killed", _BY_ITSELF, _node),
    Case("preprocess-gcs", "preprocess", "the head's GCS is killed", _RERUN, _head),
    Case("preprocess-driver", "preprocess", "the command is killed", _RERUN, _driver),
    Case("preprocess-s3", "preprocess", "the S3 store with the home is killed", _BY_ITSELF, _s3),
    Case("preprocess-disk", "preprocess", "the disk is full", _RERUN, _full_disk(2)),
    Case("preprocess-twice", "preprocess", "the same command starts twice", _REFUSED, _together),
    Case("train-worker", "train", "a training worker is killed", _BY_ITSELF, _worker),
    Case("train-raylet", "train", "the raylet of the second node is killed", _BY_ITSELF, _raylet),
    Case("train-node", "train", "the second node is killed", _BY_ITSELF, _node),
    Case("train-gcs", "train", "the head's GCS is killed", _RERUN, _head),
    Case("train-driver", "train", "the command is killed", _RERUN, _driver),
    Case("train-mlflow", "train", "the MLflow server is killed", _CATCHES_UP, _mlflow),
    Case("train-postgres", "train", "PostgreSQL is killed", _CATCHES_UP, _postgres),
    Case("train-s3", "train", "the S3 store with the home is killed", _BY_ITSELF, _s3),
    Case("train-disk", "train", "the disk is full", _RERUN, _full_disk(0.4)),
    Case("train-cut", "train", "the second node is cut off for 40 seconds", _BY_ITSELF, _cut(40)),
    Case("train-blink", "train", "the second node is cut off for a second", _BY_ITSELF, _cut(1)),
    Case("train-slow", "train", "the network between the nodes is slow", _BY_ITSELF, _slow),
    Case("train-pause", "train", "a training worker stops for a minute (SIGSTOP)", _BY_ITSELF, _pause_worker),
    Case("train-frozen", "train", "the command stops for a minute (SIGSTOP)", _BY_ITSELF, _pause_driver),
    Case("train-clock", "train", "the wall clock of Python jumps an hour ahead and two back", _BY_ITSELF, _clock),
    Case("train-twice", "train", "the same command starts again", _REFUSED, _twice),
    Case("train-twice-s3", "train", "the same command starts again, with a home on S3", _REFUSED, _twice_on_s3),
    Case("grid-worker", "grid", "a training worker is killed", _BY_ITSELF, _worker),
    Case("grid-node", "grid", "the second node is killed", _BY_ITSELF, _node),
    Case("grid-gcs", "grid", "the head's GCS is killed", _RERUN, _head),
    Case("grid-driver", "grid", "the command is killed", _RERUN, _driver),
    Case("grid-mlflow", "grid", "the MLflow server is killed", _CATCHES_UP, _mlflow),
    Case("grid-twice", "grid", "the same command starts again", _REFUSED, _twice),
    Case("upscale-worker", "upscale", "a worker process is killed", _BY_ITSELF, _worker),
    Case("upscale-node", "upscale", "the second node is killed", _BY_ITSELF, _node),
    Case("upscale-gcs", "upscale", "the head's GCS is killed", _RERUN, _head),
    Case("upscale-driver", "upscale", "the command is killed", _RERUN, _driver),
    Case("upscale-s3", "upscale", "the S3 store with the results is killed", _BY_ITSELF, _s3),
    Case("upscale-disk", "upscale", "the disk is full", _RERUN, _full_disk(1)),
    Case("upscale-twice", "upscale", "the same command starts twice", "Both commands end with complete files.", _both),
]
"""In the order of the whole run."""
