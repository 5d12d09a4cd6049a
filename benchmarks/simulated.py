"""An object store in this process, behind fsspec, that is as slow as a real one.

A request takes a latency, then its bytes come at the bandwidth of one stream. A listing takes a request for each 1,000
names, one after another, as S3's does. Every n-th request can fail, as when a store asks to slow down.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

PAGE = 1000
"""Names in an answer to a listing."""


@dataclass
class Objects:
    """The objects of a simulated store, and how it behaves."""

    latency: float = 0.0
    """Seconds until a request is answered."""
    bandwidth: float = float("inf")
    """Bytes per second of each request."""
    fail_every: int = 0
    """Number of requests of which one fails; 0 for none."""
    keys: list[str] = field(default_factory=list)
    """Names in order, without a slash at the beginning."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Contents of objects; others hold their own names."""
    requests: list[str] = field(default_factory=list)
    """Kind of each request that was answered."""
    busy: int = 0
    """Requests that are being answered."""
    most_busy: int = 0

    def put(self, key: str, content: bytes) -> None:
        """Store an object."""
        if key not in self.contents:
            insort(self.keys, key)
        self.contents[key] = content

    def get(self, key: str) -> bytes:
        """Return an object's content."""
        place = bisect_left(self.keys, key)
        if self.keys[place : place + 1] != [key]:
            raise FileNotFoundError(key)
        return self.contents.get(key, key.encode())

    def below(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        """Find what a listing of a prefix returns: objects, and prefixes that end with the delimiter."""
        place = bisect_left(self.keys, prefix)
        while place < len(self.keys) and self.keys[place].startswith(prefix):
            key = self.keys[place]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                yield {"name": key[:end], "size": 0, "type": "directory"}
                place = bisect_left(self.keys, f"{key[:end]}{chr(ord(delimiter) + 1)}")
            else:
                yield self.describe(key)
                place += 1

    def describe(self, key: str) -> dict[str, Any]:
        """Return the details of an object as a store states them."""
        content = self.get(key)
        return {"name": key, "size": len(content), "type": "file", "ETag": f'"{hash(content) & (2**64 - 1):032x}"'}

    async def answer(self, kind: str, size: int = 0) -> None:
        """Wait as long as a request takes, or fail."""
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        try:
            await asyncio.sleep(self.latency + size / self.bandwidth)
            self.requests.append(kind)
            if self.fail_every and len(self.requests) % self.fail_every == 0:
                raise OSError("503 SlowDown: Please reduce your request rate")
        finally:
            self.busy -= 1


class SimulatedStore(AsyncFileSystem):  # type: ignore[misc]
    """Serves `objects`, which belong to the class because fsspec makes the instances."""

    protocol = "simulated"
    objects = Objects()

    async def _pages(self, prefix: str, delimiter: str) -> list[dict[str, Any]]:
        found = self.objects.below(prefix, delimiter)
        entries: list[dict[str, Any]] = []
        following = next(found, None)
        while True:
            await self.objects.answer("list")
            page = [] if following is None else [following, *itertools.islice(found, PAGE - 1)]
            entries += page
            if (following := next(found, None)) is None:
                return entries

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        key = self._strip_protocol(path).strip("/")
        entries = await self._pages(f"{key}/" if key else "", "/")
        if not entries:
            entries = [await self._info(key)]
        return entries if detail else [entry["name"] for entry in entries]

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, prefix: str = "", **kwargs: Any
    ) -> Any:
        if maxdepth or withdirs:
            return await super()._find(path, maxdepth=maxdepth, withdirs=withdirs, **kwargs)
        key = self._strip_protocol(path).strip("/")
        entries = await self._pages(f"{key}/{prefix}" if key else prefix, "")
        found = {entry["name"]: entry for entry in entries}
        return found if kwargs.get("detail") else list(found)

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        key = self._strip_protocol(path).strip("/")
        await self.objects.answer("head")
        try:
            return self.objects.describe(key)
        except FileNotFoundError:
            if next(self.objects.below(f"{key}/" if key else "", "/"), None) is None:
                raise
            return {"name": key, "size": 0, "type": "directory"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        content = self.objects.get(self._strip_protocol(path).strip("/"))[start:end]
        await self.objects.answer("get", len(content))
        return content

    async def _get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(await self._cat_file(rpath))

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        await self.objects.answer("put", len(value))
        self.objects.put(self._strip_protocol(path).strip("/"), value)

    async def _put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        await self._pipe_file(rpath, Path(lpath).read_bytes())

    async def _rm_file(self, path: str, **_: Any) -> None:
        await self.objects.answer("delete")
        key = self._strip_protocol(path).strip("/")
        self.objects.get(key)
        self.objects.keys.remove(key)
        self.objects.contents.pop(key, None)

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        await self.objects.answer("copy")
        first, second = (self._strip_protocol(path).strip("/") for path in (path1, path2))
        self.objects.put(second, self.objects.get(first))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        return fsspec.spec.AbstractBufferedFile(self, path, mode, block_size or "default", **kwargs)


def serve(objects: Objects) -> None:
    """Serve objects at simulated:// URLs in this process."""
    fsspec.register_implementation("simulated", SimulatedStore, clobber=True)
    SimulatedStore.clear_instance_cache()
    SimulatedStore.objects = objects


def photo_keys(count: int, folders: Sequence[int]) -> list[str]:
    """Return the sorted names of photographs in folders of folders, such as "photos/03/017/000123.png".

    Args:
        count: number of names.
        folders: number of folders on each level.
    """
    keys = []
    for number in range(count):
        parts, rest = [], number
        for size in folders:
            parts.append(f"{rest % size:03}")
            rest //= size
        keys.append("/".join(["photos", *parts, f"{number:08}.png"]))
    return sorted(keys)
