"""Prepare a patch set: take the inventory, split the images, plan the shards, write them with Ray Data.

Everything is named by its inputs, so finished shards are reused and an unchanged source is not read twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from pipeline import cluster, storage
from pipeline.data import patchset, shards, sources
from pipeline.data.images import PEAK_BYTES
from pipeline.data.inventory import take_inventory
from pipeline.data.manifest import ImageRecord, Manifest, Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.progress import Work, image_progress
from pipeline.data.rejection import RejectionKind
from pipeline.data.shard_plan import ShardSpec, plan_shards
from pipeline.data.split import split_images
from pipeline.settings import Config, UserError
from pipeline.storage import fingerprint, printable

_NAMED_REJECTIONS = 3
"""Rejected images that an error message names."""


@dataclass(frozen=True)
class Preparation:
    """The work that is left to make a patch set."""

    config: Config
    name: str
    """Name of the patch set, which its content determines."""
    shards: list[ShardSpec]
    rejected: list[ImageRecord]
    """Images that are already known to be unusable."""


def prepare(config: Config) -> tuple[PatchSet, bool]:
    """Make the patch set that the configuration describes, or find it if it was made before.

    Returns:
        The patch set, and True if it was found.

    Raises:
        UserError: if a source is missing or empty, too many images are rejected, or a shard cannot be made.
        OSError: if a download or the storage fails.
    """
    return carry_out(plan(config))


def plan(config: Config) -> Preparation:
    """Read what is new in the sources, and plan the patch set without making any shard.

    Raises:
        UserError: if a source is missing or empty, or too many images are rejected.
        OSError: if a download or the storage fails.
    """
    listings = sources.list_sources(config.source, config.downloads)
    for listing in listings:
        print(listing.summary(), flush=True)
    inventory = take_inventory(config, sources.merge(listings), f"{_home(config)}/inventory.json")
    train, holdout, rejected = split_images(config, inventory)
    _check_records(
        config,
        [*rejected, *(image.record(tiles=1) for image in train), *(image.record(held_out=True) for image in holdout)],
    )
    planned = [*plan_shards(config, train, held_out=False), *plan_shards(config, holdout, held_out=True)]
    mark = fingerprint([[spec.file for spec in planned], [asdict(record) for record in rejected]])
    return Preparation(config, f"x{config.scale}-{mark}", planned, rejected)


def carry_out(preparation: Preparation) -> tuple[PatchSet, bool]:
    """Make a planned patch set, or find it if it was made before.

    Returns:
        The patch set, and True if it was found.

    Raises:
        UserError: if too many images are rejected, or a shard cannot be made.
        OSError: if the storage fails.
    """
    config, home = preparation.config, _home(preparation.config)
    url = f"{home}/{preparation.name}"
    if found := _open_finished(url):
        return found, True
    written = {shard.file: shard for shard in _write_shards(config, preparation.shards, home, url)}
    manifest = Manifest(
        name=preparation.name,
        scale=config.scale,
        tile=config.preprocess.tile,
        settings=config.preprocess,
        shards=[written[spec.file] for spec in preparation.shards if not spec.held_out],
        holdout=[written[spec.file] for spec in preparation.shards if spec.held_out],
        rejected=preparation.rejected,
    )
    patch_set = PatchSet(url, manifest)
    _check_records(config, patch_set.images)
    patch_set.save()
    return patch_set, False


def _home(config: Config) -> str:
    """Return the path or URL of the folder of all patch sets."""
    return f"{config.outputs}/patchsets"


def _open_finished(url: str) -> PatchSet | None:
    """Open the finished patch set at `url`; None if there is none, or if shards of it have to be made again."""
    if not storage.exists(patchset.manifest_url(url)):
        return None
    try:
        patch_set = patchset.load(url)
        missing = patch_set.find_missing()
    except storage.DamagedFileError:
        storage.report_once(f"{patchset.manifest_url(url)} is damaged: it is made again from the undamaged shards")
        return None
    if missing:
        storage.report_once(f"{url} lacks {', '.join(missing[:3])}: {len(missing)} shards are made again")
    return None if missing else patch_set


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
    """A finished shard and the work behind it."""

    shard: Shard
    work: Work


def _write_shards(config: Config, plan: Sequence[ShardSpec], home: str, url: str) -> Iterator[Shard]:
    """Make all shards in parallel; a shard of the same name in any patch set below `home` is copied."""
    cluster.connect(config)
    storage.sweep(url)
    existing: dict[str, str] = {}
    for sibling in [*storage.names(home), url.rsplit("/", 1)[-1]]:  # shards in `url` itself take precedence
        existing.update({file: f"{home}/{sibling}/{file}" for file in storage.names(f"{home}/{sibling}")})
    tasks = [_ShardTask(spec, f"{url}/{spec.file}", existing.get(spec.file)) for spec in plan]
    outcomes = cluster.map_tasks(_run_task, tasks, seconds=_seconds, memory=_memory)
    total = sum(len(spec.images) for spec in plan)
    with image_progress("preprocess", total) as add:
        for outcome in outcomes:
            if isinstance(outcome, cluster.TaskError):
                raise UserError(
                    f"{url} is unfinished: {outcome.task.spec.file} could not be made ({outcome.reason}); "
                    "rerun the same command to resume"
                )
            add(outcome.work)
            yield outcome.shard


def _seconds(task: _ShardTask) -> float:
    """Estimate the time that a shard takes, which is a tenth if it only has to be copied."""
    megapixels = sum(image.width * image.height for image in task.spec.images) / 1e6
    return megapixels * (0.004 if task.finished else 0.04)


def _memory(task: _ShardTask) -> int:
    """Estimate the bytes of memory that a shard takes: those of its largest image."""
    return max((PEAK_BYTES * image.width * image.height + image.bytes for image in task.spec.images), default=0)


def _run_task(task: _ShardTask) -> _ShardOutcome:
    """Make one shard in a Ray Data task."""
    spec = task.spec
    shard = shards.make_shard(spec, task.url, task.finished)
    rejected = sum(record.rejected is not None for record in shard.images)
    return _ShardOutcome(shard, Work(len(spec.images), sum(image.bytes for image in spec.images), rejected))


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
        raise UserError(f"no image of {printable(', '.join(config.source))} is left to train on{_reasons(records)}")


def _reasons(records: Iterable[ImageRecord]) -> str:
    rejected = [printable(f"{record.name} {record.rejected}") for record in records if record.rejected]
    more = f" and {len(rejected) - _NAMED_REJECTIONS} more" if len(rejected) > _NAMED_REJECTIONS else ""
    return f": {'; '.join(rejected[:_NAMED_REJECTIONS])}{more}" if rejected else ""
