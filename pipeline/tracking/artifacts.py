"""Read the settings of a run and the weights of a model from MLflow. Nothing is created there."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.settings import Config, UserError
from pipeline.storage import one_line, redact
from pipeline.tracking import logged_models
from pipeline.tracking.contact import RefusedError, find_experiments, sqlite_file
from pipeline.tracking.mlflow_store import without_info_logs

LARGEST_BYTES = 2**30
"""Size of the largest file of weights that is fetched."""

_MOST_LISTINGS = 100
"""Number of folders of a model that are searched for its weights."""

_FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID or runs:/ID/PATH"


def fetch_config(config: Config, run_id: str) -> str:
    """Return the configuration of a run as YAML.

    Args:
        config: names the tracking server or database.
        run_id: id of the run in MLflow.

    Raises:
        UserError: if MLflow has no such run, or the run has no configuration.
    """
    expected = "the id of a run of this pipeline"
    with _client(config, f"run {run_id}", expected) as client, tempfile.TemporaryDirectory(prefix="sr-") as folder:
        path: str = client.download_artifacts(run_id, "config.yaml", folder)
        return Path(path).read_text("utf-8")


def fetch_weights(config: Config, name: str) -> str:
    """Return the path or URL of the weights of a model in the cache.

    A logged model is fetched once, because it never changes. Files of a run may, so they are fetched each time.

    Args:
        config: names the tracking server or database, and the cache.
        name: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/ID` of a logged model, `runs:/ID`, or
            `runs:/ID/PATH` with a model's name, a folder or a .safetensors file.

    Raises:
        UserError: if MLflow cannot be used, has no such model, or the model has no single .safetensors file, or one
            that is larger than `LARGEST_BYTES`.
    """
    match = _MODEL.fullmatch(name) or _RUN.fullmatch(name)
    if match is None:
        raise UserError(f"the model {name} cannot be read, expected {_FORMS}")
    with _client(config, name, "a model of this pipeline") as client:
        if name.startswith("runs:"):
            place = _place_of_run(client, match["run"], match["path"] or "")
        else:
            place = _place_of_model(client, match)
        repository = _open(place.root, config.tracking_uri)
        file = _find_weights(repository, place.path, name)
        if file.size > LARGEST_BYTES:
            raise UserError(f"{name} has {file.size:,} bytes of weights, expected at most {LARGEST_BYTES:,}")
        lasting = _LOGGED_MODEL.search(place.root)
        key = storage.fingerprint([place.root, file.path, file.size])
        if lasting and storage.exists(_cached(config, key)):
            return _cached(config, key)
        with tempfile.TemporaryDirectory(prefix="sr-") as folder:
            got = Path(repository.download_artifacts(file.path, folder))
            if got.stat().st_size != file.size:
                raise OSError(f"{file.path} arrived with {got.stat().st_size} bytes instead of {file.size}")
            url = _cached(config, key if lasting else storage.sha256(got))
            storage.copy(got, url)
        return url


def _cached(config: Config, key: str) -> str:
    return f"{config.downloads}/models/{key}.safetensors"


_MODEL = re.compile(r"models:/+(?:(?P<id>m-[0-9a-f]{32})|(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+)))/?")
_LOGGED_MODEL = re.compile(r"/models/m-[0-9a-f]{32}/artifacts/?$")
"""End of the URI under which MLflow stores the files of a logged model."""
_RUN = re.compile(r"runs:/+(?P<run>\w[\w-]*)(?:/(?P<path>[^/].*?))?/?")


@dataclass(frozen=True)
class _Place:
    """Where the files of a model or of a run are."""

    root: str
    """URI of a store of MLflow's artifacts."""
    path: str = ""
    """A folder or file in it; "" for all of it."""


@dataclass(frozen=True)
class _File:
    path: str
    size: int


@contextlib.contextmanager
def _client(config: Config, what: str, expected: str) -> Iterator[Any]:
    """Connect to MLflow for the block, and turn errors into sentences about `what`."""
    place, file = f"MLflow at {redact(config.tracking_uri)}", sqlite_file(config.tracking_uri)
    if file and not file.exists():
        raise UserError(
            f"{what} cannot be used, because there is no database {file}: name that of the run in "
            "MLFLOW_TRACKING_URI, or the home of its outputs in SR_HOME"
        )
    with contextlib.suppress(RefusedError):  # MLflow itself may know a user from a file or a plug-in
        find_experiments(config)
    with without_info_logs():
        import mlflow

        try:
            yield mlflow.MlflowClient(config.tracking_uri)
        except UserError:
            raise
        except Exception as error:  # from SQLAlchemy, requests or MLflow, depending on the store
            reason = one_line(error, 200).rstrip(".")
            raise UserError(
                f"{what} of {place} cannot be used: {reason}; expected {expected}; MLFLOW_TRACKING_URI names another "
                "server"
            ) from None


def _place_of_model(client: Any, match: re.Match[str]) -> _Place:
    """Return where a registered version or a logged model has its files."""
    if match["id"]:
        return _Place(client.get_logged_model(match["id"]).artifact_location)
    name = match["name"]
    if match["alias"]:
        version = client.get_model_version_by_alias(name, match["alias"])
    else:
        version = client.get_model_version(name, match["version"])
    if inner := _MODEL.fullmatch(version.source):
        return _place_of_model(client, inner)
    if run := _RUN.fullmatch(version.source):
        return _place_of_run(client, run["run"], run["path"] or "")
    return _Place(version.source)


def _place_of_run(client: Any, run_id: str, path: str) -> _Place:
    """Return where a run has the files of its model, or those of a path."""
    run = client.get_run(run_id)
    first, _, rest = path.partition("/")
    model_id = logged_models.find_model_id(client, run_id)
    if model_id and first in ("", logged_models.NAME):
        return _Place(client.get_logged_model(model_id).artifact_location, rest)
    if not path and not model_id:  # a workflow has its training below it
        below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=2)
        if len(below) == 1:
            return _place_of_run(client, below[0].info.run_id, "")
        if below:
            raise UserError(f"runs:/{run_id} is a run with several trainings, expected the run of one training")
    return _Place(run.info.artifact_uri, path)


def _open(root: str, tracking_uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(root, tracking_uri=tracking_uri)


def _find_weights(repository: Any, path: str, name: str) -> _File:
    """Return the .safetensors file at or below a path of a store.

    Raises:
        UserError: if there is none, or several and none of them is called model.safetensors.
    """
    found: list[_File] = []
    if path.endswith(".safetensors"):
        siblings = repository.list_artifacts(path.rpartition("/")[0] or None)
        found = [_File(str(file.path), int(file.file_size)) for file in siblings if file.path == path]
    folders: list[str | None] = [path or None]
    listings = 0
    while folders and not found and listings < _MOST_LISTINGS:
        below: list[str | None] = []
        for folder in folders:
            listings += 1
            for file in repository.list_artifacts(folder):
                if file.is_dir:
                    below.append(str(file.path))
                elif str(file.path).endswith(".safetensors"):
                    found.append(_File(str(file.path), int(file.file_size)))
        folders = below
    if len(found) > 1:
        found = [file for file in found if Path(file.path).name == logged_models.WEIGHTS] or found
    if len(found) != 1 or ".." in Path(found[0].path).parts:
        names = ", ".join(file.path for file in found[:5]) or "none"
        raise UserError(f"{name} has no single .safetensors file ({names}): expected a network of this pipeline")
    return found[0]
