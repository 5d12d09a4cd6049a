"""Runs in MLflow. This is the only module that imports MLflow.

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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.settings import Config, UserError
from pipeline.storage import one_line
from pipeline.tracking.notes import read_run_note, write_run_note
from pipeline.tracking.provenance import code_hash, commit

_PROCESS_TAG = "sr.process"
"""Tag with the host and process id of the process that writes a run."""


class Tracker:
    """Access to the runs of one MLflow experiment, which is created if it does not exist.

    Args:
        config: names the tracking server or database and the experiment.

    Raises:
        UserError: if MLflow does not answer. Only this first contact must succeed.
    """

    def __init__(self, config: Config) -> None:
        with _without_info_logs():
            import mlflow  # imported here because it takes seconds, and a command that reuses everything needs none
            from mlflow.exceptions import MlflowException

            self._failures: tuple[type[Exception], ...] = (MlflowException, OSError)
            self.uri = config.tracking_uri
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._client = mlflow.MlflowClient(self.uri)
            self._warned = False
            try:
                self.experiment_id = self._find_or_create_experiment(config)
            except Exception as error:  # from SQLAlchemy, requests or MLflow, depending on the store
                reason = one_line(error, 300)
                raise UserError(
                    f"MLflow at {self.uri} cannot be used: {reason}; expected a running server or a database"
                ) from None
        self._end_abandoned_runs()

    def _find_or_create_experiment(self, config: Config) -> str:
        name = config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:") and "://" not in config.outputs:
            artifacts = Path(f"{config.outputs}/mlartifacts").as_uri()
        elif self.uri.startswith("sqlite:"):
            artifacts = f"{config.outputs}/mlartifacts"
        # This kind makes MLflow's UI open its pages for training rather than those for GenAI.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(name, artifact_location=artifacts, tags=tags))

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
        """
        run = self._resume_or_create(folder, name, tags, parent)
        try:
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

    def register_model(self, model: str, alias: str, run: TrackedRun, path: str, description: str) -> bool:
        """Register a run's artifact as a version of a model, and give the version an alias.

        Args:
            model: name of the registered model, which is created if it does not exist.
            alias: alias of the version; another version loses it.
            run: the run that has the artifact.
            path: the artifact's path in the run.
            description: description of a new version.

        Returns:
            True if MLflow accepted it.
        """

        def register(client: Any) -> None:
            with contextlib.suppress(*self._failures):  # the model exists already
                client.create_registered_model(model)
            versions = client.search_model_versions(f"name = '{model}' and run_id = '{run.id}'")
            version = (
                versions[0]
                if versions
                else client.create_model_version(
                    model, f"runs:/{run.id}/{path}", run.id, description=description, await_creation_for=0
                )
            )
            client.set_registered_model_alias(model, alias, version.version)

        return self.call(register)

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
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                print(f"MLflow at {self.uri} rejects a record, which is skipped ({reason})", file=sys.stderr)
                return True
            if not self._warned:
                print(f"MLflow at {self.uri} does not answer; the run continues without it ({reason})", file=sys.stderr)
            self._warned = True
            return False
        if self._warned:
            print(f"MLflow at {self.uri} answers again", file=sys.stderr)
        self._warned = False
        return True

    def _end_with_children(self, run: TrackedRun, status: str) -> None:
        with contextlib.suppress(*self._failures):
            running = f"tags.`mlflow.parentRunId` = '{run.id}' and attributes.status = 'RUNNING'"
            for child in self._client.search_runs([self.experiment_id], running):
                self._client.set_terminated(child.info.run_id, "KILLED")
        run.end(status)

    def _resume_or_create(self, folder: str, name: str, tags: dict[str, str], parent: str) -> TrackedRun:
        note = read_run_note(folder, self.uri)
        below = {"mlflow.parentRunId": parent} if parent else {}
        tags = {**tags, _PROCESS_TAG: f"{platform.node()}:{os.getpid()}", **below}
        run_id = note.runs.get(parent) or note.runs.get("")
        others = {key: value for key, value in note.runs.items() if value != run_id}
        if run_id:
            with contextlib.suppress(*self._failures):  # the run was deleted: create another
                self._client.update_run(run_id, status="RUNNING")
                for key, value in tags.items():
                    self._client.set_tag(run_id, key, value)
                write_run_note(folder, replace(note, runs={**others, parent: run_id}))
                return TrackedRun(self, run_id, new=False)
        user = os.environ.get("USER", "unknown")
        source = {"mlflow.source.name": "pipeline", "mlflow.user": user, "sr.code": code_hash()}
        source |= {"mlflow.source.git.commit": code} if (code := commit()) else {}
        created = self._client.create_run(self.experiment_id, run_name=name, tags={**source, **tags})
        run_id = str(created.info.run_id)
        command = f"python -m pipeline.{'tune' if tags.get('stage') == 'grid' else 'run'} --from-run {run_id}"
        self.call(lambda client: client.set_tag(run_id, "mlflow.note.content", f"Reproduce this run: `{command}`"))
        write_run_note(folder, replace(note, runs={**others, parent: run_id}))
        return TrackedRun(self, run_id, new=True)

    def _end_abandoned_runs(self) -> None:
        """Mark runs as KILLED if a process of this machine left them running and is gone."""
        with contextlib.suppress(*self._failures):
            for run in self._client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"):
                host, _, pid = run.data.tags.get(_PROCESS_TAG, "").rpartition(":")
                if host == platform.node() and not _is_running(int(pid)):
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
            entries = [Param(key, str(value)) for key, value in params.items()]
            self._tracker.call(lambda client: client.log_batch(self.id, params=entries[:100]))
        self._tracker.call(lambda client: client.log_text(self.id, config.to_yaml(), "config.yaml"))

    def log_dataset(self, name: str, digest: str, source: str, profile: dict[str, Any]) -> None:
        """Log the training data.

        Args:
            name: name of the dataset.
            digest: identifies its content.
            source: path or URL of the patch set.
            profile: facts such as the number of images.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
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

    def log_image(self, image: Image.Image, key: str, step: int) -> bool:
        """Add an image of a step to the run's image grid; return False if MLflow did not receive it."""
        return self._tracker.call(lambda client: client.log_image(self.id, image, key=key, step=step, synchronous=True))

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

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        self.ended = self._tracker.call(lambda client: client.set_terminated(self.id, status))


