"""Find the finished shards of other patch sets, and copy them instead of making them again."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data import parquet, patchset
from pipeline.data.manifest import ImageRecord, Shard
from pipeline.data.pages import metadata_length
from pipeline.data.walks import in_parallel
from pipeline.settings import Preprocess, UserError

_FOOTER = 2**18
"""Bytes at the end of a shard that are requested first; the metadata of a shard of 128 MB have about 70,000."""
_AT_ONCE = 8
"""Patch sets whose indexes are read at the same time."""
ETAGS = "index/etags.parquet"


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that exists, and what is recorded of it; empty in a patch set that was interrupted."""

    url: str
    bytes: int = 0
    sha256: str = ""
    etag: str = ""
    """ETag of its content, as the store reported it; empty for a local file."""


@dataclass(frozen=True)
class _SettingsOnly:
    """The part of a manifest that says which shards a set can share."""

    settings: Preprocess


def find_finished(home: str, url: str, settings: Preprocess, files: Collection[str]) -> dict[str, FinishedShard]:
    """Find the shards of a new patch set that already exist, in its own folder or in that of another one.

    Another patch set is not listed: its manifest says whether it can share a shard, and its index names them. Only
    folders without a manifest are listed, which interrupted runs have left.

    Args:
        home: path or URL of the folder of all patch sets.
        url: path or URL of the new one, whose own shards take precedence.
        settings: its settings.
        files: names of its shards.

    Returns:
        Each shard that was found, by its name.
    """
    wanted = frozenset(files)
    own = url.rsplit("/", 1)[-1]
    scale = own.partition("-")[0]
    others = [name for name in storage.names(home) if name.startswith(f"{scale}-") and name != own]
    found = {file: FinishedShard(f"{url}/{file}") for file in wanted.intersection(storage.names(url))}
    for start in range(0, len(others), _AT_ONCE):
        missing = wanted.difference(found)
        if not missing:
            break
        search = partial(_shards_of, settings=settings, wanted=missing)
        for shards in in_parallel(search, [f"{home}/{name}" for name in others[start : start + _AT_ONCE]]):
            found.update(shards)
    return found


def _shards_of(url: str, settings: Preprocess, wanted: frozenset[str]) -> dict[str, FinishedShard]:
    known = storage.read_expendable(patchset.manifest_url(url), _SettingsOnly)
    if known and (known.settings.degradation, known.settings.max_side) != (settings.degradation, settings.max_side):
        return {}
    if known:
        with suppress(UserError, storage.DamagedFileError):
            shards = list(patchset.find_shards(url, wanted))
            etags = _read_etags(url, wanted) if shards else {}
            return {
                file: FinishedShard(f"{url}/{file}", size, sha256, etags.get(file, "")) for file, size, sha256 in shards
            }
    return {file: FinishedShard(f"{url}/{file}") for file in storage.names(url) if file in wanted}


def record_etags(url: str) -> None:
    """Write down what the store reports of a finished patch set's shards, so that they can be copied unread.

    Raises:
        OSError: if the folder cannot be listed, or the file cannot be stored.
    """
    found = {name: file.etag for name, file in storage.stored_files(url).items() if file.etag}
    if found:
        with storage.create(f"{url}/{ETAGS}") as part:
            pq.write_table(pa.table({"file": list(found), "etag": list(found.values())}), part)


def _read_etags(url: str, wanted: frozenset[str]) -> dict[str, str]:
    content = storage.read(f"{url}/{ETAGS}")
    if content is None:
        return {}
    try:
        table = pq.read_table(pa.BufferReader(content))
        table = table.filter(pc.is_in(table["file"], value_set=pa.array(wanted, pa.string())))
        return dict(zip(table["file"].to_pylist(), table["etag"].to_pylist(), strict=True))
    except (pa.ArrowException, LookupError, ValueError, OSError):  # it is damaged, so the shards are read instead
        return {}


def reuse_shard(name: str, url: str, finished: FinishedShard) -> Shard | None:
    """Use a finished shard if it is undamaged: as it is, or as a copy that never leaves its object store.

    It is undamaged if size and checksum in the store are those that were recorded when it was made. Without such a
    record, the whole shard is read and compared with its own checksums.

    Args:
        name: name of the shard.
        url: path or URL of the new file, which may be that of the finished one.
        finished: the finished shard.

    Returns:
        The shard, or None if it is damaged or gone.

    Raises:
        OSError: if the storage fails.
    """
    with suppress(FileNotFoundError):
        if finished.etag and finished.url != url and storage.stored(finished.url) == (finished.bytes, finished.etag):
            shard = _read_footer(name, finished)
            if shard and storage.copy_stored(finished.url, url):
                return _checked(shard, url)
        with storage.local_copy(finished.url) as file:
            shard = parquet.read_shard(file, name, check=True)
            if shard is None or finished.url == url:
                return shard
            if not storage.copy_stored(finished.url, url):
                storage.copy(file, url)
            return _checked(shard, url)
    return None


def _checked(shard: Shard, url: str) -> Shard:
    size = storage.size(url)
    if size != shard.bytes:
        raise OSError(f"{url} has {size or 0} bytes after it was copied, expected {shard.bytes}")
    return shard


def _read_footer(name: str, finished: FinishedShard) -> Shard | None:
    """Return what a shard's footer says of it, for which one or two requests suffice; None if it is damaged."""
    size = finished.bytes
    try:
        tail = storage.read(finished.url, max(size - _FOOTER, 0), size) or b""
        length = metadata_length(tail)
        if length is None or length > size:
            return None
        if length > len(tail):
            tail = storage.read(finished.url, size - length, size) or b""
        metadata = pq.read_metadata(pa.BufferReader(tail[-length:]))
        images = storage.parse_document(metadata.metadata[b"images"], list[ImageRecord], finished.url)
    except (pa.ArrowException, LookupError, TypeError, ValueError, storage.DamagedFileError):
        return None
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return Shard(name, rows, size, finished.sha256, images)
