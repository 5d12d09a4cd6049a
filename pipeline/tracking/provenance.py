"""Identification of the code that produces a run."""

from __future__ import annotations

import functools
import hashlib
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
