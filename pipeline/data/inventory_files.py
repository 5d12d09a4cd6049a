"""The files of the inventory: what was found in each image that was read, by a hash of its place and version.

New results become a new file, so that saving does not depend on how much is known. At the end of an inventory, small
files are joined. Places themselves are not in the files, because the URLs of sources may have secrets.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from typing import Annotated
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pipeline import storage
from pipeline.data.inspected import FOUND_SCHEMA, InspectedImage, digests, found_rows
from pipeline.data.locations import identity
from pipeline.data.manifest import Count
from pipeline.data.random_numbers import Ints
from pipeline.data.rejection import Rejection
from pipeline.data.source_images import SourceImages
from pipeline.storage import printable

INSPECTION = 2
"""Version of how an image is inspected; a rejection by another version is not reused."""

_KEY = 16
"""Bytes of a key."""
_SCHEMA = pa.schema([("key", pa.binary(_KEY)), *FOUND_SCHEMA, ("inspection", pa.int32())])
_SAVE_EVERY_S = 30
_LARGE = 2**20
"""Rows of a file that is not joined with others."""


class InventoryFiles:
    """The results of earlier inventories, to which this one adds its own.

    A file that is damaged counts as missing; a line on stderr says so.

    Args:
        folder: path or URL of the files.

    Raises:
        OSError: if a file cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._rows = {name: _load(f"{folder}/{name}") for name in storage.names(folder) if name.endswith(".parquet")}
        self._new: list[InspectedImage] = []
        self._saved = time.monotonic()
        if not self._rows and len(older := _load_json(f"{folder}.json")):
            self._write(older)
        table = pa.concat_tables([_SCHEMA.empty_table(), *self._rows.values()]).combine_chunks()
        valid = pc.or_(pc.is_null(table["kind"]), pc.equal(table["inspection"], INSPECTION))
        self._table = table.filter(valid)
        self._keys = _words(digests(self._table["key"]))
        self._order = np.argsort(self._keys[:, 0])

    def find(self, images: SourceImages) -> Ints:
        """Return the row of each image among all known ones, -1 for one that is unknown or has changed."""
        keys = bytearray()
        for image in images:
            keys += _key(*identity(image.location), image.version)
        wanted = _words(np.frombuffer(keys, np.uint8).reshape(-1, _KEY))
        if not len(self._keys):
            return np.full(len(wanted), -1)
        place = np.searchsorted(self._keys[:, 0], wanted[:, 0], sorter=self._order)
        row = self._order[np.minimum(place, len(self._order) - 1)]
        found: Ints = np.where((self._keys[row] == wanted).all(1), row, -1)
        return found

    def take(self, rows: Ints) -> pa.Table:
        """Return rows of `FOUND_SCHEMA`."""
        return self._table.select(FOUND_SCHEMA.names).take(rows)

    def add(self, image: InspectedImage) -> None:
        """Keep the results of an image; they are saved within half a minute, or when `close` is called."""
        reason = image.rejected and replace(image.rejected, detail=printable(image.rejected.detail))
        self._new.append(replace(image, rejected=reason))
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()

    def close(self) -> None:
        """Save the last results, and join small files."""
        self._save()
        small = {name: table for name, table in self._rows.items() if len(table) < _LARGE}
        if len(small) > 1:
            self._write(pa.concat_tables(small.values()))
            for name in small:
                storage.remove(f"{self._folder}/{name}")

    def _save(self) -> None:
        if self._new:
            keys = [_key(*identity(image.location), image.version) for image in self._new]
            table = found_rows(self._new).add_column(0, _SCHEMA.field("key"), pa.array(keys, _SCHEMA.field("key").type))
            versions = pa.array([INSPECTION] * len(keys), pa.int32())
            self._write(table.append_column("inspection", versions))
        self._new, self._saved = [], time.monotonic()

    def _write(self, table: pa.Table) -> None:
        name = f"{uuid4().hex[:12]}.parquet"
        with storage.create(f"{self._folder}/{name}") as part:
            pq.write_table(table, part, compression="zstd", write_page_checksum=True)
        self._rows[name] = table


def _key(url: str, member: str, version: str) -> bytes:
    text = "\0\0".join((url, member, version))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_KEY).digest()


def _words(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(np.uint64).reshape(-1, _KEY // 8)


def _load(file: str) -> pa.Table:
    content = storage.read(file)
    if content is None:  # another command has joined it with others meanwhile
        return _SCHEMA.empty_table()
    try:
        return pq.read_table(pa.BufferReader(content), page_checksum_verification=True).cast(_SCHEMA)
    except (pa.ArrowException, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        storage.report_once(f"{file} is damaged ({storage.one_line(error, 200)}): its images are read again")
        return _SCHEMA.empty_table()


@dataclass(frozen=True)
class _Entry:
    """An entry of inventory.json, which older versions wrote."""

    name: str
    url: str
    version: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    width: Count
    height: Count
    bytes: Count
    rejected: Rejection | None
    member: str = ""
    inspection: int = 1


def _load_json(file: str) -> pa.Table:
    """Return what an older version has found; nothing if there is no such file."""
    entries = storage.read_expendable(file, list[_Entry], "all images are read again") or []
    columns = {
        "key": [_key(entry.url, entry.member, entry.version) for entry in entries],
        "sha256": [bytes.fromhex(entry.sha256) for entry in entries],
        "width": [entry.width for entry in entries],
        "height": [entry.height for entry in entries],
        "bytes": [entry.bytes for entry in entries],
        "kind": [entry.rejected and str(entry.rejected.kind) for entry in entries],
        "detail": [entry.rejected and entry.rejected.detail for entry in entries],
        "inspection": [entry.inspection for entry in entries],
    }
    return pa.Table.from_pydict(columns, schema=_SCHEMA)
