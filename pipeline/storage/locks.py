"""A lock on a folder, so that two commands do not write to it at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.storage import documents
from pipeline.storage.locations import locate
from pipeline.storage.retries import is_local

_LOCK = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors of file systems without locks."""


class HeldError(OSError):
    """Another command works in the folder. The text is one sentence that names both and says what to do."""


@dataclass(frozen=True)
class _Holder:
    """The command that holds a folder: the content of the lock file."""

    command: str
    process: int
    host: str
    since: str
    """Local time of the start."""


@contextmanager
def hold(folder: str, command: str) -> Iterator[None]:
    """Keep other commands out of a local folder while the block runs; the folder is created if it does not exist.

    The operating system releases the lock when this process ends, however it ends. Processes that this one starts
    neither need nor inherit the lock. A folder in an object store is not locked, and on a file system without locks a
    warning on stderr says so.

    Args:
        folder: path or URL, such as the home of all outputs.
        command: how the command is called, for the message of another one.

    Raises:
        HeldError: if another command holds the folder.
        OSError: if the folder cannot be written to. The text is one sentence.
    """
    fs, path = locate(folder)
    if not is_local(fs):
        yield
        return
    # filelock is of no use here: without flock it creates a file instead, which stays when the process is killed.
    descriptor = _open(path)
    try:
        _lock(descriptor, path)
        _write(descriptor, path, command)
        yield
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        return os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from None


def _write(descriptor: int, path: str, command: str) -> None:
    holder = _Holder(command, os.getpid(), platform.node(), datetime.now().astimezone().isoformat(" ", "seconds"))
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, TypeAdapter(_Holder).dump_json(holder, indent=1) + b"\n", 0)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str, error: OSError) -> OSError:
    return OSError(
        f"cannot write to the home {path}: {error.strerror}; expected a folder with room that you may write to, such "
        "as --home FOLDER"
    )


def _lock(descriptor: int, path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise HeldError(
                f"{path} is in use by {_holder(path)}: wait until it ends, or choose another --home"
            ) from None
        if error.errno not in _NO_LOCKS:
            raise
        documents.report_once(f"the file system of {path} has no locks, so start no other command with this home")


def _holder(path: str) -> str:
    """Describe the command that holds a folder."""
    known = documents.read_expendable(f"{path}/{_LOCK}", _Holder)
    if known is None:
        return "another command"
    return f"{known.command} (process {known.process} on {known.host}, since {known.since})"
