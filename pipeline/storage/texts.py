"""Short texts for names and messages."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any


def fingerprint(value: Any) -> str:
    """Return 12 hexadecimal digits that identify a JSON value by its content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain_name(path: str) -> str:
    """Turn a relative path into a name that every store and MLflow accept: letters, digits, ".", "_" and "-"."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path)


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Return the text of an error without line breaks, shortened to `limit` characters."""
    return " ".join(str(error).split())[:limit]
