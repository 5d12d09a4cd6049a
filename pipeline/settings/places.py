"""The places that a command reads and writes, resolved once when it starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.settings.environment import sqlite_uri
from pipeline.settings.errors import UserError
from pipeline.settings.fields import absolute_path
from pipeline.settings.schema import Config


def resolve(config: Config) -> Config:
    """Fill in `home`, `cache`, `log_format`, `tracking.uri` and `tune.new_records`, and make places absolute.

    This module alone reads the environment variables SR_HOME, SR_CACHE, SR_SETS, SR_LOG_FORMAT, MLFLOW_TRACKING_URI
    and RAY_ADDRESS, and the current folder. The result means the same in every process and on every node, so call this
    before Ray starts: Ray changes the current folder of the processes it starts. A resolved configuration is returned
    as it is.

    Args:
        config: settings as the user gave them.

    Raises:
        UserError: if SR_LOG_FORMAT has another value than "text" or "json", or a kept state would not be found again.

    Returns:
        A copy with absolute places. `tracking.uri` stays None if `home` is a URL and no tracking server was named.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    home = absolute_path(config.home or os.environ.get("SR_HOME") or ("~/sr-runs" if in_job else "runs"))
    cache = absolute_path(config.cache or os.environ.get("SR_CACHE") or "~/.cache/sr-pipeline")
    uri = _absolute_uri(config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"), home)
    records, new_records = config.tune.records, config.tune.new_records
    if records and not new_records and in_job and "://" not in records:
        new_records = f"{home}/records"  # Ray deletes the job's files, among them the uploaded records
    if config.tune.keep_state and new_records and new_records != records:
        raise UserError(
            f"tune.keep_state resumes from the folder that it writes, but tune.records is {records} and new records go "
            f"to {new_records}: expected one folder for both, which in a submitted job is a URL"
        )
    return config.model_copy(
        update={
            "home": home,
            "cache": cache,
            "log_format": config.log_format or _log_format(),
            "tracking": config.tracking.model_copy(update={"uri": uri}),
            "tune": config.tune.model_copy(update={"new_records": new_records or records}),
        }
    )


def _log_format() -> str:
    found = os.environ.get("SR_LOG_FORMAT") or "text"
    if found not in ("text", "json"):
        raise UserError(f"SR_LOG_FORMAT is {found}, expected text or json")
    return found


def sets_folder(given: str | None) -> str | None:
    """Return the folder of benchmark sets: the given one, else $SR_SETS, else None."""
    folder = given or os.environ.get("SR_SETS")
    return absolute_path(folder) if folder else None


def names_tracking(config: Config) -> bool:
    """Tell whether a resolved configuration names an MLflow server or database, rather than that of the home."""
    return config.tracking.uri != _absolute_uri(None, config.outputs)


def ray_address(config: Config) -> str | None:
    """Return the address of the Ray cluster, such as HOST:PORT or ray://HOST:PORT; None for a local Ray.

    In a submitted job, Ray sets RAY_ADDRESS to the job's own cluster, whatever it was outside.

    Raises:
        UserError: if the address is that of a dashboard, which only `ray job` can use.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return None
    if address.startswith(("http://", "https://")):
        name, remedy = "RAY_ADDRESS", "`unset RAY_ADDRESS` to start a local Ray"
        if config.cluster.address:
            name, remedy = "cluster.address", "none to start a local Ray"
        raise UserError(
            f"{name} is {address}, the address of a dashboard, which only `ray job submit` can use: expected "
            f"{urlsplit(address).hostname or 'HOST'}:6379, the address of the head node, or {remedy}"
        )
    return address


def _absolute_uri(uri: str | None, home: str) -> str | None:
    match = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]+)(\?.*)?", uri or "")
    if match and match[1] != ":memory:":
        return sqlite_uri(str(Path(unquote(match[1])).expanduser().absolute())) + (match[2] or "")
    return uri or (None if "://" in home else sqlite_uri(f"{home}/mlflow.db"))
