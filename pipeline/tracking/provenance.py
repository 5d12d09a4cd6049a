"""The code that made a run."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path


@functools.cache
def commit() -> str:
    """Commit of the code at the first call, if it lies in a git checkout, else ""; "-dirty" if it was changed since."""
    root = Path(__file__).resolve().parent.parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _code() -> str:
    """Hash of the package's sources: identifies the code where no git checkout is, as in a submitted job's copy."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(file for package in ("pipeline", "sr_model") for file in (root / package).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
