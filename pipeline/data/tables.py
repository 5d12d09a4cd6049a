"""List the images that a table names: a Parquet or CSV file of URLs, such as an S3 Inventory.

pyarrow is imported where a table is read, because most commands read none.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

from pipeline import storage
from pipeline.data.images import EXTENSIONS
from pipeline.data.left_out import LeftOut, LeftOutKind, Leftovers, reason_to_leave_out
from pipeline.data.listing import Listing, describe
from pipeline.data.locations import FileLocation
from pipeline.data.source_images import SourceImage, SourceImages
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import one_line, printable

ENDINGS = (".parquet", ".csv", ".csv.gz")
"""Lower-case endings of tables."""
_ROLES: dict[str, tuple[str, ...]] = {
    "url": ("url",), "bucket": ("bucket",), "key": ("key",), "size": ("bytes", "size"),
    "version": ("etag", "e_tag", "version"), "name": ("name",), "latest": ("is_latest",),
    "deleted": ("is_delete_marker",),
}  # fmt: skip
"""The values that the pipeline reads from a table, and the columns that may hold each of them; the first one that is
there is used."""
_EXPECTED = (
    "expected a column url, and if possible bytes, etag (or version) and name, or an S3 Inventory with bucket and key"
)
_ROWS, _BLOCK = 2**16, 2**24
"""Rows of a Parquet file and bytes of a CSV file that are read at a time."""
_WEB = ("http://", "https://")
_FROM_WEB = (*_WEB, "s3://", "gs://")
"""Beginnings of URLs in a table from the web, whose author must not choose files of the machines that read it."""
_LONGEST_LINE = 2**20
"""Characters of a line that are read at once, so that a small compressed file cannot fill the memory."""
_SAMPLE = 100
"""Rows from which the columns of an S3 Inventory without a header follow."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ETAG = re.compile(r"[0-9a-f]{32}(-\d+)?")
_Row = tuple[Any, ...]
"""Values of a row in the order of `_ROLES`; None where there is no column."""


def is_table(source: str) -> bool:
    """Tell by its ending if a path, URL or pattern names a table."""
    return _path(source).endswith(ENDINGS)


def _path(source: str) -> str:
    """Return the part of a source that has its ending, in lower case."""
    on_web = source.startswith(_WEB)
    return (re.split("[?#]", source, maxsplit=1)[0] if on_web else source).lower()


def list_table(source: str, extensions: tuple[str, ...] = EXTENSIONS) -> Listing:
    """List the images that a Parquet or CSV file names.

    Every URL in a column `url` is taken for an image. An S3 Inventory names all files of a bucket, so those that are no
    images by their names are left out, like old versions and deleted files. In CSV, it has no header; size and ETag
    are then found by their form.

    An image is named by the column `name`, else by its key, else by host and path of its URL. If a name repeats, the
    later ones get a fingerprint of their URL. An image without `etag` or `version` changes when the table does.

    Args:
        source: path or URL of the table.
        extensions: lower-case endings of the files of an inventory that are taken for images.

    Raises:
        UserError: if the table does not exist, cannot be read, has no row or lacks a column, or a row has no URL.
    """
    import pyarrow as pa

    shown = storage.redact(printable(source))
    table = absolute_path(source)
    left_out = Leftovers()
    try:
        with storage.local_copy(table) as file:
            stamp = storage.sha256(file)[:12]
            ending = _path(source).rpartition(".")[2]
            rows = _parquet_rows(file) if ending == "parquet" else _csv_rows(file, compressed=ending == "gz")
            schemes = _FROM_WEB if source.startswith(_WEB) else ("",)
            images = SourceImages.of(_images(rows, stamp, extensions, schemes, left_out)).sorted()
    except FileNotFoundError:
        raise UserError(f"source {shown} does not exist, expected a table of URLs") from None
    except _TableError as error:
        raise UserError(f"source {shown} {error}") from None
    except (pa.ArrowException, OSError, ValueError, csv.Error, EOFError, zlib.error, ImportError) as error:
        raise UserError(f"source {shown} cannot be read: {one_line(error)}, expected a table of URLs") from None
    return Listing(source, _with_unique_names(images, left_out), left_out.entries())


class _TableError(Exception):
    """A table is not as expected; the text completes a sentence that begins with its name."""


def _parquet_rows(file: Path) -> Iterator[_Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        columns = _columns(table.schema_arrow.names)
        for batch in table.iter_batches(_ROWS, columns=list(columns.values())):
            yield from _rows({role: batch.column(name).to_pylist() for role, name in columns.items()})


def _csv_rows(file: Path, compressed: bool) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    opener = gzip.open if compressed else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as text:
        lines = iter(lambda: text.readline(_LONGEST_LINE), "")
        sample = list(itertools.islice(csv.reader(lines), _SAMPLE))
    if not sample:
        raise _TableError(f"is empty, {_EXPECTED}")
    inventory = _inventory_columns(sample)
    names = [f"{number}" for number in range(len(sample[0]))] if inventory else sample[0]
    columns = inventory or _columns(names)
    stream = pa.input_stream(str(file), compression="gzip" if compressed else None)
    reader = pa_csv.open_csv(
        stream,
        pa_csv.ReadOptions(column_names=names if inventory else None, block_size=_BLOCK),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=list(columns.values())
        ),
    )
    with closing(stream), reader:
        for batch in reader:
            values = {role: batch.column(name).to_pylist() for role, name in columns.items()}
            if inventory:
                values["key"] = [unquote_plus(key) for key in values["key"]]  # as S3 writes them in CSV
            yield from _rows(values)


