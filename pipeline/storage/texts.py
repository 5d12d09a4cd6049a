"""Short texts for names and messages."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pipeline.storage.redaction import redact

_LONGEST_NAME = 100
"""Characters of a plain name; file systems allow 255 bytes, and callers append a step, a kind and an ending."""
_SURROGATES = re.compile("[\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that change the direction of writing, and surrogates."""


def fingerprint(value: Any) -> str:
    """Return 12 hexadecimal digits that identify a JSON value by its content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain_name(path: str) -> str:
    """Turn a relative path into a name that every store and MLflow accept.

    Two paths can have the same plain name if they differ only in replaced characters, so callers add a number.

    Returns:
        At most 100 letters, digits, ".", "_" and "-"; other characters become "_". The end of a longer name is
        replaced by a fingerprint of the path.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", path)
    if len(plain) <= _LONGEST_NAME:
        return plain
    mark = fingerprint(path)
    return f"{plain[: _LONGEST_NAME - len(mark) - 1]}-{mark}"


def unicode_name(name: str) -> str:
    r"""Return a file's name with each byte that is not UTF-8 as an escape sequence, such as "caf\xe9.png".

    Python gives such a byte as a lone surrogate, which neither JSON nor Arrow nor a terminal accepts.
    """
    return _SURROGATES.sub(_escape, name)


def printable(text: str) -> str:
    """Return a text with every character that a terminal would not show as text as an escape sequence."""
    return _UNPRINTABLE.sub(_escape, text)


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Return the text of an error, shortened to `limit` characters.

    Line breaks, unprintable characters and the secrets of URLs are removed or replaced.
    """
    return printable(" ".join(redact(str(error)).split()))[:limit]


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: the byte is code - 0xDC00
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()
