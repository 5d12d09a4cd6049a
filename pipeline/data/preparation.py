"""Images to patch set: an inventory, a plan of shards, and Ray Data tasks that write them.

`python -m pipeline.preprocess --source FOLDER` prints where the patch set lies. Everything is named by its inputs:
finished shards are found again, and an unchanged source is not read twice.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from pipeline import cluster, storage
from pipeline.data import patchset, shards, sources
from pipeline.data.images import RejectedImageError, header
from pipeline.data.patchset import ImageRecord, PatchSet, Shard
from pipeline.data.shards import InspectedImage, ShardSpec
from pipeline.data.sources import SourceImage
from pipeline.settings import Config, Preprocess, UserError
from pipeline.storage import fingerprint, one_line

_SMALLEST_HOLDOUT = 48
"""HR pixels; held-out images with a shorter side leave too little inside the border to measure."""


def prepare(config: Config) -> tuple[PatchSet, bool]:
    """Make the patch set that the configuration describes, or find it.

    Returns:
        The patch set, and whether it was already there.

    Raises:
        UserError: if a source is missing or empty, too many images are rejected, or storage fails.
    """
    home = f"{config.outputs}/patchsets"
    found = sources.list_images(config.source, config.downloads)
    known = _inventory(config, found, f"{home}/inventory.json")
    train, holdout, rejected = _split(config, known)
    plan = [*_plan(config, train, held_out=False), *_plan(config, holdout, held_out=True)]
    name = f"x{config.scale}-{fingerprint([[spec.file for spec in plan], [asdict(record) for record in rejected]])}"
    url = f"{home}/{name}"
    if storage.exists(f"{url}/manifest.json"):
        return patchset.load(url), True
    written = {shard.file: shard for shard in _write_shards(config, plan, home, url)}
    patch_set = PatchSet(
        url=url,
        name=name,
        scale=config.scale,
        tile=config.preprocess.tile,
        settings=config.preprocess.model_dump(),
        shards=[written[spec.file] for spec in plan if not spec.held_out],
        holdout=[written[spec.file] for spec in plan if spec.held_out],
        rejected=rejected,
    )
    _check(config, patch_set.images)
    patch_set.save()
    return patch_set, False


def _inventory(config: Config, found: list[SourceImage], cache_url: str) -> list[InspectedImage]:
    """Content hash and size of every image; only new and changed files are read."""
    cache: dict[str, dict[str, Any]] = storage.read_json(cache_url) or {}
    unknown = [p for p in found if cache.get(p.url, {}).get("version") != p.version]
    if unknown:
        cluster.connect(config)
        limit = 8 * config.preprocess.max_pixels + 2**26  # what 16-bit RGBA takes without compression
        rows = cluster.map_rows([{**asdict(p), "limit": limit} for p in unknown], _inspect)
        saved = time.monotonic()
        try:
            for row in _progress(rows, len(unknown), "inventory"):
                cache[row.pop("url")] = row
                if time.monotonic() - saved > 30:
                    _save_inventory(cache_url, cache)
                    saved = time.monotonic()
        finally:  # what was read need not be read again, however this ends
            _save_inventory(cache_url, cache)
    keys = ("sha256", "width", "height", "bytes", "rejected")
    return [InspectedImage(p.name, p.url, **{key: cache[p.url][key] for key in keys}) for p in found]


def _save_inventory(url: str, cache: dict[str, dict[str, Any]]) -> None:
    # What could not be read may be readable the next time.
    storage.write_json(url, {key: row for key, row in cache.items() if row["sha256"]})


def _inspect(row: dict[str, Any]) -> dict[str, Any]:
    """Ray Data task: hash a file, and read its header."""
    width, height, digest, reason = 0, 0, "", None
    try:
        if row["bytes"] > row["limit"]:
            raise RejectedImageError(f"has {row['bytes']} bytes, more than an image of max_pixels can have")
        content = sources.read_bytes(row["url"])
        digest = hashlib.sha256(content).hexdigest()
        width, height = header(content)
    except RejectedImageError as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {one_line(error)}"
    return {
        "url": row["url"],
        "version": row["version"],
        "sha256": digest,
        "width": width,
        "height": height,
        "bytes": row["bytes"],
        "rejected": reason,
    }


def _split(
    config: Config, known: list[InspectedImage]
) -> tuple[list[InspectedImage], list[InspectedImage], list[ImageRecord]]:
    """Images to train on, images held out, and records of those already rejected; no content is in two of them."""
    settings = config.preprocess
    rejected: list[ImageRecord] = []
    usable: list[InspectedImage] = []
    for image in known:
        if image.rejected:
            rejected.append(image.record())
        elif image.width * image.height > settings.max_pixels:
            reason = f"{image.width}x{image.height} is more than {settings.max_pixels} pixels"
            rejected.append(image.record(rejected=reason))
        else:
            usable.append(image)

    held_out_names = _held_out(settings, usable)
    holdout: list[InspectedImage] = []
    train: list[InspectedImage] = []
    first: dict[str, str] = {}
    for image in sorted(usable, key=lambda p: (p.name not in held_out_names, p.name)):
        held_out = image.name in held_out_names
        width, height = shards.reduced_size(settings, image.width, image.height)
        smallest = _SMALLEST_HOLDOUT if held_out else settings.tile
        if image.sha256 in first:
            rejected.append(image.record(held_out=held_out, rejected=f"{_DUPLICATE} {first[image.sha256]}"))
        elif min(width, height) // config.scale * config.scale < smallest:
            reason = f"{width}x{height} is too small, expected at least {smallest} pixels a side"
            rejected.append(image.record(held_out=held_out, rejected=reason))
        else:
            first[image.sha256] = image.name
            (holdout if held_out else train).append(image)
    _check(config, [*rejected, *(p.record(tiles=1) for p in train), *(p.record(held_out=True) for p in holdout)])
    return train, holdout, sorted(rejected, key=lambda record: record.name)


_DUPLICATE = "has the same content as"


def _held_out(settings: Preprocess, usable: list[InspectedImage]) -> set[str]:
    if not settings.holdout:
        return {p.name for p in sorted(usable, key=lambda p: p.sha256)[: settings.holdout_count]}
    names: set[str] = set()
    for pattern in settings.holdout:
        matching = {
            p.name
            for p in usable
            if fnmatch.fnmatch(p.name, pattern) or fnmatch.fnmatch(PurePosixPath(p.name).stem, pattern)
        }
        if not matching:
            raise UserError(f"preprocess.holdout has {pattern!r}, expected a pattern that matches an image's name")
        names |= matching
    return names


def _plan(config: Config, chosen: list[InspectedImage], held_out: bool) -> Iterator[ShardSpec]:
    """Group consecutive images into shards of about the target size.

    A shard has at least half the target, and then ends at an image whose content says so, with a probability that
    gives the target on average. So an image that is added or removed changes the shard around it, and the next ones
    begin where they began before; with fixed sizes it would shift them all.
    """
    settings = config.preprocess
    target = settings.shard_mb * 1e6
    group: list[InspectedImage] = []
    total = 0
    for image in chosen:
        width, height = shards.reduced_size(settings, image.width, image.height)
        size = width * height * 3
        if not held_out:
            counts = [
                len(shards.tile_origins(side // config.scale * config.scale, settings)) for side in (width, height)
            ]
            size = counts[0] * counts[1] * settings.tile**2 * 3
        group.append(image)
        total += size
        ends = int(image.sha256[:8], 16) < 2**32 * size / (target / 2)
        if total >= 2 * target or (total >= target / 2 and ends):
            yield ShardSpec(held_out, config.scale, settings, group)
            group, total = [], 0
    if group:
        yield ShardSpec(held_out, config.scale, settings, group)


def _write_shards(config: Config, plan: list[ShardSpec], home: str, url: str) -> Iterator[Shard]:
    """Write the shards that aren't there yet, in parallel; a sibling patch set's shard of the same name is copied."""
    cluster.connect(config)
    storage.sweep(url)
    seen: dict[str, str] = {}
    for sibling in [*storage.names(home), url.rsplit("/", 1)[-1]]:  # its own shards take precedence
        seen.update({file: f"{home}/{sibling}/{file}" for file in storage.names(f"{home}/{sibling}")})
    settings = config.preprocess.model_dump_json()
    tasks = [
        {
            "images": json.dumps([asdict(image) for image in spec.images]),
            "held_out": spec.held_out,
            "scale": config.scale,
            "settings": settings,
            "url": f"{url}/{spec.file}",
            "finished": seen.get(spec.file),
        }
        for spec in plan
    ]
    for row in _progress(cluster.map_rows(tasks, _write_shard), sum(len(spec.images) for spec in plan), "preprocess"):
        if row["error"]:
            raise UserError(f"{url} is unfinished: {row['error']}; run the same command again to go on")
        record = json.loads(row["shard"])
        yield Shard(images=[ImageRecord(**image) for image in record.pop("images")], **record)


def _write_shard(row: dict[str, Any]) -> dict[str, Any]:
    """Ray Data task: make one shard; an OSError becomes the row's error."""
    known = [InspectedImage(**image) for image in json.loads(row["images"])]
    spec = ShardSpec(row["held_out"], row["scale"], Preprocess(**json.loads(row["settings"])), known)
    counts = {"images": len(known), "bytes": sum(image.bytes for image in known)}
    try:
        shard = shards.make(spec, row["url"], row["finished"])
    except OSError as error:
        return {"shard": "", "error": f"{spec.file} could not be made ({error})", **counts, "rejected": 0}
    rejects = sum(record.rejected is not None for record in shard.images)
    return {"shard": json.dumps(asdict(shard)), "error": "", **counts, "rejected": rejects}


