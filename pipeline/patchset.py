"""The patch set: a folder of Parquet shards and a manifest, which is written last and makes it one.

A row of a training shard is one tile: `image_id`, `y`, `x` (HR pixel origin), `hr` and `lr` as raw bytes (uint8 RGB,
row-major HWC). A row of a held-out shard is one whole picture: `image_id`, `height`, `width` (HR pixels), `hr`, `lr`.
Shape, scale, degradation and format version stand in the Parquet metadata, so that a shard explains itself.

`python -m pipeline.patchset show URL` tells what is in a patch set, `verify URL` whether it is still as it was made.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import storage
from pipeline.commandline import command
from pipeline.config import UserError

FORMAT = 2
"""Version of the layout; part of every patch set's and shard's name."""

TILE_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("y", pa.int32()), ("x", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)
HOLDOUT_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)

Bytes = npt.NDArray[np.uint8]


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.patchset`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.patchset", description="Look at a patch set.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print a summary and write a contact sheet of HR/LR pairs")
    show.add_argument("url", metavar="URL", help="folder of the patch set, local or any fsspec URL")
    show.add_argument("--sheet", metavar="FILE", help="PNG to write; NAME-sheet.png in the current folder by default")
    show.add_argument("--pairs", type=int, default=24, help="tiles on the sheet (default 24)")
    show.add_argument("--seed", type=int, default=0, help="which tiles (default 0)")
    verify = commands.add_parser("verify", help="recompute checksums and counts; exit code 1 if something is wrong")
    verify.add_argument("url", metavar="URL", help="as above")
    given = parser.parse_args(argv)
    patch_set = load(given.url.rstrip("/"))
    if given.command == "show":
        print(summary(patch_set))
        sheet = Path(given.sheet or f"{patch_set.name}-sheet.png")
        contact_sheet(patch_set, given.pairs, given.seed).save(sheet)
        print(f"contact sheet: {sheet.absolute()}")
        return
    faults = 0
    for i, shard in enumerate(patch_set.all_shards, start=1):
        print(f"\rverifying shard {i} of {len(patch_set.all_shards)}", end="", file=sys.stderr, flush=True)
        for fault in find_faults(patch_set, shard):
            faults += 1
            print(f"\n{shard.file}: {fault}", flush=True)
    print(file=sys.stderr)
    for file in sorted(set(storage.names(patch_set.url)) - {s.file for s in patch_set.all_shards} - {"manifest.json"}):
        print(f"{file} doesn't belong to the patch set (left by an interrupted run, or put there); it is never read")
    if faults:
        raise SystemExit(1)
    print(f"{patch_set.url} is whole: {describe(patch_set)}")


@dataclass(frozen=True)
class PictureRecord:
    """What became of a source picture."""

    name: str
    sha256: str
    width: int
    height: int
    tiles: int
    """Tiles in the training shards; 0 if held out or rejected."""
    held_out: bool
    rejected: str | None = None
    """Why it isn't in the set."""
    flat: int = 0
    """Tiles dropped for lack of detail."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the set."""

    file: str
    row_groups: list[int]
    """Rows of each row group."""
    bytes: int
    sha256: str
    pictures: list[PictureRecord]


