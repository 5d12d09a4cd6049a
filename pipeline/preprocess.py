"""Pictures to patch set: an inventory, a plan of shards, and Ray Data tasks that write them.

`python -m pipeline.preprocess --source FOLDER` prints where the patch set lies. Everything is named by its inputs:
finished shards are found again, and an unchanged source is not read twice.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipeline import cluster, patchset, sources, storage
from pipeline.config import Config, Preprocess, UserError, command, fingerprint, parse
from pipeline.patchset import PatchSet, PictureRecord, Shard
from pipeline.sources import Picture, Pixels, RejectedPictureError
from sr_model.degrade import downscale

ALGORITHM = 1
"""Version of what a shard holds for the same inputs; part of its name."""

_SMALLEST_HOLDOUT = 48
"""HR pixels; held-out pictures with a shorter side leave too little inside the border to measure."""


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.preprocess`."""
    patch_set, _ = prepare(parse(argv, "preprocess", "Make a patch set of pictures."))
    rejected = [record for record in patch_set.pictures if record.rejected]
    print(f"patch set {patch_set.url}: {describe(patch_set)}")
    for record in rejected:
        print(f"  left out {record.name}: {record.rejected}")


def prepare(config: Config) -> tuple[PatchSet, bool]:
    """Make the patch set that the configuration describes, or find it.

    Returns:
        The patch set, and whether it was already there.

    Raises:
        UserError: if a source is missing or empty, too many pictures are rejected, or storage fails.
    """
    home = f"{config.outputs}/patchsets"
    pictures = _inventory(config, sources.find_pictures(config.source), f"{home}/inventory.json")
    train, holdout, rejected = _split(config, pictures)
    plan = [*_plan(config, train, held_out=False), *_plan(config, holdout, held_out=True)]
    name = f"x{config.scale}-{fingerprint([[spec.file for spec in plan], [asdict(record) for record in rejected]])}"
    url = f"{home}/{name}"
    if storage.exists(f"{url}/manifest.json"):
        return patchset.load(url), True
    shards = {shard.file: shard for shard in _write_shards(config, plan, home, url)}
    patch_set = PatchSet(
        url=url,
        name=name,
        scale=config.scale,
        tile=config.preprocess.tile,
        settings=config.preprocess.model_dump(),
        shards=[shards[spec.file] for spec in plan if not spec.held_out],
        holdout=[shards[spec.file] for spec in plan if spec.held_out],
        rejected=rejected,
    )
    _check_rejects(config, patch_set.pictures)
    patch_set.save()
    return patch_set, False


def describe(patch_set: PatchSet) -> str:
    """Counts of a patch set, for people."""
    records = patch_set.pictures
    held_out = sum(record.held_out and not record.rejected for record in records)
    rejected = sum(record.rejected is not None for record in records)
    megabytes = sum(shard.bytes for shard in (*patch_set.shards, *patch_set.holdout)) / 1e6
    return (
        f"{len(records)} pictures ({held_out} held out, {rejected} left out), "
        f"{sum(patch_set.row_groups)} tiles of {patch_set.tile}, {megabytes:.0f} MB"
    )


@dataclass(frozen=True)
class _Known:
    """A picture of the inventory: what its bytes are, and what its header says."""

    name: str
    url: str
    sha256: str
    width: int
    height: int
    rejected: str | None

    def record(self, *, held_out: bool = False, tiles: int = 0, rejected: str | None = None) -> PictureRecord:
        return PictureRecord(
            self.name, self.sha256, self.width, self.height, tiles, held_out, rejected or self.rejected
        )


@dataclass(frozen=True)
class _ShardSpec:
    """A shard to be written; its name follows from its inputs."""

    file: str
    held_out: bool
    pictures: list[_Known]


def _inventory(config: Config, pictures: list[Picture], cache_url: str) -> list[_Known]:
    """Content hash and size of every picture; only new and changed files are read."""
    cache: dict[str, dict[str, Any]] = storage.read_json(cache_url) or {}
    unknown = [p for p in pictures if cache.get(p.url, {}).get("version") != p.version]
    if unknown:
        cluster.connect(config)
        rows = cluster.map_rows([asdict(p) for p in unknown], _inspect)
        for row in _progress(rows, len(unknown), "inventory", "pictures"):
            cache[row.pop("url")] = row
        # What could not be read may be readable the next time.
        storage.write_json(cache_url, {url: row for url, row in cache.items() if row["sha256"]})
    known = ("sha256", "width", "height", "rejected")
    return [_Known(p.name, p.url, **{key: cache[p.url][key] for key in known}) for p in pictures]


