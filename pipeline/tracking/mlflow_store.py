"""MLflow, and the journal by which workers reach it; the only module that knows MLflow.

Workers append records to a journal on the run's storage. A process on the driver's node reads it and sends what is new
to MLflow; what cannot be sent waits in the journal. Training therefore never waits for the server, never fails with
it, and an outage is made good, if need be by running the command again.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import storage
from pipeline.settings import Config, UserError
from pipeline.storage import one_line
from pipeline.tracking.provenance import _code, commit


class Tracker:
    """Runs in one MLflow experiment.

    Args:
        config: names the tracking server or database and the experiment.

    Raises:
        UserError: if the tracking server doesn't answer; only this first contact is required to succeed.
    """

    def __init__(self, config: Config) -> None:
        with _quiet():
            import mlflow  # seconds of imports that a run that reuses everything can spare
            from mlflow.exceptions import MlflowException

            self._failures: tuple[type[Exception], ...] = (MlflowException, OSError)
            self.uri = config.tracking_uri
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._client = mlflow.MlflowClient(self.uri)
            self._warned = False
            try:
                self.experiment_id = self._experiment(config)
            except Exception as error:  # from SQLAlchemy, requests or MLflow, by the kind of store
                reason = one_line(error, 300)
                raise UserError(
                    f"MLflow at {self.uri} cannot be used: {reason}; expected a running server or a database"
                ) from None
        self._close_abandoned()

    def _experiment(self, config: Config) -> str:
        name = config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:") and "://" not in config.outputs:
            artifacts = Path(f"{config.outputs}/mlartifacts").as_uri()
        elif self.uri.startswith("sqlite:"):
            artifacts = f"{config.outputs}/mlartifacts"
        kind = {
            "mlflow.experimentKind": "custom_model_development"
        }  # the UI's training pages instead of its GenAI ones
        return str(self._client.create_experiment(name, artifact_location=artifacts, tags=kind))

    @contextlib.contextmanager
    def run(self, folder: str, name: str, tags: dict[str, str], parent: str = "") -> Iterator[TrackedRun]:
        """A run, whose id is kept in `folder`, so that the same work goes on in the same run.

        Each parent has its own; one that was without a parent is taken over by the first.
        It ends as FINISHED, KILLED (interrupted or stopped) or FAILED, and with it what still runs below it.
        """
        run = self._open(folder, name, tags, parent)
        try:
            yield run
        except (KeyboardInterrupt, SystemExit):
            self._end(run, "KILLED")
            raise
        except BaseException:
            self._end(run, "FAILED")
            raise
        self._end(run, "FINISHED")

    def known(self, folder: str, parent: str = "") -> TrackedRun | None:
        """The run below `parent` whose id is kept in `folder`, if this server has it."""
        note = storage.read_json(f"{folder}/tracking.json")
        run_id = note["runs"].get(parent) if note and note["uri"] == self.uri else None
        return TrackedRun(self, run_id, new=False) if run_id else None

    def register(self, model: str, alias: str, run: TrackedRun, path: str, description: str) -> bool:
        """Give an alias of a registered model to a run's artifact; whether that succeeded."""

        def register(client: Any) -> None:
            with contextlib.suppress(*self._failures):  # it is there
                client.create_registered_model(model)
            known = client.search_model_versions(f"name = '{model}' and run_id = '{run.id}'")
            version = (
                known[0]
                if known
                else client.create_model_version(
                    model, f"runs:/{run.id}/{path}", run.id, description=description, await_creation_for=0
                )
            )
            client.set_registered_model_alias(model, alias, version.version)

        return self.attempt(register)

    def attempt(self, call: Callable[[Any], Any]) -> bool:
        """Make a call of the MLflow client; whether it need not be made again.

        A failure is reported once and otherwise passed over; what MLflow refuses for good is reported and left out.
        """
        try:
            call(self._client)
        except Exception as error:  # of MLflow, of a database's or an object store's client
            reason = one_line(error, 200)
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                print(f"MLflow at {self.uri} refuses a record, which is left out ({reason})", file=sys.stderr)
                return True
            if not self._warned:
                print(f"MLflow at {self.uri} doesn't answer; the run goes on without it ({reason})", file=sys.stderr)
            self._warned = True
            return False
        if self._warned:
            print(f"MLflow at {self.uri} answers again", file=sys.stderr)
        self._warned = False
        return True

    def _end(self, run: TrackedRun, status: str) -> None:
        with contextlib.suppress(*self._failures):
            below = f"tags.`mlflow.parentRunId` = '{run.id}' and attributes.status = 'RUNNING'"
            for child in self._client.search_runs([self.experiment_id], below):
                self._client.set_terminated(child.info.run_id, "KILLED")
        run.end(status)

    def _open(self, folder: str, name: str, tags: dict[str, str], parent: str) -> TrackedRun:
        note = f"{folder}/tracking.json"
        known = storage.read_json(note)
        runs: dict[str, str] = known["runs"] if known and known["uri"] == self.uri else {}
        tags = {**tags, _PROCESS: _process(os.getpid())}
        if parent in runs or "" in runs:
            with contextlib.suppress(*self._failures):
                run_id = runs[parent] if parent in runs else runs.pop("")
                self._client.update_run(run_id, status="RUNNING")
                for key, value in {**tags, **({"mlflow.parentRunId": parent} if parent else {})}.items():
                    self._client.set_tag(run_id, key, value)
                storage.write_json(note, {"uri": self.uri, "runs": {**runs, parent: run_id}})
                return TrackedRun(self, run_id, new=False)
        if parent:
            tags = {**tags, "mlflow.parentRunId": parent}
        user = os.environ.get("USER", "unknown")
        source = {"mlflow.source.name": "pipeline", "mlflow.user": user, "sr.code": _code()}
        source |= {"mlflow.source.git.commit": code} if (code := commit()) else {}
        tags = {**source, **tags}
        created = self._client.create_run(self.experiment_id, run_name=name, tags=tags)
        command = (
            f"python -m pipeline.{'tune' if tags.get('stage') == 'grid' else 'run'} --from-run {created.info.run_id}"
        )
        self.attempt(lambda client: client.set_tag(created.info.run_id, "mlflow.note.content", f"Again: `{command}`"))
        storage.write_json(note, {"uri": self.uri, "runs": {**runs, parent: created.info.run_id}})
        return TrackedRun(self, str(created.info.run_id), new=True)

    def _close_abandoned(self) -> None:
        """Mark runs as killed that a process of this machine left running when it was killed."""
        with contextlib.suppress(*self._failures):
            for run in self._client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"):
                host, _, pid = run.data.tags.get(_PROCESS, "").rpartition(":")
                if host == platform.node() and not _alive(int(pid)):
                    self._client.set_terminated(run.info.run_id, "KILLED")


