"""Runs in MLflow. Only this module and those for models and artifacts import MLflow.

Workers write journals to the storage of the outputs. One process on the driver's node forwards them to MLflow, and what
MLflow cannot take stays in the journal. So training never waits for the server and never fails with it, and rerunning
the command makes up for an outage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import terminal
from pipeline.settings import Config, UserError
from pipeline.storage import one_line, redact
from pipeline.tracking.contact import RefusedError, contact, deleted_error, sqlite_file
from pipeline.tracking.journal import JournalRecord
from pipeline.tracking.logged_models import TrainedModel, find_model_id, send_model
from pipeline.tracking.notes import read_run_note, write_run_note
from pipeline.tracking.provenance import code_hash, commit, has_ended, user_name

_PROCESS_TAG = "sr.process"
"""Tag with the host and process id of the process that writes a run."""

_DESCRIPTION = (
    "Trainings of super-resolution networks. The run of a workflow or grid has its trainings below it. A training's "
    "images are under Model metrics, bicubic_sr_hr: bicubic, network and truth at each validation; click one to "
    "enlarge it. `val/psnr_y` is the PSNR of the held-out images in dB. The artifact config.yaml has all settings."
)

MOST_METRICS = 1000
"""Number of metrics that MLflow takes in one request."""

_SHOWN_WIDTH = 960
"""Width in pixels to which small images are enlarged, so that MLflow's preview shows single pixels."""


