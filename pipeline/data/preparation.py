"""Prepare a patch set: take the inventory, split the images, plan the shards, write them with Ray Data.

Everything is named by its inputs, so finished shards are reused and an unchanged source is not read twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import cluster, storage
from pipeline.data import patchset, shards, sources
from pipeline.data.failures import PAUSES_S, FailedShards, Rejects
from pipeline.data.images import PEAK_BYTES
from pipeline.data.inventory import take_inventory
from pipeline.data.manifest import ImageRecord, Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.progress import Work, image_progress
from pipeline.data.reuse import FinishedShard, find_finished, record_etags
from pipeline.data.shard_plan import ShardPlan, ShardSpec
from pipeline.data.split import split_images
from pipeline.settings import Config

_ROUND = 10_000
"""Shards whose tasks are in the driver's memory at the same time."""


@dataclass(frozen=True)
class Preparation:
    """The work that is left to make a patch set."""

    config: Config
    name: str
    """Name of the patch set, which its content determines."""
    shards: ShardPlan
    rejected: list[ImageRecord]
    """Images that are already known to be unusable, sorted by name."""

    @property
    def images(self) -> int:
        """Number of all images."""
        return self.shards.images + len(self.rejected)


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
    inventory = take_inventory(config, sources.merge(listings), f"{_home(config)}/inventory")
    train, holdout, rejected = split_images(config, inventory)
    planned = ShardPlan(config, inventory, train, holdout)
    rejects = Rejects(config, len(inventory))
    rejects.add(rejected)
    rejects.check_trained(len(train))
    return Preparation(config, planned.name_patch_set(rejected), planned, rejected)


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
    planned = preparation.shards
    numbers = {file: number for number, file in enumerate(planned.files)}
    made = ((numbers[shard.file], shard) for shard in _write_shards(preparation, home, url))
    patch_set = patchset.assemble(
        url, preparation.name, config.scale, config.preprocess, made, planned.trained, preparation.rejected
    )
    totals = patch_set.manifest.totals
    rejects = Rejects(config, totals.images)
    rejects.add(patch_set.rejected())
    rejects.check_trained(totals.trained)
    record_etags(url)
    return patch_set.save(), False


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
        storage.report_once(f"{url} has a damaged manifest or index, which is made again from the undamaged shards")
        return None
    if missing:
        storage.report_once(f"{url} lacks {', '.join(missing[:3])}: {len(missing)} files are made again")
    return None if missing else patch_set


@dataclass(frozen=True)
class _ShardTask:
    """A shard to make."""

    spec: ShardSpec
    url: str
    """Path or URL of the new file."""
    finished: FinishedShard | None
    """A finished shard of this name; None if there is none."""
    pixels: int
    """Pixels of all its images."""
    memory: int
    """Bytes of memory that it takes: those of its largest image."""
    bytes: int
    """Size of the image files."""

    @classmethod
    def of(cls, spec: ShardSpec, url: str, finished: FinishedShard | None) -> _ShardTask:
        """Describe the work for a shard."""
        sizes = [(image.width * image.height, image.bytes) for image in spec.images]
        memory = max((PEAK_BYTES * pixels + size for pixels, size in sizes), default=0)
        return cls(spec, url, finished, sum(pixels for pixels, _ in sizes), memory, sum(size for _, size in sizes))


@dataclass(frozen=True)
class _ShardOutcome:
    """A finished shard and the work behind it."""

    shard: Shard
    work: Work


def _write_shards(preparation: Preparation, home: str, url: str) -> Iterator[Shard]:
    """Make all shards in parallel; a shard of the same name in any patch set below `home` is copied.

    Shards that fail because of the storage are made again, as `PAUSES_S` says. If some fail for good, all others are
    finished first, unless so many fail that something else must be wrong.

    Raises:
        UserError: if a shard cannot be made, or as soon as too many images are rejected, whatever is still to come.
    """
    config, planned = preparation.config, preparation.shards
    cluster.connect(config)
    for folder in (url, f"{url}/index", f"{url}/images", f"{home}/inventory"):
        storage.sweep(folder)
    finished = find_finished(home, url, config.preprocess, planned.files)
    rejects = Rejects(config, preparation.images)
    rejects.add(preparation.rejected)
    failed = FailedShards(url, len(planned))
    specs = iter(planned)
    with image_progress("preprocess", planned.images) as add:
        while chunk := list(itertools.islice(specs, _ROUND)):
            tasks = [_ShardTask.of(spec, f"{url}/{spec.file}", finished.get(spec.file)) for spec in chunk]
            for outcome in cluster.map_tasks(
                _run_task, tasks, seconds=_seconds, memory=lambda task: task.memory, pauses=PAUSES_S
            ):
                if isinstance(outcome, cluster.TaskError):
                    failed.add(outcome.task.spec.file, outcome.reason)
                    continue
                add(outcome.work)
                rejects.add([record for record in outcome.shard.images if record.rejected])
                yield outcome.shard
    failed.check()


def _seconds(task: _ShardTask) -> float:
    """Estimate the time that a shard takes, which is a tenth if it only has to be copied."""
    return task.pixels / 1e6 * (0.004 if task.finished else 0.04)


def _run_task(task: _ShardTask) -> _ShardOutcome:
    """Make one shard in a Ray Data task."""
    spec = task.spec
    shard = shards.make_shard(spec, task.url, task.finished)
    rejected = sum(record.rejected is not None for record in shard.images)
    return _ShardOutcome(shard, Work(len(spec.images), task.bytes, rejected))
