#!/usr/bin/env python
"""Create the passwords, keys and the token of infra/compose.yaml, in the folder infra/secrets. Existing ones stay.

Only you can open the folder. The files in it can be read by all, because containers get them as they are, and the
servers in the containers run as users of their own.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"


def main() -> None:
    """Run `python infra/compose_secrets.py`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="(default: %(default)s)")
    options = parser.parse_args()
    created = create_secrets(options.folder)
    print(f"{options.folder}: {', '.join(created) if created else 'all secrets exist'}")


def create_secrets(folder: Path) -> list[str]:
    """Write the secrets that do not exist yet.

    Args:
        folder: folder for one file each; it is created.

    Returns:
        The names of the new files.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    random = ["ray_token", "postgres_password", "s3_key", "s3_secret", "mlflow_password", "mlflow_sessions"]
    created = [name for name in [*random, "grafana_password"] if _create(folder / name, secrets.token_hex(32))]
    # Both hold passwords of the files above. These are hexadecimal, so that nothing in a URI has to be escaped.
    database = f"postgresql+psycopg2://mlflow:{(folder / 'postgres_password').read_text()}@postgres:5432/mlflow"
    users = {
        "default_permission": "READ",
        "database_uri": f"{database}_auth",
        "admin_username": "admin",
        "admin_password": (folder / "mlflow_password").read_text(),
        # Checking a password takes a tenth of a second, which each request of a client would cost otherwise.
        "auth_cache_ttl_seconds": "60",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    settings = "".join(f"{key} = {value}\n" for key, value in users.items())
    derived = {"mlflow_database": database, "mlflow_auth": f"[mlflow]\n{settings}"}
    return created + [name for name, content in derived.items() if _create(folder / name, content)]


def _create(file: Path, content: str) -> bool:
    if file.exists():
        return False
    part = file.with_name(f"{file.name}.part")  # so that an interruption leaves no incomplete secret
    part.write_text(content)
    part.chmod(0o444)
    part.rename(file)
    return True


if __name__ == "__main__":
    main()