class Tracker:
    """Access to the runs of one MLflow experiment, which is created if it does not exist.

    Args:
        config: names the tracking server or database and the experiment.

    Raises:
        UserError: if MLflow cannot be used. Only this first contact must succeed.
    """

    def __init__(self, config: Config) -> None:
        refused: UserError | None = None
        try:
            contact(config)
        except RefusedError as error:  # MLflow itself may know a user from a file or a plug-in
            refused = error
        with terminal.stage("", "opening MLflow"), without_info_logs():
            import mlflow  # imported here because it takes seconds, and a command that reuses everything needs none
            from mlflow.exceptions import MlflowException

            self.failures: tuple[type[Exception], ...] = (MlflowException, OSError)
            self.uri = config.tracking_uri
            self._place = f"MLflow at {redact(self.uri)}"
            self._home = config.outputs
            self._warned = False
            try:
                if file := sqlite_file(self.uri):
                    file.parent.mkdir(parents=True, exist_ok=True)
                self._client = mlflow.MlflowClient(self.uri)
                self.experiment_id = self._find_or_create_experiment(config)
            except UserError:
                raise
            except Exception as error:  # from SQLAlchemy, requests or MLflow, depending on the store
                raise refused or UserError(
                    f"{self._place} cannot be used: {one_line(error, 300)}; expected a running server or a database"
                ) from None
        self._end_abandoned_runs()

    def _find_or_create_experiment(self, config: Config) -> str:
        name = config.tracking.experiment
        # The first tag makes MLflow's UI before 3.17 open its pages for training rather than those for GenAI.
        tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": _DESCRIPTION}
        found = self._client.get_experiment_by_name(name)
        if found is None:
            artifacts = None
            if self.uri.startswith("sqlite"):
                artifacts = f"{config.outputs}/mlartifacts"
                artifacts = artifacts if "://" in artifacts else Path(artifacts).as_uri()
            return str(self._client.create_experiment(name, artifact_location=artifacts, tags=tags))
        if found.lifecycle_stage != "active":
            raise deleted_error(config, str(found.experiment_id))
        with contextlib.suppress(*self.failures):  # such as for a user who may add runs but not change the experiment
            for key in tags.keys() - found.tags.keys():
                self._client.set_experiment_tag(found.experiment_id, key, tags[key])
        return str(found.experiment_id)

    @contextlib.contextmanager
    def run(self, folder: str, name: str, tags: dict[str, str], parent: str = "") -> Iterator[TrackedRun]:
        """Resume the MLflow run of a folder, or create it, and end it with the block.

        A note in the folder holds the run's id, so that work which is resumed continues the same run. A folder has a
        separate run below each parent run; the first parent takes over a run without a parent.

        The run ends as FINISHED, as KILLED if the block is interrupted, or as FAILED. Runs below it that are still
        running are marked as KILLED.

        Args:
            folder: path or URL of the folder whose work the run tracks.
            name: name of a new run.
            tags: tags to set.
            parent: id of the parent run, or "" for none.

        Raises:
            UserError: if MLflow does not create the run.
        """
        run = self._resume_or_create(folder, name, tags, parent)
        try:
            with terminal.logged_as(run.id):
                yield run
        except (KeyboardInterrupt, SystemExit):
            self._end_with_children(run, "KILLED")
            raise
        except BaseException:
            self._end_with_children(run, "FAILED")
            raise
        self._end_with_children(run, "FINISHED")

    def find_run(self, folder: str, parent: str = "") -> TrackedRun | None:
        """Return the run that tracks a folder below a parent run on this server, or None if there is none."""
        run_id = read_run_note(folder, self.uri).runs.get(parent)
        return TrackedRun(self, run_id, new=False) if run_id else None

    def call(self, request: Callable[[Any], Any]) -> bool:
        """Make a request with the MLflow client, and report an outage once.

        Args:
            request: called with the client.

        Returns:
            False if the request failed and may be repeated later. True if it succeeded, or if MLflow rejects it for
            good; a rejection is reported.
        """
        try:
            request(self._client)
        except Exception as error:  # from MLflow, or from the client of a database or an object store
            reason = one_line(error, 200)
            if _is_refusal(error):
                print(f"{self._place} rejects a record, which is skipped ({reason})", file=sys.stderr)
                return True
            if not self._warned:
                print(f"{self._place} does not answer; the run continues without it ({reason})", file=sys.stderr)
            self._warned = True
            return False
        if self._warned:
            print(f"{self._place} answers again", file=sys.stderr)
        self._warned = False
        return True

    def _end_with_children(self, run: TrackedRun, status: str) -> None:
        with contextlib.suppress(*self.failures):
            running = f"tags.`mlflow.parentRunId` = '{run.id}' and attributes.status = 'RUNNING'"
            for child in self._client.search_runs([self.experiment_id], running):
                self._client.set_terminated(child.info.run_id, "KILLED")
        run.end(status)

    def _resume_or_create(self, folder: str, name: str, tags: dict[str, str], parent: str) -> TrackedRun:
        note = read_run_note(folder, self.uri)
        below = {"mlflow.parentRunId": parent} if parent else {}
        tags = {**tags, _PROCESS_TAG: f"{platform.node()}:{os.getpid()}", **below}
        tags = {key: redact(value) for key, value in tags.items()}
        run_id = note.runs.get(parent) or note.runs.get("")
        others = {key: value for key, value in note.runs.items() if value != run_id}
        if run_id:
            with contextlib.suppress(*self.failures):  # the run was deleted: create another
                self._client.update_run(run_id, status="RUNNING")
                for key, value in tags.items():
                    self._client.set_tag(run_id, key, value)
                write_run_note(folder, replace(note, runs={**others, parent: run_id}))
                return TrackedRun(self, run_id, new=False)
        source = {"mlflow.source.name": "pipeline", "mlflow.user": user_name(), "sr.code": code_hash()}
        source |= {"mlflow.source.git.commit": code} if (code := commit()) else {}
        try:
            created = self._client.create_run(self.experiment_id, run_name=redact(name), tags={**source, **tags})
        except self.failures as error:
            raise UserError(f"{self._place} does not create a run: {one_line(error, 300)}; rerun the command") from None
        run_id = str(created.info.run_id)
        if tags.get("stage") != "evaluate":  # such a run has no settings that name its models
            again = self._rerun_command("tune" if tags.get("stage") == "grid" else "run", run_id)
            note_text = f"To rerun it:\n\n```\n{again}\n```"
            self.call(lambda client: client.set_tag(run_id, "mlflow.note.content", note_text))
        write_run_note(folder, replace(note, runs={**others, parent: run_id}))
        return TrackedRun(self, run_id, new=True)

    def _rerun_command(self, module: str, run_id: str) -> str:
        """Return the command that reproduces a run from any folder."""
        places = ["--home", redact(self._home), "--tracking.uri", redact(self.uri)]
        return shlex.join(["python", "-m", f"pipeline.{module}", "--from-run", run_id, *places])

    def _end_abandoned_runs(self) -> None:
        """Mark runs as KILLED if a process of this machine left them running and is gone."""
        with contextlib.suppress(*self.failures):
            for run in self._client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"):
                host, _, process = run.data.tags.get(_PROCESS_TAG, "").rpartition(":")
                if host == platform.node() and has_ended(process):
                    self._client.set_terminated(run.info.run_id, "KILLED")


