"""One case on the stack: it disturbs a command at random moments and checks what the command leaves in the end."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pipeline import storage
from pipeline.tracking import JournalReader
from tests.chaos.ground import (
    CHECKPOINT_EVERY,
    CORES,
    IMAGES,
    SHARDS,
    STEPS,
    Command,
    Ground,
    Stage,
    check,
    finished_files,
    progress,
    read_json,
    results,
)

_UNITS = {"preprocess": "shards", "train": "steps", "grid": "steps", "upscale": "images"}
_LAST = {"preprocess": SHARDS - 3, "train": STEPS - 40, "grid": STEPS - 40, "upscale": IMAGES - 4}
"""Progress after which a command might end before it is disturbed."""

_PROGRESS = re.compile(r"^\s| in \d+ s| so far|\d+ of \d+|\d/\d")
"""Lines that say how far a command has come, and tables."""


@dataclass(frozen=True)
class Disturbance:
    """A moment at which a command was disturbed."""

    at: float
    """Unix time."""
    done: int
    """Shards, steps or images that were done."""
    acknowledged: int
    """Steps of the newest whole checkpoint of a training; else as `done`."""
    files: dict[str, int]
    """Time of the last change of each shard or image that was there, in nanoseconds, by its path in the home."""


@dataclass
class Scene:
    """A case that is being played.

    Args:
        ground: the stack and the commands.
        stage: the command that is disturbed.
        name: name of the case.
        rng: chooses the moments.
        home: home of outputs; by default a new local folder.
    """

    ground: Ground
    stage: Stage
    name: str
    rng: random.Random
    home: str = ""
    more: tuple[str, ...] = ()
    """Further options of the command."""
    disturbances: list[Disturbance] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    most_lost: int = CHECKPOINT_EVERY
    """Steps of a training that may be made again after a disturbance."""
    lost: list[int] = field(default_factory=list)
    """Steps, shards or images that were made again, for each disturbance; in a grid, for each of its trainings."""
    seen: list[str] = field(default_factory=list)
    """Sentences that told the user about the fault."""

    def __post_init__(self) -> None:
        self.home = self.home or self.ground.home(self.name, self.stage)

    @property
    def unit(self) -> str:
        """Plural of what the command makes."""
        return _UNITS[self.stage]

    def moments(self, count: int = 3) -> list[int]:
        """Draw progress values, one in each equal part of what the command has to do."""
        last = _LAST[self.stage]
        bounds = [round(1 + last * part / count) for part in range(count + 1)]
        drawn = [self.rng.randrange(low, max(high, low + 1)) for low, high in pairwise(bounds)]
        print(f"  at {', '.join(map(str, drawn))} {self.unit}", flush=True)
        return drawn

    def start(self, cluster: bool = True, **environment: str) -> Command:
        """Start the command, or start it again."""
        command = self.ground.run(self.stage, self.home, *self.more, cluster=cluster, **environment)
        self.commands.append(command)
        return command

    def reach(self, moment: int, command: Command) -> None:
        """Wait until the command has done so much, and more than at the last disturbance."""
        if self.disturbances:
            moment = max(moment, self.disturbances[-1].done + 1)
        what = f"{moment} {self.unit}"
        self.ground.wait_for(lambda: progress(self.ground, self.stage, self.home) >= moment, command, what)
        time.sleep(self.rng.random() * 0.3)

    def disturb(self, fault: Callable[[], object]) -> None:
        """Cause a fault, and note how much was done when it happened."""
        acknowledged = self.newest_checkpoint() if self.stage == "train" else 0
        files = finished_files(self.stage, self.home)
        at = time.time()  # before the fault, which may last, because a session may begin meanwhile
        fault()
        done = progress(self.ground, self.stage, self.home) if self._reachable() else self.ground.steps()
        acknowledged = acknowledged if self.stage == "train" else done
        self.disturbances.append(Disturbance(at, done, acknowledged, files))

    def survive(self, fault: Callable[[], object], heal: Callable[[], object] = lambda: None, times: int = 3) -> None:
        """Disturb a command that has to continue by itself to its end."""
        command = self.start()
        for moment in self.moments(times):
            self.reach(moment, command)
            self.disturb(fault)
            heal()
        command.succeed()
        self.check_end()

    def rerun(
        self,
        fault: Callable[[Command], object],
        heal: Callable[[], object] = lambda: None,
        times: int = 3,
    ) -> None:
        """Disturb a command that may end because of it, and run it again each time."""
        command = self.start()
        for moment in self.moments(times):
            self.reach(moment, command)
            running = command
            self.disturb(lambda running=running: fault(running))  # type: ignore[misc]
            command.wait(120)
            heal()
            command = self.start()
        command.succeed()
        self.check_end()

    def check_end(self) -> None:
        """Check the files, the steps that were lost, and what MLflow has."""
        expected, printed = self.ground.undisturbed(self.stage)
        made = results(self.stage, self.home)
        check(made == expected, f"the results differ: {_differences(made, expected)}")
        if self.stage in ("train", "grid"):
            for training in self._trainings():
                self._check_steps(training)
        else:
            self._check_files()
        if self.stage in ("train", "grid"):
            self._check_mlflow()
        known = {_shape(line) for line in printed.splitlines()}
        for command in self.commands:
            lines = [_plain(line) for line in command.output.splitlines() if line.strip()]
            code = command.process.poll()
            new = [line for line in lines if _shape(line) not in known and not _PROGRESS.search(line)]
            self.seen += [command.error] if code == 2 else new[:2]

    def newest_checkpoint(self) -> int:
        """Return the steps of the newest whole checkpoint, 0 if there is none."""
        whole = [0]
        for training in storage.names(f"{self.home}/trainings"):
            folder = f"{self.home}/trainings/{training}/checkpoints"
            whole += [int(n) for n in storage.names(folder) if storage.exists(f"{folder}/{n}/state.json")]
        return max(whole)

    def _reachable(self) -> bool:
        return not storage.is_url(self.home)

    def _check_steps(self, training: str) -> None:
        """Check that a training repeated at most the steps since its newest checkpoint."""
        records = list(JournalReader(f"{training}/journal").new())
        for disturbance in self.disturbances:
            later = [r.step for r in records if r.kind == "session" and r.time > disturbance.at * 1000]
            if not later:  # the training has not noticed the fault, or had not begun
                self.lost.append(0)
                continue
            before = [r.step for r in records if r.time <= disturbance.at * 1000]
            done = disturbance.done if self.stage == "train" else max(before, default=0)
            back = done - later[0]
            if self.stage == "train":
                check(later[0] >= disturbance.acknowledged, f"it resumed from step {later[0]}, before {disturbance}")
            check(back <= self.most_lost, f"{back} steps were lost at {disturbance}, more than {self.most_lost}")
            self.lost.append(max(back, 0))

    def _check_files(self) -> None:
        """Check that files which were finished at a fault were not made again, but for those that were being noted."""
        made = finished_files(self.stage, self.home)
        for disturbance in self.disturbances:
            again = [name for name, changed in disturbance.files.items() if made.get(name) != changed]
            check(len(again) <= CORES, f"{len(again)} finished {self.unit} were made again: {again}")
            self.lost.append(len(again))

    def _check_mlflow(self) -> None:
        import mlflow

        client = mlflow.MlflowClient(self.ground.stack.services.mlflow.url)
        for training in self._trainings():
            runs: Any = read_json(f"{training}/tracking.json")["runs"]
            for run in runs.values():
                status = client.get_run(run).info.status
                check(status == "FINISHED", f"run {run} of MLflow is {status}")
                steps = sorted({metric.step for metric in client.get_metric_history(run, "train/objective")})
                check(steps == list(range(2, STEPS + 1, 2)), f"MLflow lacks records of {training}: it has {steps}")

    def _trainings(self) -> list[str]:
        return [f"{self.home}/trainings/{name}" for name in storage.names(f"{self.home}/trainings")]


def _differences(made: dict[str, str], expected: dict[str, str]) -> str:
    changed = sorted(name for name in made.keys() & expected.keys() if made[name] != expected[name])
    return f"missing {sorted(expected - made.keys())}, more {sorted(made.keys() - expected)}, changed {changed}"


def _plain(line: str) -> str:
    """Return a line without colours; of a long message of Ray, only the first sentence."""
    text = re.sub(r"\x1b\[[\d;]*m", "", line)
    return re.sub(r"(?<=\.) .*", "", text) if text.startswith("(raylet)") else text


def _shape(line: str) -> str:
    """Return a line without what differs from run to run."""
    return re.sub(r"[\d.:/-]+|undisturbed|homes/\S+", "#", line)
