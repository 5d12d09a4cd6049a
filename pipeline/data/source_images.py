"""Listed image files as a table: about 40 bytes for each, beside its name and version, so that ten million fit.

pyarrow is imported where it is used, because a command that upscales one image needs only `SourceImage`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, overload

from pipeline.data.locations import Base, FileLocation, Location, pack, unpack

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

_ROWS = 2**15
"""Rows that are converted at a time."""


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("name", pa.large_string()),
            ("version", pa.large_string()),
            ("bytes", pa.int64()),
            ("base", pa.int32()),  # number of the `Base` of the location
            ("place", pa.large_binary()),  # the rest of the location; empty if a file's URL ends with the name
        ]
    )


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image file that has not been opened yet."""

    name: str
    """Path within the source, with extension; unique within a listing."""
    location: Location
    """The place that its content is read from."""
    version: str
    """Size and modification time, ETag or checksum; it changes when the content changes."""
    bytes: int
    """Size of the file; 0 if it is unknown."""


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Many image files whose URLs begin alike and end with their names."""

    prefix: str
    """The beginning of their URLs."""
    names: list[str]
    versions: list[str]
    sizes: list[int]


class SourceImages(Sequence[SourceImage]):
    """Image files in a table; an object is made for one only while it is looked at. A slice copies nothing.

    Args:
        table: a row an image; `of` makes it.
        bases: the beginnings of locations, which `table` numbers.
    """

    def __init__(self, table: pa.Table, bases: Sequence[Base]) -> None:
        self.table = table
        """Columns `name`, `version` and `bytes`, and two that hold the location."""
        self._bases = bases

    @classmethod
    def of(cls, images: Iterable[SourceImage | SourceFiles]) -> SourceImages:
        """Put images into a table, in the same order."""
        if isinstance(images, SourceImages):
            return images
        import pyarrow as pa

        schema = _schema()
        bases: dict[Base, int] = {}
        batches: list[pa.RecordBatch] = []
        columns: list[list[Any]] = [[] for _ in schema]

        def flush() -> None:
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            for values in columns:
                values.clear()

        for image in images:
            if isinstance(image, SourceFiles):
                base, count = bases.setdefault((FileLocation, image.prefix), len(bases)), len(image.names)
                row: Iterable[list[Any]] = (image.names, image.versions, image.sizes, [base] * count, [b""] * count)
            else:
                kind, place = pack(image.location, image.name)
                base = bases.setdefault(kind, len(bases))
                row = ([image.name], [image.version], [image.bytes], [base], [place])
            for column, values in zip(columns, row, strict=True):
                column += values
            if len(columns[0]) >= _ROWS:
                flush()
        flush()
        return cls(pa.Table.from_batches(batches, schema), list(bases))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[SourceImage]:
        for batch in self.table.to_batches(_ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield self._image(*row)

    @overload
    def __getitem__(self, index: int) -> SourceImage: ...
    @overload
    def __getitem__(self, index: slice) -> SourceImages: ...
    def __getitem__(self, index: int | slice) -> SourceImage | SourceImages:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return SourceImages(self.table.slice(start, max(stop - start, 0)), self._bases)
            return self.take(range(start, stop, step))
        start = range(len(self))[index]
        return next(iter(self[start : start + 1]))

    def take(self, rows: npt.ArrayLike) -> SourceImages:
        """Return the images with these numbers in a table of their own, which is small when it is pickled."""
        import numpy as np
        import pyarrow as pa

        taken = self.table.take(pa.array(np.asarray(rows, np.int64))).combine_chunks()
        used, numbers = np.unique(taken["base"].to_numpy(), return_inverse=True)
        table = taken.set_column(3, "base", pa.array(numbers.astype(np.int32)))
        return SourceImages(table, [self._bases[base] for base in used])

    def combined(self) -> SourceImages:
        """Return the same images in a table of one piece, from which `take` is fast."""
        return SourceImages(self.table.combine_chunks(), self._bases)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SourceImages({list(self[:3])}{', …' if len(self) > 3 else ''})"

    def sorted(self) -> SourceImages:
        """Return the images in the order of their names."""
        import pyarrow.compute as pc

        names = self.table["name"]
        if len(self) < 2 or pc.all(pc.less_equal(names[:-1], names[1:])).as_py():
            return self
        return SourceImages(self.table.take(pc.sort_indices(names)), self._bases)

    def repeats_names(self) -> bool:
        """Tell whether two of these images, which are sorted, have the same name."""
        import pyarrow.compute as pc

        names = self.table["name"]
        return len(self) > 1 and bool(pc.any(pc.equal(names[:-1], names[1:])).as_py())

    def _image(self, name: str, version: str, size: int, base: int, place: bytes) -> SourceImage:
        return SourceImage(name, unpack(self._bases[base], place, name), version, size)


def merge_images(listings: Sequence[Iterable[SourceImage]]) -> SourceImages:
    """Return the images of several listings, sorted by name.

    If a name repeats an earlier one, it gets the number of its listing as a prefix.
    """
    tables = [SourceImages.of(listing) for listing in listings]
    merged = _concatenate(tables).sorted()
    if not merged.repeats_names():
        return merged
    seen: set[str] = set()

    def unique() -> Iterator[SourceImage]:
        for number, listing in enumerate(tables):
            for image in listing:
                name = image.name
                while name in seen:
                    name = f"{number}/{name}"
                seen.add(name)
                yield image if name == image.name else replace(image, name=name)

    return SourceImages.of(unique()).sorted()


def _concatenate(parts: Sequence[SourceImages]) -> SourceImages:
    import pyarrow as pa
    import pyarrow.compute as pc

    bases: list[Base] = []
    tables = [_schema().empty_table()]
    for part in parts:
        numbers = pc.add(part.table["base"], pa.scalar(len(bases), pa.int32()))
        tables.append(part.table.set_column(3, "base", numbers))
        bases += part._bases
    return SourceImages(pa.concat_tables(tables), bases)
