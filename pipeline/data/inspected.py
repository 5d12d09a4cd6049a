"""Images that have been read once, as a table: hash, size and, if they cannot be used, the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.locations import Location
from pipeline.data.manifest import ImageRecord
from pipeline.data.random_numbers import Ints
from pipeline.data.rejection import Rejection, RejectionKind
from pipeline.data.source_images import SourceImage, SourceImages

FOUND_SCHEMA = pa.schema(
    [
        ("sha256", pa.binary(32)),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("bytes", pa.int64()),
        ("kind", pa.string()),
        ("detail", pa.string()),
    ]
)
"""A row has the results of reading an image. The hash is null if it could not be read; `kind` and `detail` are those of
its rejection, null if it can be used."""


@dataclass(frozen=True)
class InspectedImage:
    """An image file that has been read once: its hash, and the size that its header states."""

    name: str
    location: Location
    version: str
    """The version of the `SourceImage` when it was read."""
    sha256: str
    """Hash of the file; empty if it could not be read."""
    width: int
    """Pixels, before the EXIF orientation is applied."""
    height: int
    bytes: int
    """Size of the file."""
    rejected: Rejection | None

    def record(self, *, held_out: bool = False, tiles: int = 0, rejected: Rejection | None = None) -> ImageRecord:
        """Return the image's record for the manifest."""
        return ImageRecord(self.name, self.sha256, self.width, self.height, tiles, held_out, rejected or self.rejected)


class InspectedImages(Sequence[InspectedImage]):
    """Inspected images in two tables of equal length; an object is made for one only while it is looked at.

    A slice copies nothing, and is small when it is pickled.

    Args:
        images: the files.
        found: rows of `FOUND_SCHEMA`.
    """

    def __init__(self, images: SourceImages, found: pa.Table) -> None:
        self.source = images
        """The files."""
        self.found = found
        """The results of the inspections, a row of `FOUND_SCHEMA` for each file."""

    @classmethod
    def of(cls, images: Iterable[InspectedImage]) -> InspectedImages:
        """Put images into tables, in the same order."""
        images = list(images)
        files = SourceImages.of(SourceImage(image.name, image.location, image.version, image.bytes) for image in images)
        return cls(files, found_rows(images))

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[InspectedImage]:
        columns = (self.found[name].to_pylist() for name in FOUND_SCHEMA.names)
        for image, digest, width, height, size, kind, detail in zip(self.source, *columns, strict=True):
            rejected = None if kind is None else Rejection(RejectionKind(kind), detail)
            sha256 = digest.hex() if digest else ""
            yield InspectedImage(
                image.name, image.location, image.version, sha256, width, height, size, rejected
            )  # fmt: skip

    @overload
    def __getitem__(self, number: int) -> InspectedImage: ...
    @overload
    def __getitem__(self, number: slice) -> InspectedImages: ...
    def __getitem__(self, number: int | slice) -> InspectedImage | InspectedImages:
        """Return one image or several."""
        if isinstance(number, int):
            (image,) = self.take(np.array([range(len(self))[number]]))
            return image
        start, stop, step = number.indices(len(self))
        if step != 1:
            return self.take(np.arange(start, stop, step))
        return InspectedImages(self.source[start:stop], self.found.slice(start, max(stop - start, 0)))

    def __reduce__(self) -> tuple[type[InspectedImages], tuple[SourceImages, pa.Table]]:
        alone = self.take(np.arange(len(self)))  # Arrow would pickle the whole table of which this is a slice
        return InspectedImages, (alone.source, alone.found)

    def take(self, rows: Ints) -> InspectedImages:
        """Return the images of these rows in tables of their own."""
        return InspectedImages(self.source.take(rows), self.found.take(rows))

    def combined(self) -> InspectedImages:
        """Return the same images in tables of one piece each, from which rows are taken quickly."""
        return InspectedImages(self.source.combined(), self.found.combine_chunks())

    @property
    def names(self) -> pa.ChunkedArray:
        """Names of the images."""
        return self.source.table["name"]

    def numbers(self, column: str) -> Ints:
        """Return `width`, `height` or `bytes` of all images."""
        numbers: Ints = self.found[column].to_numpy()
        return numbers

    @property
    def rejected(self) -> npt.NDArray[np.bool_]:
        """True for each image that cannot be used."""
        rejected: npt.NDArray[np.bool_] = self.found["kind"].is_valid().to_numpy()
        return rejected

    @property
    def digests(self) -> npt.NDArray[np.uint8]:
        """Hashes, (n, 32); those of images that could not be read have no meaning."""
        return digests(self.found["sha256"])


def digests(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Return a column of hashes as an array (n, bytes)."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width).reshape(-1, width)
        for chunk in column.chunks
        if len(chunk)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, width), np.uint8), *parts])


def found_rows(images: Sequence[InspectedImage]) -> pa.Table:
    """Turn the results of reading images into rows of `FOUND_SCHEMA`."""
    columns = {
        "sha256": [bytes.fromhex(image.sha256) or None for image in images],
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "bytes": [image.bytes for image in images],
        "kind": [image.rejected and str(image.rejected.kind) for image in images],
        "detail": [image.rejected and image.rejected.detail for image in images],
    }
    return pa.Table.from_pydict(columns, schema=FOUND_SCHEMA)