def wait_for_server(config: Config, patience_s: float) -> None:
    """Wait until MLflow answers.

    Raises:
        UserError: if it does not answer within `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            Tracker(config)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(5)


def fetch_config(config: Config, run_id: str) -> str:
    """Return the configuration of a run as YAML.

    Args:
        config: names the tracking server or database.
        run_id: id of the run in MLflow.

    Raises:
        UserError: if MLflow has no such run, or the run has no configuration.
    """
    with _without_info_logs():
        import mlflow

        try:
            file: str = mlflow.MlflowClient(config.tracking_uri).download_artifacts(run_id, "config.yaml")
            return Path(file).read_text()
        except Exception as error:  # from SQLAlchemy, requests or MLflow, depending on the store
            reason = one_line(error, 200)
            raise UserError(
                f"run {run_id} of MLflow at {config.tracking_uri} cannot be used: {reason}; expected the id of a run "
                "of this pipeline; --tracking.uri names another server"
            ) from None


def ui_command(config: Config) -> str:
    """Return the shell command that opens MLflow's UI for the runs."""
    uri = config.tracking_uri
    if uri.startswith("http"):
        return f"open {uri}"
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri} --port 5000"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True


@contextlib.contextmanager
def _without_info_logs() -> Iterator[None]:
    """Suppress the many INFO messages with which MLflow and alembic report a new database."""
    previous = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(previous)
