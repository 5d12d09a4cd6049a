"""The cells of a grid: the description of each, its outcome, its training and its record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pipeline import storage, tracking
from pipeline.data.patchset import PatchSet
from pipeline.evaluation.scores import Scores
from pipeline.grid import records as record_files
from pipeline.reporting import records
from pipeline.reporting.records import TrainingRecord
from pipeline.settings import Config, UserError
from pipeline.training import description, driver, runs


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    label: str
    """Short name made of its values, such as "nobn·perceptual". Labels are distinct within a grid."""
    config: Config
    patch_set: PatchSet
    record: TrainingRecord | None = None
    """The record that the finished training was restored from; None if the training is made here."""

    @property
    def has_time_limit(self) -> bool:
        """True if the length of the training is a time, so that its steps are only known after measuring."""
        return self.config.train.length.endswith("minutes")


class State(StrEnum):
    """The state of a cell's training."""

    WAITING = "waiting"
    TRAINING = "training"
    FINISHED = "finished"
    STOPPED = "stopped"
    """The scheduler ended the training early."""
    FAILED = "failed"
    LEFT_OUT = "left out"
    """The training cannot start, because a file that it needs is missing."""


@dataclass
class Pace:
    """Measurements of a trial's speed in this session; times are in seconds of the monotonic clock."""

    started: float | None = None
    """When Ray Tune started the trial."""
    first: tuple[float, int] | None = None
    """Time and step of the first report."""
    last: tuple[float, int] | None = None
    """Time and step of the last report."""


@dataclass
class Outcome:
    """The progress and the result of a cell. Only the main thread changes it."""

    state: State = State.WAITING
    reason: str = ""
    """Why the cell failed or was left out."""
    step: int = 0
    """Number of finished optimizer steps."""
    total: int = 0
    """Number of optimizer steps of the whole training; 0 if unknown."""
    loss: float | None = None
    psnr: float | None = None
    """PSNR (Y) of the last validation on held-out images, in dB."""
    remark: str = ""
    """The last sentence that the method of training said about it; "" for none."""
    step_s: float | None = None
    """Seconds of a step as the plan measured them, without validation."""
    pace: Pace = field(default_factory=Pace, compare=False)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step between the first report and the last one, validations included; before, as planned."""
        first, last = self.pace.first, self.pace.last
        if first and last and last[1] > first[1]:
            return (last[0] - first[0]) / (last[1] - first[1])
        return self.step_s

    @property
    def can_train(self) -> bool:
        """False if the cell failed or was left out."""
        return self.state not in (State.FAILED, State.LEFT_OUT)

    def fail(self, reason: str, state: State = State.FAILED) -> None:
        """Set the state and the reason of a cell without a result."""
        self.state, self.reason = state, reason


Outcomes = dict[str, Outcome]
"""Outcomes by the label of the cell."""


def name_grid(config: Config, cells: Sequence[Cell]) -> str:
    """Return a name that depends on everything that shapes the weights of the cells.

    Raises:
        UserError: if two cells describe the same training.
    """
    shaping = [(cell.label, runs.shaping_settings(cell.config, cell.patch_set.name)) for cell in cells]
    settings = [values for _, values in shaping]
    repeated = [label for label, values in shaping if settings.count(values) > 1]
    if repeated:
        raise UserError(f"the cells {', '.join(repeated)} are the same training: expected axes that shape its weights")
    return f"{config.name}-{storage.fingerprint(shaping)}"


def training_folder(cell: Cell) -> str:
    """Return the path or URL of the cell's training, finished or not.

    Raises:
        UserError: if a file that shapes the weights does not exist.
    """
    if cell.record:
        return f"{cell.config.outputs}/trainings/{cell.record.training}"
    return runs.training_folder(cell.config, cell.patch_set)


def finished_training(cell: Cell) -> runs.Trained | None:
    """Return the cell's finished training, or None if it is not finished.

    Raises:
        UserError: if a file that shapes the weights does not exist.
    """
    return runs.open_training(training_folder(cell))


def lacks_mlflow_run(cell: Cell, parent: str) -> bool:
    """Tell whether the cell's training is finished, but MLflow does not have all of it below this parent run."""
    trained = finished_training(cell)
    return trained is not None and parent not in trained.tracked


def restore_from_record(cell: Cell, config: Config) -> Cell:
    """Restore the cell's training from its record in `tune.records`, if there is one.

    From the record of a part, the cell gets the state from which its training resumes.

    Args:
        cell: the cell.
        config: settings of the grid.

    Returns:
        The cell with its record, or unchanged if there is no record of the same training.

    Raises:
        UserError: if the record of another training is in the place of the cell's own.
    """
    folder = config.tune.records
    if not folder or cell.has_time_limit:
        return cell
    record = records.read(folder, cell.label)
    if record is None:
        return cell
    known = records.configuration(record)
    if record.planned_steps is not None:
        done = record.result.steps
        if runs.continues(record.identity, known, done, cell.config, cell.patch_set.name):
            same = runs.describes_same(record.identity, known, cell.config, cell.patch_set.name)
            _go_on(cell, folder, record, grows=not same)
            return cell
    if record.planned_steps or not runs.describes_same(record.identity, known, cell.config, cell.patch_set.name):
        if folder == config.new_records:
            raise record_files.conflict(folder, cell.label)
        return cell
    restored = replace(cell, record=record)
    home = training_folder(restored)
    if not runs.open_training(home):
        if not record_files.restore(folder, record, home):
            return cell
        print(f"cell {cell.label} taken from {folder}/{records.folder_name(cell.label)}", flush=True)
    return restored


def _go_on(cell: Cell, folder: str, record: TrainingRecord, grows: bool) -> None:
    """Bring the state of a part's record into the training of a cell."""
    try:
        home = training_folder(cell)
    except UserError:  # weights that the objective needs are missing, so the cell will be left out
        return
    step = record_files.go_on(folder, record, home, grows)
    if step is not None:
        place = f"{folder}/{records.folder_name(cell.label)}"
        print(f"cell {cell.label} resumes from step {step} of the record {place}", flush=True)


def save_record(cell: Cell, folder: str | None, scores: Scores | None = None) -> None:
    """Save the record of a finished cell, or add scores to it. A failure is reported but does not stop the grid.

    Args:
        cell: a finished cell.
        folder: path or URL of all records; None to save nothing.
        scores: scores of the cell, if they were measured.
    """
    if not folder:
        return
    try:
        trained = finished_training(cell)
        if trained:
            record = cell.record or record_files.new_record(cell.label, cell.config, cell.patch_set, trained)
            record_files.save(folder, record, trained.weights, scores)
    except (UserError, OSError) as error:
        print(f"cell {cell.label} cannot be recorded: {error}", file=sys.stderr, flush=True)


def track_restored(cells: Sequence[Cell], tracker: tracking.Tracker, parent: str) -> None:
    """Create MLflow runs for the trainings that were restored from records, unless MLflow has them.

    Args:
        cells: all cells of the grid.
        tracker: the MLflow store.
        parent: id of the grid's MLflow run.
    """
    for cell in cells:
        if cell.record and lacks_mlflow_run(cell, parent):
            trained = finished_training(cell)
            assert trained
            tags = description.run_tags(cell.config, cell.patch_set.name, cell.label) | records.provenance(cell.record)
            driver.track_finished(trained, cell.config, tags, tracker, parent, cell.label)
