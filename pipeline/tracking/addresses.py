"""Addresses of MLflow's pages, and the command that opens them."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path

from pipeline.settings import Config, UserError
from pipeline.storage import redact
from pipeline.tracking.contact import contact

_TRAINING = "workflowType=machine_learning"
"""MLflow 3.17 shows its pages for GenAI unless the address or an earlier visit of this browser says otherwise. No tag
of the experiment changes that."""


def ui_command(config: Config, port: int = 5000) -> str:
    """Return how to open the runs in MLflow's UI.

    Args:
        config: names the tracking server or database and the experiment.
        port: port of the UI, if it has to be started.

    Returns:
        The address of the experiment's runs on a server. For a database, a shell command, and on a second line the
        address to open then.
    """
    uri = config.tracking_uri
    experiment = ""
    with contextlib.suppress(UserError):
        experiment = contact(config)
    page = f"#/experiments/{experiment}/runs?{_TRAINING}" if experiment else f"#/experiments?{_TRAINING}"
    if uri.startswith("http"):
        return f"{redact(uri).rstrip('/')}/{page}"
    # A password is not printed; the user has given it in this variable or can do so.
    store = shlex.quote(uri) if redact(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    program = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    return f"{program} ui --backend-store-uri {store} --port {port}\n  then open http://127.0.0.1:{port}/{page}"
