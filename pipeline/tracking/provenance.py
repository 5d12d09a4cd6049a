"""Identification of the code, the user and the process that produce a run."""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import re
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def commit() -> str:
    """Return the git commit of the code, with "-dirty" if files differ from it, or "" outside a git checkout.

    The value is that of the first call in this process.
    """
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def code_hash(root: Path = _ROOT) -> str:
    """Return 12 hexadecimal digits that identify the Python files of `pipeline` and `sr_model`, sub-packages included.

    They identify the code where there is no git checkout, such as in the copy that a submitted job runs.
    """
    digest = hashlib.sha256()
    for file in sorted(file for package in ("pipeline", "sr_model") for file in (root / package).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def user_name() -> str:
    """Return the name of the user that runs this process; "user NUMBER" if the number has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # such as in some containers
        return f"user {os.getuid()}"


def has_ended(process: str) -> bool:
    """Tell whether a text is the id of a process of this machine that does not exist any more."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", process):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # such as PermissionError: the process belongs to another user
        return False
    return False
