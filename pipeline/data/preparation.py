"""Prepare a patch set: take the inventory, split the images, plan the shards, write them with Ray Data.

Everything is named by its inputs, so finished shards are reused and an unchanged source is not read twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from pipeline import cluster, storage
from pipeline.data import patchset, shards, sources
from pipeline.data.images import PEAK_BYTES
from pipeline.data.inventory import take_inventory
from pipeline.data.manifest import ImageRecord, Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.progress import Work, image_progress
from pipeline.data.rejection import RejectionKind
from pipeline.data.reuse import FinishedShard, find_finished, record_etags
from pipeline.data.shard_plan import ShardPlan, ShardSpec
from pipeline.data.split import split_images
from pipeline.settings import Config, UserError
from pipeline.storage import fingerprint, printable

_NAMED = 3
"""Rejected images, or failed shards, that an error message names."""
_ROUND = 10_000
"""Shards whose tasks are in the driver's memory at the same time."""
_PAUSES_S = (2.0, 15.0)
"""Seconds to wait before shards are made again that failed because of the storage; each is an attempt."""
_MOST_FAILED = 16
"""Failed shards that end a run at once."""


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
    _check_rejected(config, len(inventory), rejected, trained=len(train))
    mark = fingerprint([planned.files, [asdict(record) for record in rejected]])
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
    planned = preparation.shards
    numbers = {file: number for number, file in enumerate(planned.files)}
    made = ((numbers[shard.file], shard) for shard in _write_shards(preparation, home, url))
    patch_set = patchset.assemble(
        url, preparation.name, config.scale, config.preprocess, made, planned.trained, preparation.rejected
    )
    totals = patch_set.manifest.totals
    _check_rejected(config, totals.images, patch_set.rejected(), totals.trained)
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

    Shards that fail because of the storage are made again, as `_PAUSES_S` says. If some fail for good, the others of
    the same round are finished first, unless so many fail that something else must be wrong.

    Raises:
        UserError: if a shard cannot be made, or as soon as too many images are rejected, whatever is still to come.
    """
    config, planned = preparation.config, preparation.shards
    cluster.connect(config)
    for folder in (url, f"{url}/index", f"{url}/images", f"{home}/inventory"):
        storage.sweep(folder)
    finished = find_finished(home, url, config.preprocess, planned.files)
    rejected = _Rejected(preparation)
    failed: list[str] = []
    specs = iter(planned)
    with image_progress("preprocess", planned.images) as add:
        while chunk := list(itertools.islice(specs, _ROUND)):
            tasks = [_ShardTask.of(spec, f"{url}/{spec.file}", finished.get(spec.file)) for spec in chunk]
            for outcome in cluster.map_tasks(
                _run_task, tasks, seconds=_seconds, memory=lambda task: task.memory, pauses=_PAUSES_S
            ):
                if isinstance(outcome, cluster.TaskError):
                    failed.append(f"{outcome.task.spec.file} could not be made ({outcome.reason})")
                    if len(failed) >= _MOST_FAILED:
                        raise _unfinished(url, failed)
                    continue
                add(outcome.work)
                rejected.add(outcome.shard)
                yield outcome.shard
            if failed:
                raise _unfinished(url, failed)


class _Rejected:
    """The images that were rejected so far.

    Args:
        preparation: knows those that reached no shard, and how many images there are.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._bad = count_bad(preparation.rejected)
        self._records: list[ImageRecord] = []

    def add(self, shard: Shard) -> None:
        """Add the rejected images of a shard.

        Raises:
            UserError: if the share of rejected images will be too large, even if no other one is rejected.
        """
        records = [record for record in shard.images if record.rejected]
        self._records += records
        self._bad += count_bad(records)
        config, images = self._preparation.config, self._preparation.images
        if self._bad > config.preprocess.max_reject_share * images:
            known = sorted([*self._preparation.rejected, *self._records], key=lambda record: record.name)
            _check_rejected(config, images, known, trained=1)


def _unfinished(url: str, failed: Sequence[str]) -> UserError:
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return UserError(f"{url} is unfinished: {'; '.join(failed[:_NAMED])}{more}; rerun the same command to resume")


def _seconds(task: _ShardTask) -> float:
    """Estimate the time that a shard takes, which is a tenth if it only has to be copied."""
    return task.pixels / 1e6 * (0.004 if task.finished else 0.04)


def _run_task(task: _ShardTask) -> _ShardOutcome:
    """Make one shard in a Ray Data task."""
    spec = task.spec
    shard = shards.make_shard(spec, task.url, task.finished)
    rejected = sum(record.rejected is not None for record in shard.images)
    return _ShardOutcome(shard, Work(len(spec.images), task.bytes, rejected))


def _check_rejected(config: Config, images: int, rejected: Sequence[ImageRecord], trained: int) -> None:
    """Check that few enough of all images are rejected and that some are left to train on.

    Args:
        config: limits the share of rejected images, among which duplicates do not count.
        images: number of all images.
        rejected: the rejected ones, sorted by name.
        trained: number of those to train on.
    """
    bad = count_bad(rejected)
    limit = config.preprocess.max_reject_share
    if bad > limit * images:
        raise UserError(
            f"{bad} of {images} images were rejected, more than preprocess.max_reject_share {limit:g}"
            f"{_reasons(rejected)}"
        )
    if not trained:
        raise UserError(f"no image of {printable(', '.join(config.source))} is left to train on{_reasons(rejected)}")


def count_bad(records: Iterable[ImageRecord]) -> int:
    """Return the number of images that were rejected for another reason than that they are duplicates."""
    return sum(bool(record.rejected and record.rejected.kind is not RejectionKind.DUPLICATE) for record in records)


def _reasons(rejected: Sequence[ImageRecord]) -> str:
    named = [printable(f"{record.name} {record.rejected}") for record in rejected[:_NAMED]]
    more = f" and {len(rejected) - _NAMED} more" if len(rejected) > _NAMED else ""
    return f": {'; '.join(named)}{more}" if rejected else ""