@dataclass(frozen=True)
class PatchSet:
    """A finished patch set; open one with `load`."""

    url: str
    name: str
    scale: int
    tile: int
    """HR pixels, side of a tile."""
    settings: dict[str, Any]
    """The preprocessing settings that made it."""
    shards: list[Shard]
    holdout: list[Shard]
    rejected: list[PictureRecord] = field(default_factory=list)
    """Pictures that were rejected before they reached a shard."""
    format: int = FORMAT

    @property
    def all_shards(self) -> list[Shard]:
        """Training shards, then held-out ones."""
        return [*self.shards, *self.holdout]

    @property
    def pictures(self) -> list[PictureRecord]:
        """Every source picture, rejected ones included, sorted by name."""
        records = [record for shard in self.all_shards for record in shard.pictures]
        return sorted(records + self.rejected, key=lambda record: record.name)

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each row group, over all training shards in order."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        return [(shard.file, i) for shard in self.shards for i in range(len(shard.row_groups))]

    def read_group(self, number: int) -> tuple[Bytes, Bytes]:
        """Tiles of a row group: HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8, read-only."""
        file, group = self._places[number]
        table = _read_group(f"{self.url}/{file}", group, ["hr", "lr"])
        return _unpack(table["hr"], self.tile), _unpack(table["lr"], self.tile // self.scale)

    @cached_property
    def holdout_names(self) -> list[str]:
        """Names of the held-out pictures, in the order of `read_holdout`'s number."""
        return [record.name for shard in self.holdout for record in shard.pictures if not record.rejected]

    def read_holdout(self, number: int) -> HoldoutPicture:
        """A held-out picture; each is a row group of its own."""
        places = [(shard.file, group) for shard in self.holdout for group in range(len(shard.row_groups))]
        file, group = places[number]
        (row,) = _read_group(f"{self.url}/{file}", group).to_pylist()
        height, width, s = row["height"], row["width"], self.scale
        hr = np.frombuffer(row["hr"], np.uint8).reshape(height, width, 3)
        lr = np.frombuffer(row["lr"], np.uint8).reshape(height // s, width // s, 3)
        return HoldoutPicture(row["image_id"], hr, lr)

    def save(self) -> None:
        """Write the manifest: from now on the folder is a patch set."""
        for shard in self.all_shards:
            storage.flush(f"{self.url}/{shard.file}")
        manifest = asdict(self)
        del manifest["url"]
        storage.write_json(f"{self.url}/manifest.json", manifest)


class HoldoutPicture(NamedTuple):
    """A whole picture that isn't trained on."""

    name: str
    hr: Bytes
    """(H, W, 3)"""
    lr: Bytes
    """(H/scale, W/scale, 3)"""


def load(url: str) -> PatchSet:
    """Open a patch set.

    Raises:
        UserError: if there is no manifest, or one of another format.
    """
    try:
        manifest = storage.read_json(f"{url}/manifest.json")
    except ValueError as error:
        raise UserError(f"{url}/manifest.json is damaged: {error}") from None
    if manifest is None:
        raise UserError(f"{url} has no manifest.json, so it is no (finished) patch set: run pipeline.preprocess")
    if manifest["format"] != FORMAT:
        raise UserError(f"{url} has the format {manifest['format']}, expected {FORMAT}: run pipeline.preprocess again")
    for key in ("shards", "holdout"):
        manifest[key] = [_shard(record) for record in manifest[key]]
    manifest["rejected"] = [PictureRecord(**record) for record in manifest["rejected"]]
    return PatchSet(url=url, **manifest)


def _shard(record: dict[str, Any]) -> Shard:
    pictures = [PictureRecord(**picture) for picture in record.pop("pictures")]
    return Shard(pictures=pictures, **record)


def describe(patch_set: PatchSet) -> str:
    """Counts of a patch set in a line."""
    records = patch_set.pictures
    held_out = sum(record.held_out and not record.rejected for record in records)
    rejected = sum(record.rejected is not None for record in records)
    megabytes = sum(shard.bytes for shard in patch_set.all_shards) / 1e6
    return (
        f"{len(records)} pictures ({held_out} held out, {rejected} left out), "
        f"{sum(patch_set.row_groups)} tiles of {patch_set.tile}, {megabytes:.0f} MB"
    )


def summary(patch_set: PatchSet) -> str:
    """All that a person may want to know of a patch set, as lines of text."""
    records = patch_set.pictures
    tiles, flat = sum(patch_set.row_groups), sum(record.flat for record in records)
    reasons = Counter(_kind(record.rejected) for record in records if record.rejected)
    sizes = [shard.bytes / 1e6 for shard in patch_set.all_shards]
    groups = patch_set.row_groups
    degradation = ", ".join(f"{key} {value}" for key, value in patch_set.settings["degradation"].items() if value)
    lines = {
        "patch set": patch_set.url,
        "scale": f"x{patch_set.scale}, LR made by {degradation}",
        "pictures": f"{len(records)}: {sum(bool(r.tiles) for r in records)} to train on, "
        f"{len(patch_set.holdout_names)} held out, {sum(reasons.values())} left out",
        **{f"  left out, {reason}": f"{count}" for reason, count in reasons.most_common()},
        "tiles": f"{tiles} of {patch_set.tile}x{patch_set.tile}, in row groups of {max(groups, default=0)}; "
        f"{flat} ({flat / max(tiles + flat, 1):.1%}) dropped as flat",
        "files": f"{len(sizes)} shards, {sum(sizes):.1f} MB, {min(sizes):.1f} to {max(sizes):.1f} MB each",
    }
    width = max(map(len, lines))
    return "\n".join(f"{key:{width}}  {value}" for key, value in lines.items())


def _kind(reason: str) -> str:
    """A reason without the numbers and names that are the picture's own."""
    for kind in ("same content", "too small", "more than", "known format", "cannot be decoded", "cannot be read"):
        if kind in reason:
            return kind
    return reason


def contact_sheet(patch_set: PatchSet, pairs: int, seed: int) -> Image.Image:
    """Random tiles, each HR beside its LR enlarged to the same size without interpolation."""
    chosen = random.Random(seed).sample(range(sum(patch_set.row_groups)), min(pairs, sum(patch_set.row_groups)))  # noqa: S311
    first = np.cumsum([0, *patch_set.row_groups])
    side, gap, columns = patch_set.tile, 8, min(4, max(len(chosen), 1))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (2 * side + gap) + gap, rows * (side + gap) + gap), "white")
    for place, tile in enumerate(sorted(chosen)):
        group = int(np.searchsorted(first, tile, side="right")) - 1
        hr, lr = (tiles[tile - first[group]] for tiles in patch_set.read_group(group))
        x, y = gap + place % columns * (2 * side + gap), gap + place // columns * (side + gap)
        sheet.paste(Image.fromarray(hr), (x, y))
        sheet.paste(Image.fromarray(lr).resize((side, side), Image.Resampling.NEAREST), (x + side, y))
    return sheet