def _inspect(row: dict[str, Any]) -> dict[str, Any]:
    width, height, digest, reason = 0, 0, "", None
    try:
        content = sources.read_bytes(row["url"])
        digest = hashlib.sha256(content).hexdigest()
        width, height = sources.header(content)
    except RejectedPictureError as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {error}"
    return {
        "url": row["url"],
        "version": row["version"],
        "sha256": digest,
        "width": width,
        "height": height,
        "rejected": reason,
    }


def _split(config: Config, pictures: list[_Known]) -> tuple[list[_Known], list[_Known], list[PictureRecord]]:
    """Pictures to train on, pictures held out, and records of those already rejected; no content is in two of them."""
    settings = config.preprocess
    rejected: list[PictureRecord] = []
    usable: list[_Known] = []
    for picture in pictures:
        reason = picture.rejected or (
            f"{picture.width}x{picture.height} is more than {settings.max_pixels} pixels"
            if picture.width * picture.height > settings.max_pixels
            else None
        )
        if reason:
            rejected.append(picture.record(rejected=reason))
        else:
            usable.append(picture)

    held_out_names = _held_out(settings, usable)
    holdout: list[_Known] = []
    train: list[_Known] = []
    first: dict[str, str] = {}
    for picture in sorted(usable, key=lambda p: (p.name not in held_out_names, p.name)):
        held_out = picture.name in held_out_names
        width, height = _prepared_size(settings, config.scale, picture.width, picture.height)
        smallest = _SMALLEST_HOLDOUT if held_out else settings.tile
        if picture.sha256 in first:
            rejected.append(picture.record(held_out=held_out, rejected=f"{_DUPLICATE} {first[picture.sha256]}"))
        elif min(width, height) < smallest:
            reason = f"{width}x{height} is too small, expected at least {smallest} pixels a side"
            rejected.append(picture.record(held_out=held_out, rejected=reason))
        else:
            first[picture.sha256] = picture.name
            (holdout if held_out else train).append(picture)
    records = [*rejected, *(p.record() for p in (*train, *holdout))]
    _check_rejects(config, records)
    if not train:
        raise UserError(f"no picture of {', '.join(config.source)} is left to train on{_reasons(records)}")
    return train, holdout, sorted(rejected, key=lambda record: record.name)


_DUPLICATE = "has the same content as"


def _held_out(settings: Preprocess, pictures: list[_Known]) -> set[str]:
    if not settings.holdout:
        return {p.name for p in sorted(pictures, key=lambda p: p.sha256)[: settings.holdout_count]}
    names: set[str] = set()
    for pattern in settings.holdout:
        matching = {
            p.name
            for p in pictures
            if fnmatch.fnmatch(p.name, pattern) or fnmatch.fnmatch(PurePosixPath(p.name).stem, pattern)
        }
        if not matching:
            raise UserError(f"preprocess.holdout has {pattern!r}, expected a pattern that matches a picture's name")
        names |= matching
    return names


def _plan(config: Config, pictures: list[_Known], held_out: bool) -> Iterator[_ShardSpec]:
    """Group consecutive pictures into shards of about the target size."""
    settings = config.preprocess
    group: list[_Known] = []
    size = 0
    for picture in pictures:
        width, height = _prepared_size(settings, config.scale, picture.width, picture.height)
        if held_out:
            size += width * height * 3
        else:
            size += len(tile_origins(height, settings)) * len(tile_origins(width, settings)) * settings.tile**2 * 3
        group.append(picture)
        if size >= settings.shard_mb * 1e6:
            yield _spec(config, group, held_out)
            group, size = [], 0
    if group:
        yield _spec(config, group, held_out)


