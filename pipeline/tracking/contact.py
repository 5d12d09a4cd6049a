"""The first contact with MLflow: find out within seconds, and without importing MLflow, what would fail later."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
import urllib3

from pipeline.settings import Config, UserError
from pipeline.storage import one_line, redact

_LIMIT_S = 7.0
"""Seconds after which an unfinished contact counts as no answer."""
_TIMEOUT_S = (3, 5)
"""Seconds for a connection to a server, and for its answer."""
_LOCK_S = 3.0
"""Seconds to wait for a database that another program has locked."""

_DATABASES = ("postgresql", "mysql", "mssql")
_EXPECTED = "expected an MLflow server (http://…) or a database (sqlite:////…, postgresql://…)"


class UnavailableError(UserError):
    """MLflow may answer later without anybody changing anything."""


class RefusedError(UserError):
    """The server wants authentication and did not get it from the environment variables."""


Experiments = list[tuple[str, str]]
"""Ids and stages of the experiments of a name: "active" or "deleted". A deleted one keeps its name."""


def contact(config: Config) -> str:
    """Ask MLflow for the experiment, and report whatever is certain to fail later. Nothing is created or changed.

    Args:
        config: names the tracking server or database and the experiment.

    Returns:
        The id of the experiment; "" if it does not exist yet, or this module cannot ask this kind of store.

    Raises:
        RefusedError: if the server refuses this user.
        UnavailableError: if it does not answer, or is locked.
        UserError: if it cannot be used otherwise, such as when the experiment was deleted. The text is one sentence.
    """
    found = find_experiments(config)
    active = [number for number, stage in found if stage == "active"]
    if found and not active:
        raise deleted_error(config, found[0][0])
    return active[0] if active else ""


def find_experiments(config: Config) -> Experiments:
    """Return the experiments of the configured name, deleted or not; raises as `contact` does otherwise."""
    uri, name = config.tracking_uri, config.tracking.experiment
    place = f"MLflow at {redact(uri)}"
    kind = re.split(r"[+:]", uri, maxsplit=1)[0].lower()
    if kind in ("http", "https"):
        return _within_limit(lambda: _ask_server(uri, name, place), place)
    if kind == "sqlite":
        return _within_limit(lambda: _ask_sqlite(uri, name, place), place)
    if kind in _DATABASES:
        return _within_limit(lambda: _ask_database(uri, name, place), place)
    return []


def wait_for_server(config: Config, patience_s: float) -> None:
    """Wait until MLflow answers.

    Raises:
        UserError: if it does not answer within `patience_s` seconds, or cannot be used at all.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            contact(config)
            return
        except RefusedError:
            return  # the tracker says more
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(5)


