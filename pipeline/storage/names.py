"""Names made from content."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any


def fingerprint(value: Any) -> str:
    """Name of a JSON-like value by its content: 12 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain_name(name: str) -> str:
    """A file's relative path as a name that any store and MLflow take."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The text of an error without line breaks, at most `limit` characters of it."""
    return " ".join(str(error).split())[:limit]
