"""Prepare a patch set: take the inventory, split the images, plan the shards, write them with Ray Data.

Everything is named by its inputs, so finished shards are reused and an unchanged source is not read twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from pipeline import cluster, storage
from pipeline.data import patchset, shards, sources
from pipeline.data.inventory import take_inventory
from pipeline.data.manifest import ImageRecord, Manifest, Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.progress import Work, print_progress
from pipeline.data.rejection import RejectionKind
from pipeline.data.shard_plan import ShardSpec, plan_shards
from pipeline.data.split import split_images
from pipeline.settings import Config, UserError
from pipeline.storage import fingerprint

_NAMED_REJECTIONS = 3
"""Rejected images that an error message names."""


def prepare(config: Config) -> tuple[PatchSet, bool]:
    """Make the patch set that the configuration describes, or find it if it was made before.

    Returns:
        The patch set, and True if it was found.

    Raises:
        UserError: if a source is missing or empty, too many images are rejected, or a shard cannot be made.
        OSError: if a download or the storage fails.
    """
    home = f"{config.outputs}/patchsets"
    listed = sources.list_images(config.source, config.downloads)
    train, holdout, rejected = split_images(config, take_inventory(config, listed, f"{home}/inventory.json"))
    _check_records(
        config,
        [*rejected, *(image.record(tiles=1) for image in train), *(image.record(held_out=True) for image in holdout)],
    )
    plan = [*plan_shards(config, train, held_out=False), *plan_shards(config, holdout, held_out=True)]
    name = f"x{config.scale}-{fingerprint([[spec.file for spec in plan], [asdict(record) for record in rejected]])}"
    url = f"{home}/{name}"
    if storage.exists(patchset.manifest_url(url)):
        return patchset.load(url), True
    written = {shard.file: shard for shard in _write_shards(config, plan, home, url)}
    manifest = Manifest(
        name=name,
        scale=config.scale,
        tile=config.preprocess.tile,
        settings=config.preprocess,
        shards=[written[spec.file] for spec in plan if not spec.held_out],
        holdout=[written[spec.file] for spec in plan if spec.held_out],
        rejected=rejected,
    )
    patch_set = PatchSet(url, manifest)
    _check_records(config, patch_set.images)
    patch_set.save()
    return patch_set, False


@dataclass(frozen=True)
class _ShardTask:
    """A shard to make."""

    spec: ShardSpec
    url: str
    """Path or URL of the new file."""
    finished: str | None
    """Path or URL of a finished shard of this name; None if there is none."""


@dataclass(frozen=True)
class _ShardOutcome:
    """The end of a task: a shard, or the reason for which it could not be made."""

    shard: Shard | None
    error: str | None
    work: Work


def _write_shards(config: Config, plan: Sequence[ShardSpec], home: str, url: str) -> Iterator[Shard]:
    """Make all shards in parallel; a shard of the same name in any patch set below `home` is copied."""
    cluster.connect(config)
    storage.sweep(url)
    existing: dict[str, str] = {}
    for sibling in [*storage.names(home), url.rsplit("/", 1)[-1]]:  # shards in `url` itself take precedence
        existing.update({file: f"{home}/{sibling}/{file}" for file in storage.names(f"{home}/{sibling}")})
    tasks = [_ShardTask(spec, f"{url}/{spec.file}", existing.get(spec.file)) for spec in plan]
    outcomes = cluster.map_tasks(_run_task, tasks)
    total = sum(len(spec.images) for spec in plan)
    for outcome in print_progress(outcomes, lambda outcome: outcome.work, total, "preprocess"):
        if outcome.shard is None:
            raise UserError(f"{url} is unfinished: {outcome.error}; rerun the same command to resume")
        yield outcome.shard


def _run_task(task: _ShardTask) -> _ShardOutcome:
    """Make one shard in a Ray Data task; a failed storage becomes the task's error."""
    spec = task.spec
    work = Work(images=len(spec.images), bytes=sum(image.bytes for image in spec.images), rejected=0)
    try:
        shard = shards.make_shard(spec, task.url, task.finished)
    except OSError as error:
        return _ShardOutcome(None, f"{spec.file} could not be made ({error})", work)
    rejected = sum(record.rejected is not None for record in shard.images)
    return _ShardOutcome(shard, None, work._replace(rejected=rejected))


def _check_records(config: Config, records: Sequence[ImageRecord]) -> None:
    """Check that few enough images are rejected and that some are left to train on; duplicates do not count."""
    bad = [record for record in records if record.rejected and record.rejected.kind is not RejectionKind.DUPLICATE]
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
    more = f" and {len(rejected) - _NAMED_REJECTIONS} more" if len(rejected) > _NAMED_REJECTIONS else ""
    return f": {'; '.join(rejected[:_NAMED_REJECTIONS])}{more}" if rejected else ""
