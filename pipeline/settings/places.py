"""The places that a command reads and writes, resolved once when it starts."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.settings.fields import absolute_path
from pipeline.settings.schema import Config


def resolve(config: Config) -> Config:
    """Fill in `home`, `cache`, `tracking.uri` and `tune.new_records`, and make them absolute.

    This is the only place that reads the environment variables SR_HOME, SR_CACHE and MLFLOW_TRACKING_URI and the
    current folder. The result means the same in every process and on every node, so call this before Ray starts:
    Ray changes the current folder of the processes it starts. A resolved configuration is returned as it is.

    Args:
        config: settings as the user gave them.

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
    return config.model_copy(
        update={
            "home": home,
            "cache": cache,
            "tracking": config.tracking.model_copy(update={"uri": uri}),
            "tune": config.tune.model_copy(update={"new_records": new_records or records}),
        }
    )


def _absolute_uri(uri: str | None, home: str) -> str | None:
    if uri and uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"
    return uri or (None if "://" in home else f"sqlite:///{home}/mlflow.db")
