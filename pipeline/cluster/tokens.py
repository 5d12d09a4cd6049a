"""Keep the token of this user's local Ray from other users of the machine."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105
"""File in which Ray keeps the token, unless an environment variable names another place."""


def protect_token() -> None:
    """Create the file with this user's token if there is none, and take the rights of other users to it away.

    Ray itself would create it with the permissions of the umask. Whoever reads it can run programs as this user.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path(TOKEN_FILE).expanduser()
    with suppress(OSError):  # Ray says what is wrong with the home folder
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            _create(file)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _create(file: Path) -> None:
    """Write a new token in one step, because another process may do the same or read the file at any time."""
    descriptor, part = tempfile.mkstemp(dir=file.parent)  # mode 600
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_hex(32))
        try:
            os.link(part, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            Path(part).replace(file)
    finally:
        Path(part).unlink(missing_ok=True)
