"""Retries of operations on object stores: which errors are temporary, and how long to wait for them to pass."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TypeVar

import fsspec
import tenacity

from pipeline.storage.locations import locate
from pipeline.storage.texts import one_line

T = TypeVar("T")

PATIENCE_S = 90.0
"""Seconds for which an object store may be unavailable before an operation on it fails."""

_PERMANENT_ERRORS = (
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    NotImplementedError,
    ValueError,
)
_PERMANENT_ERROR_NAMES = re.compile("Credentials|Authentication|ParamValidation")
"""Parts of the class names of errors that the stores' own clients raise and that no retry can cure."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of errors for which there is no room."""
_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}
"""Numbers for errors raised without one: an OSError with such a number is of that class again."""


def with_retries(url: str, operation: Callable[[], T], expected: tuple[type[Exception], ...] = ()) -> T:
    """Run an operation on a file or folder, and retry it for `PATIENCE_S` while the object store is unavailable.

    An operation on a local file runs once.

    Args:
        url: path or fsspec URL that the operation works on.
        operation: what to run; it must be safe to run several times.
        expected: exceptions of the operation itself, which are neither retried nor changed.

    Returns:
        The value that the operation returned.

    Raises:
        OSError: if the operation fails on an object store; it names the URL.
    """
    fs, _ = locate(url)
    if is_local(fs):
        return operation()
    fs.invalidate_cache()  # another process may have written since
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: is_temporary(error) and not isinstance(error, expected)),
        stop=tenacity.stop_after_delay(PATIENCE_S),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
        reraise=True,
    )
    try:
        return retrying(operation)
    except expected:
        raise
    except Exception as error:  # the stores' clients have exception classes of their own
        number = next((number for kind, number in _NUMBERS.items() if isinstance(error, kind)), errno.EIO)
        reason = one_line(str(getattr(error, "strerror", None) or error), 1000)
        raise OSError(getattr(error, "errno", None) or number, reason or type(error).__name__, url) from error


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Tell whether a filesystem is that of this machine."""
    return "file" in fs.protocol


def is_temporary(error: BaseException) -> bool:
    """Tell whether an operation that raised this may succeed later: nothing is missing, forbidden, full or wrong."""
    disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
    permanent = isinstance(error, _PERMANENT_ERRORS) or bool(_PERMANENT_ERROR_NAMES.search(type(error).__name__))
    return isinstance(error, Exception) and not permanent and not disk_full