def _spec(config: Config, pictures: list[_Known], held_out: bool) -> _ShardSpec:
    identity = {
        "format": patchset.FORMAT,
        "algorithm": ALGORITHM,
        "held_out": held_out,
        "scale": config.scale,
        **config.preprocess.model_dump(
            include={"degradation", "max_side"}
            if held_out
            else {"degradation", "max_side", "tile", "stride", "row_group"}
        ),
        "pictures": [[p.name, p.sha256] for p in pictures],
    }
    kind = "holdout" if held_out else "train"
    return _ShardSpec(f"{kind}-{fingerprint(identity)}.parquet", held_out, pictures)


def _write_shards(config: Config, plan: list[_ShardSpec], home: str, url: str) -> Iterator[Shard]:
    """Write the shards that aren't there yet, in parallel; a sibling patch set's shard of the same name is copied."""
    cluster.connect(config)
    elsewhere: dict[str, str] = {}
    for sibling in [*storage.names(home), url.rsplit("/", 1)[-1]]:  # its own shards take precedence
        elsewhere.update({file: f"{home}/{sibling}/{file}" for file in storage.names(f"{home}/{sibling}")})
    rows = cluster.map_rows(
        [
            {
                "spec": json.dumps(asdict(spec)),
                "url": f"{url}/{spec.file}",
                "finished": elsewhere.get(spec.file),
                "scale": config.scale,
                "settings": config.preprocess.model_dump_json(),
            }
            for spec in plan
        ],
        _write_shard,
    )
    for row in _progress(rows, len(plan), "preprocess", "shards"):
        if row["error"]:
            raise UserError(f"{url} is unfinished: {row['error']}; run the same command again to go on")
        record = json.loads(row["shard"])
        yield Shard(pictures=[PictureRecord(**picture) for picture in record.pop("pictures")], **record)


def _write_shard(row: dict[str, Any]) -> dict[str, Any]:
    """Ray Data task: write one shard, unless it is there and whole; an OSError becomes the row's error.

    That includes a picture that cannot be read any more: as a reject it would stay one, since it isn't in the name.
    """
    spec = json.loads(row["spec"])
    pictures = [_Known(**picture) for picture in spec["pictures"]]
    try:
        content = storage.read(row["finished"]) if row["finished"] else None
        found = _finished(content)
        if content is None or found is None:
            settings = Preprocess(**json.loads(row["settings"]))
            content = _shard_bytes(pictures, spec["held_out"], settings, row["scale"])
            found = _finished(content)
            assert found is not None
            storage.write(row["url"], content)
        elif row["finished"] != row["url"]:
            storage.write(row["url"], content)
    except OSError as error:
        return {"shard": "", "error": f"{spec['file']} could not be made ({error})"}
    records, row_groups = found
    shard = Shard(spec["file"], row_groups, len(content), hashlib.sha256(content).hexdigest(), records)
    return {"shard": json.dumps(asdict(shard)), "error": ""}


def _finished(content: bytes | None) -> tuple[list[PictureRecord], list[int]] | None:
    """Records and row groups of a shard's bytes, None if they are no whole shard."""
    if content is None:
        return None
    try:
        metadata, row_groups = patchset.read_metadata(content)
        return [PictureRecord(**record) for record in json.loads(metadata["pictures"])], row_groups
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def _shard_bytes(pictures: list[_Known], held_out: bool, settings: Preprocess, scale: int) -> bytes:
    metadata = {
        "format": str(patchset.FORMAT),
        "scale": str(scale),
        "tile": str(settings.tile),
        "degradation": settings.degradation,
    }
    records: list[PictureRecord] = []

    def rows() -> Iterator[dict[str, Any]]:
        for picture in pictures:
            try:
                hr = _load(picture, settings, scale)
            except RejectedPictureError as error:
                records.append(picture.record(held_out=held_out, rejected=str(error)))
                continue
            lr = downscale(torch.from_numpy(hr).permute(2, 0, 1), scale, settings.degradation).permute(1, 2, 0).numpy()
            made = list(_holdout_row(picture, hr, lr) if held_out else _tile_rows(picture, hr, lr, settings, scale))
            records.append(picture.record(held_out=held_out, tiles=0 if held_out else len(made)))
            yield from made

    def groups() -> Iterator[list[dict[str, Any]]]:
        size = 1 if held_out else settings.row_group
        group: list[dict[str, Any]] = []
        for row in rows():
            group.append(row)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group
        metadata["pictures"] = json.dumps([asdict(record) for record in records])

    return patchset.write_rows(patchset.HOLDOUT_SCHEMA if held_out else patchset.TILE_SCHEMA, groups(), metadata)


