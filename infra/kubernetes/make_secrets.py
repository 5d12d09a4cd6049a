#!/usr/bin/env python
"""Print the Secrets that infra/kubernetes refers to, with random passwords, for `kubectl create -f -`.

Nothing is written to a file, and no password appears in the list of processes. `kubectl create` refuses Secrets that
exist, so a second call changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys

NAMESPACE = "super-resolution"


def main() -> None:
    """Run `python infra/kubernetes/make_secrets.py`."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="MLFLOW_BACKEND_STORE_URI in the environment names the database of a production server, such as "
        "postgresql+psycopg2://USER:PASSWORD@HOST:5432/mlflow. Its users are kept in a second database, mlflow_auth.",
    )
    parser.add_argument(
        "--store",
        choices=["random", "environment", "none"],
        default="random",
        help="keys of the object store: random ones for a store that takes them (overlay dev), AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY of the environment, or none, if the service accounts have a role (%(default)s)",
    )
    options = parser.parse_args()
    database = os.environ.get("MLFLOW_BACKEND_STORE_URI", "sqlite:////data/mlflow.db")
    try:
        made = make_secrets(database, options.store)
    except KeyError as error:
        print(f"error: {error.args[0]} is not set, expected a key of the object store in it", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))


def make_secrets(database: str, store: str) -> list[dict[str, object]]:
    """Return the Secrets as Kubernetes objects.

    Args:
        database: URI of MLflow's database, for SQLAlchemy.
        store: where the keys of the object store come from: "random", "environment", or "none" for no such Secret.

    Raises:
        KeyError: if `store` is "environment" and a variable is missing.
    """
    password = secrets.token_urlsafe(24)
    server = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        # In this format, a percent sign begins a reference to another value. Without the cache, each request of a
        # client would cost the tenth of a second that checking a password takes.
        "auth.ini": (
            "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
            f"database_uri = {_users(database).replace('%', '%%')}\n"
        ),
    }
    client = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    made = [
        _secret("ray-token", {"auth_token": secrets.token_hex(32)}),
        _secret("mlflow-server", server),
        _secret("mlflow-client", client),
    ]
    if store == "random":
        made.append(_secret("store", {"AWS_ACCESS_KEY_ID": "sr", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(32)}))
    elif store == "environment":
        made.append(_secret("store", {key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}))
    return made


def _users(database: str) -> str:
    """Return the URI of the database of users, because it must not be that of the runs."""
    uri, mark, query = database.partition("?")
    suffix = ".db" if uri.startswith("sqlite:") and uri.endswith(".db") else ""
    return f"{uri.removesuffix(suffix)}_auth{suffix}{mark}{query}"


def _secret(name: str, values: dict[str, str]) -> dict[str, object]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": values}


if __name__ == "__main__":
    main()