def _check(config: Config, records: Sequence[ImageRecord]) -> None:
    """Refuse a set of too many bad images, or without any to train on."""
    bad = [record for record in records if record.rejected and not record.rejected.startswith(_DUPLICATE)]
    limit = config.preprocess.max_reject_share
    if len(bad) > limit * len(records):
        raise UserError(
            f"{len(bad)} of {len(records)} images were rejected, more than preprocess.max_reject_share {limit:g}"
            f"{_reasons(records)}"
        )
    if not any(record.tiles for record in records):
        raise UserError(f"no image of {', '.join(config.source)} is left to train on{_reasons(records)}")


def _reasons(records: Iterable[ImageRecord]) -> str:
    rejected = [f"{record.name} {record.rejected}" for record in records if record.rejected]
    more = f" and {len(rejected) - 3} more" if len(rejected) > 3 else ""
    return f": {'; '.join(rejected[:3])}{more}" if rejected else ""


def _progress(rows: Iterable[dict[str, Any]], total: int, stage: str) -> Iterator[dict[str, Any]]:
    """Pass rows on, printing every few seconds how far the work is; rates are those of the last half minute."""
    start = printed = time.monotonic()
    done = size = rejected = 0
    recent: deque[tuple[float, int, int]] = deque([(start, 0, 0)])
    for row in rows:
        yield row
        done += row.get("images", 1)
        size += row["bytes"]
        rejected += row["rejected"] if isinstance(row["rejected"], int) else row["rejected"] is not None
        now = time.monotonic()
        if done < total and now - printed < 2:
            continue
        printed = now
        recent.append((now, done, size))
        while len(recent) > 2 and now - recent[0][0] > 30:
            recent.popleft()
        seconds = max(now - recent[0][0], 1e-9)
        rate, megabytes = (done - recent[0][1]) / seconds, (size - recent[0][2]) / seconds / 1e6
        print(
            f"{stage}: {done} of {total} images, {rate:.1f} images/s, {megabytes:.1f} MB/s, "
            f"{rejected} rejected, about {(total - done) / max(rate, 1e-9):.0f} s left",
            flush=True,
        )
