"""Import records into MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import terminal, tracking
from pipeline.grid import records as written
from pipeline.reporting import comparison, records, registration, results_page
from pipeline.reporting.records import TrainingRecord
from pipeline.reporting.rows import Row
from pipeline.settings import Config, UserError, resolve
from pipeline.settings.environment import sqlite_uri
from pipeline.training import description, driver, runs


def import_records(found: Sequence[TrainingRecord], folder: str, home: str, port: int = 5000) -> None:
    """Show recorded cells as a grid in MLflow, as if they had been trained here; known cells are not imported again.

    Args:
        found: the records.
        folder: path or URL of the records, for their weights.
        home: folder of the outputs, which also gets the MLflow store.
        port: port of MLflow's UI in the printed command.

    Raises:
        UserError: if a record has no weights.
    """
    home = resolve(Config(home=home)).outputs
    store = {"uri": sqlite_uri(f"{home}/mlflow.db")}
    configs = [resolve(records.configuration(record, home=home, tracking=store)) for record in found]
    config = configs[0]
    grid = f"{home}/grids/recorded"
    tracker = tracking.Tracker(config)
    with tracker.run(grid, config.name, {"stage": "grid", "scale": str(config.scale)}) as parent:
        parent.describe({"cells": len(found)}, config)
        rows: list[Row] = []
        with terminal.stage("import", total=len(found), unit="records") as shown:
            for record, cell in zip(found, configs, strict=True):
                trained = _restored(record, folder, f"{home}/trainings/{record.training}")
                if parent.id not in trained.tracked:
                    tags = description.run_tags(cell, str(record.identity["patch_set"]), record.label)
                    tags |= records.provenance(record)
                    driver.track_finished(trained, cell, tags, tracker, parent.id, record.label)
                rows.append(results_page.record_row(record, trained.folder))
                shown.update(len(rows))
        facts = {"recorded": ", ".join(sorted({record.recorded for record in found}))}
        comparison.write(grid, config, rows, facts, parent, tracker)
        registration.send_best(config, rows, parent, tracker)
    print(f"{len(rows)} recorded cells are in {config.tracking_uri}; report: {grid}/report.html")
    print(f"MLflow: {tracking.ui_command(config, port)}", flush=True)


def _restored(record: TrainingRecord, folder: str, home: str) -> runs.Trained:
    """Return the training of a record, restored to its folder `home` if it is not there."""
    trained = runs.open_training(home)
    if not trained and written.restore(folder, record, home):
        trained = runs.open_training(home)
    if not trained:
        raise UserError(f"the record {record.label} has no weights, expected its model.safetensors")
    return trained
