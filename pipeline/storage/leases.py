"""A lock on a folder in an object store: an object that its holder renews, and that others may take when it does not.

Stores differ in what they do for requests with conditions, so a holder writes its object, waits, and reads it again: of
two commands that start together, the last writer holds the folder.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from pydantic import TypeAdapter

from pipeline.storage import documents
from pipeline.storage.locations import locate

LOCK = ".lock"
"""Name of the file that names the holder of a folder."""
LEASE_S = 60.0
"""Seconds without a renewal after which a holder counts as dead."""
_RENEW_S = 5.0
_POLL_S = 1.0
_SETTLE_S = 0.5
"""Seconds between writing a lock and reading it again; longer than a request to a store usually takes."""


@dataclass(frozen=True)
class Holder:
    """The command that holds a folder: the content of the lock."""

    command: str
    process: int
    host: str
    since: str
    """Local time of the start."""
    token: str = ""
    """Distinguishes holders in an object store."""
    renewals: int = 0

    def __str__(self) -> str:
        return f"{self.command} (process {self.process} on {self.host}, since {self.since})"

    @property
    def is_dead(self) -> bool:
        """True if it surely does not run: it ran on this machine, and its process is gone."""
        if self.host != platform.node():
            return False
        if self.process == os.getpid():
            return True
        with suppress(PermissionError):
            try:
                os.kill(self.process, 0)
            except ProcessLookupError:
                return True
        return False


def this_process(command: str) -> Holder:
    """Describe this process as the holder of a folder."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return Holder(command, os.getpid(), platform.node(), since, uuid4().hex)


@contextmanager
def lease(url: str, command: str) -> Iterator[Holder | None]:
    """Hold a folder in an object store while the block runs, and renew the lock in a thread.

    A holder that died is found at once on the same machine, and otherwise after `LEASE_S` seconds without a renewal. If
    another command takes the folder, because this process was frozen for so long, this process gets SIGINT, as from
    Ctrl-C.

    Args:
        url: URL of the folder.
        command: how this command is called, for the message of another one.

    Yields:
        None, or the other command that holds the folder.

    Raises:
        OSError: if the store cannot be used.
    """
    lock, own = f"{url.rstrip('/')}/{LOCK}", this_process(command)
    other = _wait_for_holder(lock)
    if other is None:
        documents.write_document(lock, own)
        time.sleep(_SETTLE_S)
        found = _read(lock)
        other = found if found and found.token != own.token else None
    if other:
        yield other
        return
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(lock, own, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield None
    finally:
        ended.set()
        thread.join(1)
        _release(lock, own)


def _wait_for_holder(lock: str) -> Holder | None:
    """Return the holder if it lives; wait for a sign of life or the end of its lease."""
    found = first = _read(lock)
    end, told = time.monotonic() + LEASE_S, False
    while found and not found.is_dead and time.monotonic() < end:
        if found != first:
            return found
        if not told:
            told = True
            print(f"{lock} names {found}: waiting up to {LEASE_S:.0f} s to see whether it runs", file=sys.stderr)
        time.sleep(_POLL_S)
        found = _read(lock)
    return None


def _renew(lock: str, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_S):
        with suppress(OSError):  # others cannot take a folder in a store that cannot be reached
            found = _read(lock)
            if found and found.token != own.token:
                message = f"error: {lock} is held by {found}, because this command did not renew it in time"
                print(message, file=sys.stderr, flush=True)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # ends its waiting, too
                return
            own = replace(own, renewals=own.renewals + 1)
            documents.write_document(lock, own)


def _read(lock: str) -> Holder | None:
    return documents.read_expendable(lock, Holder)


def _release(lock: str, own: Holder) -> None:
    """Remove the lock without retries, because a command may end for the very reason that its store is away."""
    fs, path = locate(lock)
    with suppress(Exception):  # a lock that stays is taken by the next command
        if TypeAdapter(Holder).validate_json(fs.cat_file(path)).token == own.token:
            fs.rm_file(path)