def _load(picture: _Known, settings: Preprocess, scale: int) -> Pixels:
    """Decode a picture, reduce it to `max_side`, crop it to a multiple of the scale."""
    content = sources.read_bytes(picture.url)
    if hashlib.sha256(content).hexdigest() != picture.sha256:
        raise RejectedPictureError("changed while the patch set was being made")
    rgb = sources.decode(content, settings.max_pixels)
    width, height = _reduced_size(settings, rgb.shape[1], rgb.shape[0])
    if (height, width) != rgb.shape[:2]:
        rgb = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(rgb[: height // scale * scale, : width // scale * scale])


def _tile_rows(picture: _Known, hr: Pixels, lr: Pixels, settings: Preprocess, scale: int) -> Iterator[dict[str, Any]]:
    tile, lr_tile = settings.tile, settings.tile // scale
    for y in tile_origins(hr.shape[0], settings):
        for x in tile_origins(hr.shape[1], settings):
            ly, lx = y // scale, x // scale
            yield {
                "image_id": picture.name,
                "y": y,
                "x": x,
                "hr": hr[y : y + tile, x : x + tile].tobytes(),
                "lr": lr[ly : ly + lr_tile, lx : lx + lr_tile].tobytes(),
            }


def _holdout_row(picture: _Known, hr: Pixels, lr: Pixels) -> Iterator[dict[str, Any]]:
    yield {
        "image_id": picture.name,
        "height": hr.shape[0],
        "width": hr.shape[1],
        "hr": hr.tobytes(),
        "lr": lr.tobytes(),
    }


def tile_origins(side: int, settings: Preprocess) -> list[int]:
    """Origins of tiles along an axis of `side` HR pixels: every stride, and one more that covers the remainder."""
    last = side - settings.tile
    if last < 0:
        return []
    origins = list(range(0, last + 1, settings.stride or settings.tile))
    return origins if origins[-1] == last else [*origins, last]


def _reduced_size(settings: Preprocess, width: int, height: int) -> tuple[int, int]:
    longer = max(width, height)
    if settings.max_side is None or longer <= settings.max_side:
        return width, height
    return max(width * settings.max_side // longer, 1), max(height * settings.max_side // longer, 1)


def _prepared_size(settings: Preprocess, scale: int, width: int, height: int) -> tuple[int, int]:
    width, height = _reduced_size(settings, width, height)
    return width // scale * scale, height // scale * scale


def _check_rejects(config: Config, records: Sequence[PictureRecord]) -> None:
    bad = [record for record in records if record.rejected and not record.rejected.startswith(_DUPLICATE)]
    limit = config.preprocess.max_reject_share
    if len(bad) > limit * len(records):
        raise UserError(
            f"{len(bad)} of {len(records)} pictures were rejected, more than preprocess.max_reject_share {limit:g}"
            f"{_reasons(records)}"
        )


def _reasons(records: Iterable[PictureRecord]) -> str:
    rejected = [f"{record.name} {record.rejected}" for record in records if record.rejected]
    more = f" and {len(rejected) - 3} more" if len(rejected) > 3 else ""
    return f": {'; '.join(rejected[:3])}{more}" if rejected else ""


def _progress(rows: Iterable[dict[str, Any]], total: int, stage: str, unit: str) -> Iterator[dict[str, Any]]:
    """Pass rows on, printing how far the work is."""
    start = last = time.monotonic()
    for done, row in enumerate(rows, start=1):
        yield row
        now = time.monotonic()
        if done == total or now - last > 2:
            last, rate = now, done / max(now - start, 1e-9)
            print(f"{stage}: {done} of {total} {unit}, about {(total - done) / rate:.0f} s left", flush=True)


if __name__ == "__main__":
    from pipeline import preprocess as module  # by its name, so that Ray's workers import what they run

    module.main()