def deleted_error(config: Config, experiment_id: str) -> UserError:
    """Return the error for an experiment that was deleted."""
    uri = redact(config.tracking_uri)
    command = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id {experiment_id}"
    return UserError(
        f"the experiment {config.tracking.experiment} of MLflow at {uri} was deleted: restore it with `{command}`, or "
        "choose another one with tracking.experiment"
    )


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI, or None for any other URI and for a database in memory."""
    if not uri.startswith("sqlite"):
        return None
    import sqlalchemy

    name = sqlalchemy.make_url(uri).database
    return Path(name) if name and name != ":memory:" and not name.startswith("file:") else None


def _within_limit(ask: Callable[[], Experiments], place: str) -> Experiments:
    """Run a request in a thread, because looking up a host or opening a file on a network may hang for minutes."""
    answer: Future[Experiments] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="mlflow-contact", daemon=True).start()
    try:
        return answer.result(_LIMIT_S)
    except FutureTimeoutError:
        raise UnavailableError(f"{place} does not answer within {_LIMIT_S:g} seconds; {_EXPECTED}") from None


def _ask_server(uri: str, experiment: str, place: str) -> Experiments:
    """Return id and stage of the experiment on a server; an empty list if there is none."""
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name"
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
    certificate = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    try:
        response = requests.get(
            url,
            params={"experiment_name": experiment},
            headers=_authorization(),
            timeout=_TIMEOUT_S,
            verify=False if insecure else certificate or True,
        )
    except requests.exceptions.RequestException as error:
        raise _connection_error(error, place) from None
    return _read_answer(response, place)


def _authorization() -> dict[str, str]:
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        return urllib3.make_headers(basic_auth=f"{user}:{password}")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _read_answer(response: requests.Response, place: str) -> Experiments:
    status = response.status_code
    try:
        answer: Any = response.json()
    except ValueError:
        answer = None
    if status == 200 and isinstance(answer, dict) and isinstance(answer.get("experiment"), dict):
        found = answer["experiment"]
        return [(str(found.get("experiment_id", "")), str(found.get("lifecycle_stage", "active")))]
    code = answer.get("error_code", "") if isinstance(answer, dict) else ""
    if status == 404 and code == "RESOURCE_DOES_NOT_EXIST":
        return []
    said = one_line(str(answer.get("message", "")) if isinstance(answer, dict) else response.text, 150)
    if status == 403 and "host" in said.lower():
        raise UserError(
            f"{place} refuses requests under this name ({said}): start the server with --allowed-hosts, or name it as "
            "it expects with tracking.uri"
        )
    if status in (401, 403):
        raise RefusedError(
            f"{place} refuses this user (status {status}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN"
        )
    if status == 429 or status >= 500:
        raise UnavailableError(f"{place} does not work at the moment (status {status}: {said}); {_EXPECTED}")
    raise UserError(f"{place} is no MLflow server (status {status} for one of MLflow's addresses); {_EXPECTED}")


def _connection_error(error: requests.exceptions.RequestException, place: str) -> UserError:
    cause = getattr(error.args[0], "reason", error) if error.args else error
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        reason = "no host has this name"
    elif "Connection refused" in str(cause):
        reason = "nothing listens at this port"
    elif isinstance(error, requests.exceptions.Timeout):
        reason = "it does not answer within seconds"
    elif isinstance(error, requests.exceptions.SSLError):
        return UserError(
            f"{place} cannot be used: its certificate is not trusted ({one_line(cause, 150)}); name it with "
            "MLFLOW_TRACKING_SERVER_CERT_PATH, or use http://"
        )
    elif isinstance(error, ValueError):  # such as InvalidURL
        return UserError(f"{place} cannot be used: {one_line(error, 200)}; {_EXPECTED}")
    else:
        reason = one_line(cause, 200)
    return UnavailableError(f"{place} cannot be used: {reason}; expected a running server")


def _ask_sqlite(uri: str, experiment: str, place: str) -> Experiments:
    """Return ids and stages of the experiment in a SQLite file; an empty list if the file does not exist yet."""
    file = sqlite_file(uri)
    if file is None or not file.exists():
        return []
    try:
        database = sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=_LOCK_S)
        try:
            database.isolation_level = None
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            database.execute(f"PRAGMA user_version = {version}")  # a write, which fails if any other would
            tables = {str(name) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            found, revisions, filled = [], [], False
            if {"experiments", "alembic_version"} <= tables:
                revisions = [str(row[0]) for row in database.execute("SELECT version_num FROM alembic_version")]
                found = database.execute(_EXPERIMENTS.replace(":name", "?"), [experiment]).fetchall()
                filled = database.execute("SELECT 1 FROM experiments").fetchone() is not None
            database.execute("ROLLBACK")
        finally:
            database.close()
    except sqlite3.Error as error:
        raise _sqlite_error(error, file, place) from None
    if filled:
        _check_revision(revisions, uri, place)
    return [(str(number), str(stage)) for number, stage in found]


_EXPERIMENTS = "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = :name"


def _sqlite_error(error: sqlite3.Error, file: Path, place: str) -> UserError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return UnavailableError(
            f"{place} is locked by another program that writes to {file}: wait until it ends, or choose another "
            "database with tracking.uri"
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return UserError(
            f"{place} is read-only: you need permission to write to {file} and its folder; tracking.uri names another "
            "database"
        )
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return UserError(
            f"{place} is damaged: {file} is no whole SQLite database ({one_line(error, 100)}); restore a copy of it, "
            "or move it away to begin a new one"
        )
    return UserError(f"{place} cannot be used: {one_line(error, 200)}; {_EXPECTED}")


def _ask_database(uri: str, experiment: str, place: str) -> Experiments:
    """Return ids and stages of the experiment in a database server; an empty list if it has no tables yet."""
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
        timeout = {"timeout": 4} if url.get_backend_name() == "mssql" else {"connect_timeout": 4}
        engine = sqlalchemy.create_engine(url, connect_args=timeout, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            tables = set(sqlalchemy.inspect(connection).get_table_names())
            found, revisions, filled = [], [], False
            if {"experiments", "alembic_version"} <= tables:
                rows = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))
                revisions = [str(row[0]) for row in rows]
                found = list(connection.execute(sqlalchemy.text(_EXPERIMENTS), {"name": experiment}))
                filled = connection.execute(sqlalchemy.text("SELECT 1 FROM experiments")).first() is not None
    except ImportError as error:
        raise UserError(f"{place} needs the package of its driver: {one_line(error, 200)}") from None
    except sqlalchemy.exc.OperationalError as error:
        raise UnavailableError(f"{place} cannot be used: {one_line(error.orig or error, 200)}; {_EXPECTED}") from None
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise UserError(f"{place} cannot be used: {one_line(error, 200)}; {_EXPECTED}") from None
    if filled:
        _check_revision(revisions, uri, place)
    return [(str(number), str(stage)) for number, stage in found]


def _check_revision(revisions: list[str], uri: str, place: str) -> None:
    """Check that a database with experiments has the schema of the installed MLflow, which completes an empty one.

    Raises:
        UserError: if it has another one.
    """
    known, newest = _known_revisions()
    if not newest or revisions == [newest]:
        return
    if not revisions or revisions[0] in known:
        raise UserError(
            f"{place} was made by an older version of MLflow: make a copy of it, then run `mlflow db upgrade "
            f"{shlex.quote(redact(uri))}`, or name another database with tracking.uri"
        )
    raise UserError(
        f"{place} was made by a newer version of MLflow than the one installed here: install that version, or name "
        "another database with tracking.uri"
    )


def _known_revisions() -> tuple[set[str], str]:
    """Return the schema versions that the installed MLflow knows, and the newest; "" if they cannot be found.

    They are read from the texts of its migrations, because loading those imports MLflow, which takes seconds.
    """
    spec = importlib.util.find_spec("mlflow")
    places = list(spec.submodule_search_locations or []) if spec else []
    texts = [file.read_text("utf-8", "replace") for place in places for file in Path(place, _MIGRATIONS).glob("*.py")]
    revisions = {name for text in texts for name in re.findall(r"^revision = ['\"](\w+)['\"]", text, re.MULTILINE)}
    replaced = {name for text in texts for name in re.findall(r"^down_revision = ['\"](\w+)['\"]", text, re.MULTILINE)}
    newest = revisions - replaced
    return revisions, newest.pop() if len(newest) == 1 else ""


_MIGRATIONS = "store/db_migrations/versions"
