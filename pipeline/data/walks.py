"""Find the files below a folder: one after another on a disk, and many prefixes at a time in an object store."""

from __future__ import annotations

import inspect
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, NamedTuple, TypeVar

import fsspec

from pipeline import storage
from pipeline.data.left_out import LeftOut, LeftOutKind, is_system

T = TypeVar("T")
R = TypeVar("R")

THREADS = 32
"""Requests, or archives and tables, that a process lists at the same time."""
_ENOUGH = 4 * THREADS
"""Folders that keep all threads busy."""
_TRIED, _SPARSE = 32, 500
"""Folders after which those with fewer files on average are not listed one by one any more."""
_TOGETHER = 5000
"""Files that folders which are listed together should have on average, which takes five requests."""

File = tuple[str, dict[str, Any]]
"""Path of a file below the folder, and its details."""


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads that all listings of this process share. A task in them never waits for another one."""
    return ThreadPoolExecutor(THREADS, "listing")


def in_parallel(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """Call a function on several values in the threads of listings, and yield the results in the order of the values.

    The function must not use these threads itself. Its first exception is raised, and calls that wait are dropped.
    """
    calls = deque(_threads().submit(function, value) for value in values)
    try:
        while calls:
            yield calls.popleft().result()
    finally:
        for call in calls:
            call.cancel()


def walk_local(root: str, depth: int | None, extensions: tuple[str, ...]) -> Iterator[File | LeftOut]:
    """Find the files below a local folder.

    Args:
        root: absolute path of the folder.
        depth: levels of folders to search; None for all.
        extensions: endings of images, without which nothing that is no file is worth a reason of its own.
    """
    folders = [("", 1)]
    while folders:
        folder, level = folders.pop()
        try:
            entries = sorted(os.scandir(f"{root}/{folder}" if folder else root), key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise
            yield LeftOut(folder, LeftOutKind.UNUSABLE, f"cannot be listed: {error.strerror}")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if is_system(entry.name):
                    yield LeftOut(name, LeftOutKind.SYSTEM)
                elif entry.is_dir(follow_symlinks=False):
                    if depth is None or level < depth:
                        folders.append((name, level + 1))
                elif entry.is_dir():
                    yield LeftOut(name, LeftOutKind.LINKED_FOLDER)
                elif entry.is_file():
                    details = entry.stat()
                    yield name, {"size": details.st_size, "mtime": details.st_mtime}
                elif name.lower().endswith(extensions):
                    what = "is a link to nothing" if entry.is_symlink() else "is no regular file"
                    yield LeftOut(name, LeftOutKind.UNUSABLE, what)
                else:
                    yield LeftOut(name, LeftOutKind.OTHER_TYPE)
            except FileNotFoundError:
                continue  # another process has removed it meanwhile
            except OSError as error:
                yield LeftOut(name, LeftOutKind.UNUSABLE, f"cannot be read: {error.strerror}")


def walk_store(fs: fsspec.AbstractFileSystem, url: str, root: str, depth: int | None) -> Iterator[list[File] | LeftOut]:
    """Find the files below a folder of any file system, as `walk_local` does, many together and in any order.

    An object store lists a prefix 1,000 names a request, one request after another. So its folders are listed in
    parallel, each by itself, which also divides one that holds most of the files. If folders have few files each, a
    request for every folder would be too many: as soon as there are folders enough for all threads, neighbours are
    listed together, with everything below them.

    Args:
        fs: the file system.
        url: the source, whose operations are retried.
        root: path of the folder in `fs`.
        depth: levels of folders to search; None for all.

    Raises:
        OSError: if the folder does not exist or cannot be listed.
    """
    root = root.rstrip("/")
    start = len(root) + 1 if root else 0
    store = _Store(fs, url)
    if not fs.async_impl:  # it may not be safe in several threads
        yield [(info["name"][start:], info) for info in store.find(root, depth)]
        return
    waiting, running = deque([_Folder(root, 1)]), set[Future[_Content]]()
    listed = files = 0
    try:
        while waiting or running:
            while waiting and len(running) < THREADS:
                sparse = listed >= _TRIED and files < _SPARSE * listed
                if depth is None and sparse and len(waiting) >= _ENOUGH and store.finds_prefixes:
                    together = max(_TOGETHER * listed // max(files, listed), 1)
                    running.add(_threads().submit(store.find_all, _neighbours(waiting, together)))
                else:
                    running.add(_threads().submit(store.list_folder, waiting.popleft()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                content = future.result()
                listed, files = listed + 1, files + len(content.files)
                yield [(info["name"][start:], info) for info in content.files]
                for folder in content.folders:
                    if is_system(folder.path.rpartition("/")[2]):
                        yield LeftOut(folder.path[start:], LeftOutKind.SYSTEM)
                    elif depth is None or folder.level <= depth:
                        waiting.append(folder)
    finally:
        for future in running:
            future.cancel()


class _Folder(NamedTuple):
    path: str
    level: int
    """Its level below the source, whose own is 1."""


class _Content(NamedTuple):
    files: list[dict[str, Any]]
    """Details of files."""
    folders: list[_Folder]


def _neighbours(waiting: deque[_Folder], most: int) -> tuple[str, set[str]]:
    """Take the first folder and those beside it that begin alike.

    Args:
        waiting: folders, those in one folder sorted and beside each other.
        most: number of folders to take at most.

    Returns:
        The path with which all of them begin, and their paths.
    """
    parent = waiting[0].path.rpartition("/")[0]
    several = itertools.islice(waiting, most + 1)
    beside = list(itertools.takewhile(lambda folder: folder.path.rpartition("/")[0] == parent, several))
    first, last = beside[0].path, beside[-1].path
    length = len(os.path.commonprefix([first, last])) + 1  # noqa: RUF071
    taken = [folder.path for folder in beside if folder.path.startswith(first[:length])]
    if len(first) < length:  # many more folders may begin with this one's whole name
        taken = [first]
    for _ in taken:
        waiting.popleft()
    return first[:length], set(taken)


class _Store:
    """The requests of a walk, which are retried one by one.

    Args:
        fs: the file system.
        url: the source.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, url: str) -> None:
        self._fs, self._url = fs, url
        self.finds_prefixes = "prefix" in inspect.signature(getattr(fs, "_find", fs.find)).parameters
        """True if the file system can find the files whose paths begin with a given text."""

    def list_folder(self, folder: _Folder) -> _Content:
        """List the files and folders in one folder."""
        path, level = folder
        try:
            entries = storage.with_retries(self._url, lambda: self._fs.ls(path, detail=True))
        except FileNotFoundError:
            if level == 1:
                raise
            return _Content([], [])  # it has been removed meanwhile
        folders = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
        if path in folders:  # a key has two slashes in a row, which is a folder without a name
            return _Content(self.find(path, None), [])
        files = [entry for entry in entries if _is_file(entry) and entry["name"] != path]
        return _Content(files, [_Folder(name, level + 1) for name in sorted(folders)])

    def find(self, path: str, depth: int | None) -> list[dict[str, Any]]:
        """Find all files below a folder."""
        found = storage.with_retries(self._url, lambda: self._fs.find(path, maxdepth=depth, detail=True))
        return [info for name, info in found.items() if _is_file(info) and name != path]

    def find_all(self, wanted: tuple[str, set[str]]) -> _Content:
        """Find all files below several folders that begin alike."""
        begin, folders = wanted
        if len(folders) == 1:
            return _Content(self.find(next(iter(folders)), None), [])
        parent, _, prefix = begin.rpartition("/")
        found = storage.with_retries(self._url, lambda: self._fs.find(parent, prefix=prefix, detail=True))
        end = len(parent) + 1
        own = (info for name, info in found.items() if f"{parent}/{name[end:].partition('/')[0]}" in folders)
        return _Content([info for info in own if _is_file(info) and info["name"] not in folders], [])


def _is_file(entry: dict[str, Any]) -> bool:
    """Tell whether an entry is a file; consoles store an object "FOLDER/" for a folder."""
    return entry["type"] == "file" and not entry["name"].endswith("/")