def find_faults(patch_set: PatchSet, shard: Shard) -> Iterator[str]:
    """What is wrong with a shard: its bytes, its rows, or what the manifest says of them."""
    try:
        with storage.local_copy(f"{patch_set.url}/{shard.file}") as file:
            size = file.stat().st_size
            if size != shard.bytes:
                yield f"has {size} bytes, the manifest says {shard.bytes}"
            elif storage.sha256(file) != shard.sha256:
                yield "has another checksum than the manifest says"
            else:
                yield from _row_faults(patch_set, shard, file)
    except FileNotFoundError:
        yield "is missing"


def _row_faults(patch_set: PatchSet, shard: Shard, file: Path) -> Iterator[str]:
    held_out = shard in patch_set.holdout
    parquet = pq.ParquetFile(file)
    if not parquet.schema_arrow.equals(HOLDOUT_SCHEMA if held_out else TILE_SCHEMA):
        yield f"has the columns {parquet.schema_arrow.names}, expected those of format {FORMAT}"
        return
    found: Counter[str] = Counter()
    rows = []
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group)
        rows.append(table.num_rows)
        found.update(table["image_id"].to_pylist())
        for row in table.to_pylist():
            height, width = (row["height"], row["width"]) if held_out else (patch_set.tile, patch_set.tile)
            if (len(row["hr"]), len(row["lr"]) * patch_set.scale**2) != (height * width * 3, height * width * 3):
                yield f"row of {row['image_id']} has {len(row['hr'])} and {len(row['lr'])} bytes"
    if rows != shard.row_groups:
        yield f"has row groups of {rows}, the manifest says {shard.row_groups}"
    expected = {r.name: 1 if held_out else r.tiles for r in shard.pictures if not r.rejected and (held_out or r.tiles)}
    if found != expected:
        yield f"has rows of {dict(found)}, the manifest says {expected}"


def write_shard(file: Path, schema: pa.Schema, row_groups: Iterable[pa.Table], metadata: dict[str, str]) -> None:
    """Write a Parquet file of row groups; `metadata` may be filled until the last one was taken."""
    with pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=["image_id"],
        write_statistics=["image_id"],
        write_page_checksum=True,
    ) as writer:
        for table in row_groups:
            writer.write_table(table)
        writer.add_key_value_metadata(metadata)


def pack(pictures: Sequence[Bytes]) -> pa.Array:
    """Pictures of any sizes as one Arrow array of raw bytes; a single copy, from strided views, too."""
    ends = np.cumsum([0, *(picture.size for picture in pictures)])
    data = np.empty(int(ends[-1]), np.uint8)
    for picture, start, end in zip(pictures, ends, ends[1:], strict=False):
        data[start:end].reshape(picture.shape)[...] = picture
    offsets = ends.astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(pictures), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def read_shard(file: Path, name: str, check: bool) -> Shard | None:
    """What the manifest will say of a shard; None if it isn't whole.

    Args:
        file: local file.
        name: its name in the set.
        check: whether to read all of it against its own checksums.
    """
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=check)
        for group in range(parquet.num_row_groups if check else 0):
            parquet.read_row_group(group)
        pictures = [PictureRecord(**record) for record in json.loads(parquet.metadata.metadata[b"pictures"])]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    return Shard(name, groups, file.stat().st_size, storage.sha256(file), pictures)


def _unpack(column: pa.ChunkedArray, side: int) -> Bytes:
    # Rows of equal size lie one behind the other in the data buffer: no copy, no per-row work.
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    size = side * side * 3
    data = np.frombuffer(array.buffers()[2], np.uint8, count=(array.offset + len(array)) * size)
    return data[array.offset * size :].reshape(len(array), side, side, 3)


def _read_group(url: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    reader = threading.get_ident()  # readers share no open file: its position would be shared, too
    return storage.patiently(url, lambda: _open(url, reader).read_row_group(group, columns=columns))


@lru_cache(maxsize=128)
def _open(url: str, _reader: int) -> pq.ParquetFile:
    fs, path = fsspec.url_to_fs(url)
    if "file" in fs.protocol:
        return pq.ParquetFile(path, memory_map=True)
    # Of an object store, a row group's columns in one request, and nothing else: by default it reads 50 MB ahead.
    return pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)


if __name__ == "__main__":
    from pipeline import patchset as module  # one module, not a second one called __main__

    module.main()