def _rows(values: Mapping[str, Sequence[Any]]) -> Iterator[_Row]:
    absent = [None] * len(next(iter(values.values())))
    return zip(*(values.get(role, absent) for role in _ROLES), strict=True)


def _columns(names: Sequence[str]) -> dict[str, str]:
    """Return the names of the columns by their role, from a table's header."""
    plain = {name.strip().lower(): name for name in reversed(names)}
    found = {
        role: next((plain[alias] for alias in aliases if alias in plain), None) for role, aliases in _ROLES.items()
    }
    columns = {role: name for role, name in found.items() if name is not None}
    for name in columns.values():
        if list(names).count(name) > 1:
            raise _TableError(f"has several columns {name!r}, expected one")
    if "url" in columns:
        return {role: name for role, name in columns.items() if role in ("url", "size", "version", "name")}
    if "bucket" not in columns or "key" not in columns:
        raise _TableError(f"has the columns {one_line(', '.join(names), 200)}, {_EXPECTED}")
    return columns


def _inventory_columns(sample: Sequence[Sequence[str]]) -> dict[str, str] | None:
    """Return the numbers of an S3 Inventory's columns by their role; None if the CSV file is none."""
    columns = list(zip(*sample, strict=False))
    first = [name.strip().lower() for name in sample[0]]
    has_header = first[:2] == ["bucket", "key"] or "url" in first
    if len(columns) < 2 or has_header or len(set(columns[0])) > 1 or not _BUCKET.fullmatch(columns[0][0]):
        return None

    def all_match(number: int, pattern: str) -> bool:
        return any(columns[number]) and all(not value or re.fullmatch(pattern, value) for value in columns[number])

    found = {"bucket": 0, "key": 1}
    if len(columns) > 4 and all_match(3, "true|false") and all_match(4, "true|false"):
        found |= {"latest": 3, "deleted": 4}
    for role, pattern in (("size", r"\d+"), ("version", _ETAG.pattern)):
        number = next((number for number in range(2, len(columns)) if all_match(number, pattern)), None)
        if number is not None:
            found[role] = number
    return {role: str(number) for role, number in found.items()}


def _images(
    rows: Iterator[_Row], stamp: str, extensions: tuple[str, ...], schemes: tuple[str, ...], left_out: Leftovers
) -> Iterator[SourceImage]:
    number = 0
    for number, (url, bucket, key, size, version, name, latest, deleted) in enumerate(rows, 1):
        if latest in (False, "false") or deleted in (True, "true"):
            continue
        if bucket and key:
            url, name = f"s3://{bucket}/{key}", key
            if reason := reason_to_leave_out(name, extensions):
                left_out.add(reason)
                continue
        elif not isinstance(url, str) or not (storage.is_url(url) or url.startswith("/")):
            raise _TableError(f"has {one_line(repr(url), 100)} in row {number}, expected a URL or an absolute path")
        elif not url.startswith(schemes):
            raise _TableError(
                f"names {one_line(repr(url), 100)} in row {number}, expected one of {', '.join(schemes)} in a table "
                "that comes from the web"
            )
        name = str(name or _name_of(url))
        details = {"size": _size(size, number), "ETag": _version(version, url) or stamp}
        yield describe(name, FileLocation(url), details)
    if not number:
        raise _TableError(f"has no row, {_EXPECTED}")


def _size(value: Any, number: int) -> int:
    if value in (None, ""):
        return 0
    try:
        size = int(value)
    except (TypeError, ValueError, OverflowError):
        size = -1
    if not 0 <= size < 2**63:
        raise _TableError(f"has {one_line(repr(value), 100)} bytes in row {number}, expected their number")
    return size


def _version(value: Any, url: str) -> str:
    """Return an image's version; an ETag of S3 is as a listing has it, so that either finds what the other has read."""
    text = "" if value is None else str(value)
    return f'"{text}"' if url.startswith("s3://") and _ETAG.fullmatch(text) else text


def _name_of(url: str) -> str:
    """Name an image by its URL, without anything that may be a secret."""
    if url.startswith(_WEB):
        parts = urlsplit(url)
        return f"{parts.hostname}{unquote(parts.path)}"
    plain = storage.redact(url) if re.search("[@?#;]", url) else url
    return plain.rpartition("://")[2].lstrip("/")


def _with_unique_names(images: SourceImages, left_out: Leftovers) -> SourceImages:
    """Name the images of a sorted table uniquely, and leave out what the table names twice."""
    if not images.repeats_names():
        return images

    def unique() -> Iterator[SourceImage]:
        for name, group in itertools.groupby(images, key=lambda image: image.name):
            urls: set[str] = set()
            for image in group:
                url = str(getattr(image.location, "url", ""))
                if url in urls:
                    left_out.add(LeftOut(name, LeftOutKind.UNUSABLE, "is listed twice"))
                elif urls:
                    stem, dot, ending = name.rpartition(".")
                    mark = storage.fingerprint(url)
                    changed = f"{stem}-{mark}.{ending}" if dot and "/" not in ending else f"{name}-{mark}"
                    yield SourceImage(changed, image.location, image.version, image.bytes)
                else:
                    yield image
                urls.add(url)

    return SourceImages.of(unique()).sorted()