class TrackedRun:
    """One MLflow run.

    Args:
        tracker: the connection to MLflow.
        run_id: the run's id.
        new: true if this process created the run.
    """

    def __init__(self, tracker: Tracker, run_id: str, new: bool) -> None:
        self._tracker = tracker
        self.id = run_id
        self.new = new
        """True if this process created the run."""
        self.ended = False
        """True if MLflow has received the final status."""

    def describe(self, params: dict[str, Any], config: Config) -> None:
        """Log parameters and, as the artifact config.yaml, the whole configuration.

        Parameters are logged for a new run only, because MLflow does not allow them to change.
        """
        from mlflow.entities import Param

        if self.new:
            entries = [Param(key, redact(str(value))) for key, value in params.items()]
            self._tracker.call(lambda client: client.log_batch(self.id, params=entries[:100]))
        self._tracker.call(lambda client: client.log_text(self.id, config.to_yaml(), "config.yaml"))

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, redact(value)) for key, value in tags.items()]
        self._tracker.call(lambda client: client.log_batch(self.id, tags=entries))

    def log_dataset(self, name: str, digest: str, source: str, profile: dict[str, Any]) -> None:
        """Log the training data.

        Args:
            name: name of the dataset.
            digest: identifies its content.
            source: path or URL of the patch set.
            profile: facts such as the number of images.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        place = json.dumps({"uri": redact(source)})
        dataset = Dataset(redact(name)[:500], digest, "local", place, profile=json.dumps(profile))
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self._tracker.call(lambda client: client.log_inputs(self.id, [entry]))

    def log_metrics(self, metrics: dict[str, float], step: int = 0, time_ms: int | None = None) -> bool:
        """Log metrics of a step; return False if MLflow did not receive them.

        Args:
            metrics: values by name.
            step: number of finished optimizer steps.
            time_ms: Unix time in milliseconds; now by default.
        """
        from mlflow.entities import Metric

        when = time_ms if time_ms is not None else time.time_ns() // 1_000_000
        entries = [Metric(key, value, when, step) for key, value in metrics.items()]
        return self._tracker.call(lambda client: client.log_batch(self.id, metrics=entries))

    def log_history(self, records: Sequence[JournalRecord]) -> bool:
        """Log the metrics of many records in one request; return False if MLflow did not receive them.

        Args:
            records: together they have at most `MOST_METRICS` metrics, or they are a single one.
        """
        from mlflow.entities import Metric

        entries = [
            Metric(key, value, record.time, record.step) for record in records for key, value in record.metrics.items()
        ]
        refused: list[Exception] = []

        def send(client: Any) -> None:
            try:
                client.log_batch(self.id, metrics=entries)
            except Exception as error:
                if len(records) == 1 or not _is_refusal(error):
                    raise
                refused.append(error)

        if not self._tracker.call(send):
            return False
        return all(self.log_history([record]) for record in records) if refused else True

    def log_image(self, image: Image.Image, key: str, step: int) -> bool:
        """Add an image of a step to the run's image grid; return False if MLflow did not receive it.

        A small image is enlarged by a whole number without smoothing.
        """
        factor = max(_SHOWN_WIDTH // image.width, 1)
        shown = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
        return self._tracker.call(lambda client: client.log_image(self.id, shown, key=key, step=step, synchronous=True))

    def log_file(self, content: bytes, path: str) -> bool:
        """Store a file as the artifact `path`; return False if MLflow did not receive it."""

        def upload(client: Any) -> None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Path(path).name
                file.write_bytes(content)
                client.log_artifact(self.id, str(file), str(Path(path).parent) if "/" in path else None)

        return self._tracker.call(upload)

    def log_table(self, rows: dict[str, list[Any]], path: str) -> bool:
        """Store columns of equal length as a table artifact; return False if MLflow did not receive it."""
        content = json.dumps({"columns": list(rows), "data": [list(row) for row in zip(*rows.values(), strict=True)]})
        return self.log_file(content.encode(), path)

    def log_model(self, model: TrainedModel) -> bool:
        """Make the run's trained network a model that MLflow can load and serve, unless the run has one.

        Returns:
            False if MLflow did not receive it.
        """
        with without_info_logs():
            return self._tracker.call(lambda client: send_model(client, self.id, model))

    def find_model(self) -> str | None:
        """Return the id of the run's model; None if it has none that arrived completely, or MLflow does not answer."""
        found: list[str | None] = [None]
        self._tracker.call(lambda client: found.append(find_model_id(client, self.id)))
        return found[-1]

    def log_scores(self, scores: dict[str, float]) -> bool:
        """Log scores of the trained network, as metrics of the run and of its model; return False if they were lost."""
        from mlflow.entities import Metric

        def send(client: Any) -> None:
            model_id, now = find_model_id(client, self.id), time.time_ns() // 1_000_000
            metrics = [Metric(key, value, now, 0, model_id=model_id, run_id=self.id) for key, value in scores.items()]
            client.log_batch(self.id, metrics=metrics)

        return self._tracker.call(send)

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        self.ended = self._tracker.call(lambda client: client.set_terminated(self.id, status))


def _is_refusal(error: Exception) -> bool:
    """Tell whether MLflow refuses a request for good, rather than being away."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def find_problem(config: Config) -> UserError | None:
    """Return why MLflow cannot be used, or None if it can. Nothing is created, and it takes no more than seconds.

    Args:
        config: names the tracking server or database and the experiment.
    """
    try:
        contact(config)
    except RefusedError as refused:  # MLflow itself may know a user from a file or a plug-in
        with without_info_logs():
            import mlflow

            try:
                mlflow.MlflowClient(config.tracking_uri).get_experiment_by_name(config.tracking.experiment)
            except Exception:  # from requests or MLflow
                return refused
    except UserError as error:
        return error
    return None


@contextlib.contextmanager
def without_info_logs() -> Iterator[None]:
    """Suppress the many INFO messages with which MLflow and alembic report a new database."""
    previous = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(previous)