class TrackedRun:
    """One MLflow run."""

    def __init__(self, tracker: Tracker, run_id: str, new: bool) -> None:
        self._tracker = tracker
        self.id = run_id
        self.new = new
        """Whether it was begun by this process."""
        self.ended = False
        """Whether the server knows the final state."""

    def describe(self, params: dict[str, Any], config: Config) -> None:
        """Log parameters, flat (once: MLflow's are for good), and the whole configuration as an artifact."""
        from mlflow.entities import Param

        if self.new:
            entries = [Param(key, str(value)) for key, value in params.items()]
            self._tracker.attempt(lambda client: client.log_batch(self.id, params=entries[:100]))
        self._tracker.attempt(lambda client: client.log_text(self.id, config.to_yaml(), "config.yaml"))

    def log_dataset(self, name: str, digest: str, source: str, profile: dict[str, Any]) -> None:
        """Record the data that the run used."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile))
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self._tracker.attempt(lambda client: client.log_inputs(self.id, [entry]))

    def log_metrics(self, metrics: dict[str, float], step: int = 0, time_ms: int | None = None) -> bool:
        """Log values at a step; whether they arrived."""
        from mlflow.entities import Metric

        when = time_ms if time_ms is not None else time.time_ns() // 1_000_000
        entries = [Metric(key, value, when, step) for key, value in metrics.items()]
        return self._tracker.attempt(lambda client: client.log_batch(self.id, metrics=entries))

    def log_image(self, image: Image.Image, key: str, step: int) -> bool:
        """Add an image to the run's image grid; whether it arrived."""
        return self._tracker.attempt(
            lambda client: client.log_image(self.id, image, key=key, step=step, synchronous=True)
        )

    def log_file(self, content: bytes, path: str) -> bool:
        """Add a file to the run's artifacts, at a path relative to their root; whether it arrived."""

        def upload(client: Any) -> None:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Path(path).name
                file.write_bytes(content)
                client.log_artifact(self.id, str(file), str(Path(path).parent) if "/" in path else None)

        return self._tracker.attempt(upload)

    def log_table(self, rows: dict[str, list[Any]], path: str) -> bool:
        """Add columns of a table, which the UI shows as one, to the run's artifacts; whether it arrived."""
        content = json.dumps({"columns": list(rows), "data": [list(row) for row in zip(*rows.values(), strict=True)]})
        return self.log_file(content.encode(), path)

    def end(self, status: str) -> None:
        """Set the final state."""
        self.ended = self._tracker.attempt(lambda client: client.set_terminated(self.id, status))


def wait_for_server(config: Config, patience_s: float) -> None:
    """Until the server answers.

    Raises:
        UserError: if it doesn't in this time.
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
    """The configuration, YAML, that a run was started with.

    Raises:
        UserError: if the server has no such run, or the run no configuration.
    """
    with _quiet():
        import mlflow

        try:
            text: str = mlflow.MlflowClient(config.tracking_uri).download_artifacts(run_id, "config.yaml")
            return Path(text).read_text()
        except Exception as error:  # from SQLAlchemy, requests or MLflow, by the kind of store
            reason = one_line(error, 200)
            raise UserError(
                f"run {run_id} of MLflow at {config.tracking_uri} cannot be used: {reason}; expected the id of a run "
                "of this pipeline; --tracking.uri names another server"
            ) from None


def ui_command(config: Config) -> str:
    """The shell command that opens the MLflow UI on the runs, or says where the server is."""
    uri = config.tracking_uri
    if uri.startswith("http"):
        return f"open {uri}"
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri} --port 5000"


_PROCESS = "sr.process"


def _process(pid: int) -> str:
    return f"{platform.node()}:{pid}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the many INFO lines with which MLflow and alembic report a new database."""
    import logging

    previous = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(previous)
