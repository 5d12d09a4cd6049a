"""The cells of a grid: which there are, what was trained of each, and their records."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.tune  # after `train`, by which what Ray reads when it is imported is set

from pipeline import tracking
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scores as scores_module
from pipeline.grid import records as written
from pipeline.reporting import records
from pipeline.reporting.records import Recorded
from pipeline.settings import Config, UserError, with_values
from pipeline.storage import fingerprint
from pipeline.training import driver, runs
from pipeline.training.planning import Plan

_DRAWS = ("uniform", "loguniform", "randint", "lograndint", "choice")


@dataclass
class Cell:
    """One training of the grid, and how far it is."""

    label: str
    """Short and telling, such as "nobn·perceptual"."""
    config: Config
    patch_set: PatchSet | None = None
    plan: Plan | None = None
    """What a few measured steps told."""
    state: str = "waiting"
    """waiting, training, finished, stopped (by the scheduler), failed or left out."""
    reason: str = ""
    """Why it failed or was left out."""
    recorded: Recorded | None = None
    """The record of its training, where that was made elsewhere."""
    kept: bool = False
    """Whether its record was written here."""
    step: int = 0
    total: int = 0
    loss: float | None = None
    psnr: float | None = None
    steps_per_s: float | None = None


def plan_cells(config: Config) -> list[Cell]:
    """Every combination of the grid's axes, with its draws.

    Raises:
        UserError: for an axis that isn't a setting, or a value that it doesn't take.
    """
    settings = config.tune
    axes = []
    plain: dict[str, Any] = {"tune": {"grid": {}, "records": settings.records, "note": settings.note}}
    for key, values in settings.grid.items():
        named = values.items() if isinstance(values, dict) else [(_label(key, value), value) for value in values]
        axes.append([(key, label, value) for label, value in named])
        if not axes[-1]:
            raise UserError(f"tune.grid.{key} is empty, expected at least one value")
    cells = []
    rng = np.random.RandomState(config.train.seed)
    for point in itertools.product(*axes):
        labels: set[str] = set()
        for _ in range(settings.samples if settings.sample else 1):
            drawn = [(key, _draw(key, domain, rng)) for key, domain in settings.sample.items()]
            values = {**{key: value for key, _, value in point}, **dict(drawn), **plain}
            label = "·".join([*(label for _, label, _ in point), *(_label(key, value) for key, value in drawn)])
            if label not in labels:  # a value may be drawn twice
                cells.append(Cell(label or config.name, with_values(config, values)))
            labels.add(label)
    cells += [Cell(label, with_values(config, {**values, **plain})) for label, values in settings.also.items()]
    names = [records.folder_name(cell.label) for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"several cells would be called {', '.join(twice)}: expected different values, or names for them such as "
            'tune.grid={"train.loss": {"NAME": {"mse": 1.0}}}, that differ in letters or digits'
        )
    return cells


def grid_name(config: Config, cells: Sequence[Cell]) -> str:
    """Name of a grid by all that shapes its cells."""
    shaping = [(cell.label, runs.shaping(cell.config, cell.patch_set.name)) for cell in cells if cell.patch_set]
    repeated = [label for label, values in shaping if [values for _, values in shaping].count(values) > 1]
    if repeated:
        raise UserError(f"the cells {', '.join(repeated)} are the same training: expected axes that shape its weights")
    return f"{config.name}-{fingerprint(shaping)}"


def folder_of(cell: Cell) -> str:
    """Path or URL of the cell's training."""
    assert cell.patch_set
    name = cell.recorded["training"] if cell.recorded else runs.training_name(cell.config, cell.patch_set)
    return f"{cell.config.outputs}/trainings/{name}"


def trained_of(cell: Cell) -> runs.Trained | None:
    """The cell's training, if it is finished."""
    if cell.patch_set is None or cell.state == "left out":
        return None
    return runs.find_at(folder_of(cell))


def is_untold(cell: Cell, parent: str) -> bool:
    """Whether the cell was trained, but MLflow doesn't have it below this grid."""
    trained = trained_of(cell)
    return trained is not None and parent not in trained.tracked


def take_record(cell: Cell, config: Config) -> None:
    """Take a finished training from its record, if there is one.

    Raises:
        UserError: if a record of another training stands where the cell's own would be put.
    """
    folder = config.tune.records
    if not folder or cell.patch_set is None or cell.config.train.length.endswith("minutes"):
        return
    recorded = records.find(folder, cell.label)
    if recorded is None:
        return
    if not runs.is_same(recorded["identity"], records.configuration(recorded), cell.config, cell.patch_set.name):
        if folder == config.new_records:
            raise written.conflict(folder, cell.label)
        return
    home = f"{config.outputs}/trainings/{recorded['training']}"
    if not runs.find_at(home):
        if not written.restore(folder, recorded, home):
            return
        print(f"cell {cell.label} taken from {folder}/{records.folder_name(cell.label)}", flush=True)
    cell.recorded = recorded
    cell.state = "finished"
    cell.step = cell.total = recorded["result"]["steps"]


def track_recorded(cells: Sequence[Cell], tracker: tracking.Tracker, parent: str) -> None:
    """Tell MLflow of the cells whose training was made elsewhere."""
    for cell in cells:
        trained = trained_of(cell)
        if cell.recorded and trained and cell.patch_set and parent not in trained.tracked:
            tags = driver.tags(cell.config, cell.patch_set.name, cell.label) | records.provenance(cell.recorded)
            driver.track(trained, cell.config, tags, tracker, parent, cell.label)


def keep(cell: Cell, folder: str | None, scores: scores_module.Scores | None = None) -> None:
    """Record a finished cell, or complete its record."""
    if not folder or cell.state != "finished" or (cell.kept and not scores):
        return
    try:
        trained = trained_of(cell)
        if trained and cell.patch_set:
            facts = cell.recorded or _facts(trained, cell.config, cell.patch_set)
            written.keep(folder, cell.label, cell.config, facts, trained.weights, scores)
    except (UserError, OSError) as error:  # the others' trainings go on
        print(f"cell {cell.label} cannot be recorded: {error}", file=sys.stderr, flush=True)
    cell.kept = True


def _facts(trained: runs.Trained, config: Config, patch_set: PatchSet) -> Recorded:
    return {
        "training": trained.name,
        "identity": runs.identity(config, patch_set.name),
        "patch_set": {
            "images": sum(image.tiles > 0 for image in patch_set.images),
            "held_out": len(patch_set.holdout_names),
            "tiles": sum(patch_set.row_groups),
        },
        "result": trained.result,
        "seconds": trained.seconds,
        "history": trained.history(),
    }


def _label(key: str, value: Any) -> str:
    if key == "model.batch_norm":
        return "bn" if value else "nobn"
    if isinstance(value, dict):
        return "+".join(value)
    return f"{key.rpartition('.')[2]}={value:.6g}" if isinstance(value, float) else f"{key.rpartition('.')[2]}={value}"


def _draw(key: str, domain: dict[str, list[Any]], rng: np.random.RandomState) -> Any:
    """One value of a distribution of Ray Tune's."""
    ((kind, arguments),) = domain.items() if len(domain) == 1 else [("", [])]
    if kind not in _DRAWS:
        raise UserError(f"tune.sample.{key} is {domain}, expected one of {', '.join(_DRAWS)} with its arguments")
    try:
        drawn = getattr(ray.tune, kind)(*([arguments] if kind == "choice" else arguments)).sample(random_state=rng)
    except (TypeError, ValueError) as error:
        raise UserError(f"tune.sample.{key} is {domain}: {error}") from None
    return drawn.item() if isinstance(drawn, np.generic) else drawn
