"""A lock on a folder, so that two commands do not write to it at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.storage import documents
from pipeline.storage.leases import LOCK, Holder, lease, this_process
from pipeline.storage.locations import locate
from pipeline.storage.retries import is_local

_HELD = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors of file systems without locks."""


class LockedError(OSError):
    """Another command works in the folder. The text is one sentence that names both and says what to do."""


@contextmanager
def lock_folder(folder: str, command: str) -> Iterator[None]:
    """Keep other commands out of a folder while the block runs; a local folder is created if it does not exist.

    The operating system releases the lock of a local folder when this process ends, however it ends. Processes that
    this one starts neither need nor inherit the lock. On a file system without locks, a warning on stderr says so. In
    an object store, the lock is an object that this process renews (`pipeline.storage.leases`).

    Args:
        folder: path or URL, such as the home of all outputs.
        command: how the command is called, for the message of another one.

    Raises:
        LockedError: if another command holds the folder.
        OSError: if the folder cannot be written to. The text is one sentence.
    """
    fs, path = locate(folder)
    if not is_local(fs):
        with lease(folder, command) as other:
            if other:
                raise LockedError(_refusal(folder, str(other)))
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
        return os.open(f"{path}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from None


def _write(descriptor: int, path: str, command: str) -> None:
    holder = this_process(command)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, TypeAdapter(Holder).dump_json(holder, indent=1) + b"\n", 0)
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
            known = documents.read_expendable(f"{path}/{LOCK}", Holder)
            raise LockedError(_refusal(path, str(known or "another command"))) from None
        if error.errno not in _NO_LOCKS:
            raise
        documents.report_once(f"the file system of {path} has no locks, so start no other command with this home")


def _refusal(folder: str, holder: str) -> str:
    return f"{folder} is in use by {holder}: wait until it ends, or choose another --home"
