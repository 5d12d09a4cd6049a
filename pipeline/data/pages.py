"""Images in uncompressed Parquet pages, used in place.

An uncompressed plain page ends with its values, each behind its length, a number of 4 bytes. So the images of a row
group, which have the same size, lie like an array, and nothing has to be decoded or copied.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.data.lanes import compact
from pipeline.data.random_numbers import AnyInts
from sr_model.pixels import Pixels

_LENGTH = np.dtype("<u4")
"""Type of a value's length."""
_I32 = 0x15
"""Begin of a field in Thrift's compact protocol: a number of 32 bits whose field number is one more than the last."""
_FOOTER_END = 8
"""Bytes behind the metadata of a Parquet file: their length, and a mark."""
_MARK = b"PAR1"
_LONGEST_HEADER = 64
"""Bytes before the values of a page; a page without statistics has half as many. More are values of further rows."""
_ENTRY = 1000
"""Bytes that the pages of a shard take in memory beside their numbers."""


@dataclass(frozen=True)
class Pages:
    """The places of a shard's images in its file."""

    pages: Mapping[str, AnyInts]
    """Begin and end of the only data page of each row group, (row groups, 2), by column."""
    groups: int
    """Number of row groups."""

    @classmethod
    def of(cls, metadata: pq.FileMetaData, columns: Mapping[str, int], size: int) -> Pages | None:
        """Find the pages; None if one of them is compressed or encoded, or lies outside the file.

        Args:
            metadata: the file's metadata.
            columns: names and numbers of the columns of images.
            size: bytes of the file.
        """
        pages = {name: np.zeros((metadata.num_row_groups, 2), np.int64) for name in columns}
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for name, number in columns.items():
                column = row_group.column(number)
                begin = column.data_page_offset
                end = begin + column.total_compressed_size
                plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
                if column.path_in_schema != name or not plain or not 0 <= begin <= end <= size:
                    return None
                pages[name][group] = begin, end
        return cls({name: compact(places, size) for name, places in pages.items()}, metadata.num_row_groups)

    def span(self, group: int) -> tuple[int, int]:
        """Return begin and end of a row group's images in the file."""
        begins, ends = zip(*(pages[group].tolist() for pages in self.pages.values()), strict=True)
        return min(begins), max(ends)

    def view(
        self, content: npt.NDArray[np.uint8], offset: int, group: int, rows: int, sides: Mapping[str, int], check: bool
    ) -> list[Pixels] | None:
        """Return a row group's square images, without copying them.

        Args:
            content: bytes of the file.
            offset: position in the file at which they begin.
            group: number of the row group.
            rows: expected number of rows.
            sides: side of the images by column.
            check: compare the pages with their checksums, and the lengths of their values with the expected ones.

        Returns:
            (rows, side, side, 3) for each column; None if the images are not where they should be, which is so for
            missing and compressed values and for several pages. With `check`, also None for damaged values, images of
            another size, and pages without checksums.
        """
        views = []
        for column, side in sides.items():
            begin, end = (self.pages[column][group] - offset).tolist()
            size = side * side * 3
            begin_values = end - rows * (_LENGTH.itemsize + size)
            if not begin <= begin_values <= begin + _LONGEST_HEADER:
                return None
            values = content[begin_values:end].reshape(rows, _LENGTH.itemsize + size)
            if check and not (_agrees(content[begin:end]) and _have_length(values, size)):
                return None
            views.append(values[:, _LENGTH.itemsize :].reshape(rows, side, side, 3))
        return views


def _have_length(values: npt.NDArray[np.uint8], length: int) -> bool:
    lengths = np.ascontiguousarray(values[:, : _LENGTH.itemsize]).view(_LENGTH)
    return bool((lengths == length).all())


def memory_of(pages: Pages | None) -> int:
    """Return about how many bytes the pages of a shard take in memory."""
    return _ENTRY + (sum(places.nbytes for places in pages.pages.values()) if pages else 0)


def _agrees(page: npt.NDArray[np.uint8]) -> bool:
    """Tell whether the bytes of a column's only page, header included, have the checksum that the header states.

    The header begins with the page's type, its size before and after compression, and the checksum.
    """
    head = page[:32].tolist()
    fields: list[int] = []
    position = 0
    for _ in range(4):
        if position >= len(head) or head[position] != _I32:
            return False
        number, shift, position = 0, 0, position + 1
        while position < len(head) and shift < 35:
            number |= (head[position] & 127) << shift
            shift, position = shift + 7, position + 1
            if head[position - 1] < 128:
                break
        fields.append(number >> 1 ^ -(number & 1))  # even numbers are positive, odd ones negative
    _, _, size, checksum = fields
    if not 0 <= size <= len(page) - position:
        return False
    return zlib.crc32(page[len(page) - size :].data) == checksum & 0xFFFFFFFF


def metadata_length(tail: bytes) -> int | None:
    """Return the length of a Parquet file's metadata, with what follows them, from the file's last bytes.

    Returns:
        None if they are not the end of a Parquet file.
    """
    if len(tail) < _FOOTER_END or tail[-len(_MARK) :] != _MARK:
        return None
    return int.from_bytes(tail[-_FOOTER_END : -len(_MARK)], "little") + _FOOTER_END
