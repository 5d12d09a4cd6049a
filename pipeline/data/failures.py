"""Failures while a patch set is made: which of them are tried again, and how many end the run."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from pipeline.data.manifest import ImageRecord
from pipeline.data.rejection import RejectionKind
from pipeline.settings import Config, UserError
from pipeline.storage import printable

PAUSES_S = (2.0, 15.0)
"""Seconds to wait before tasks run again that failed because of the storage, or whose processes died; each is an
attempt."""
_NAMED = 3
"""Rejected images, or failed shards, that an error message names."""
_FEW_FAILED, _FAILED_SHARE = 16, 0.01
"""Failed shards, and share of all shards, of which the larger number may fail before the run ends early."""


class Rejects:
    """Counts the rejected images of a patch set, and remembers those that a message would name.

    Args:
        config: limits the share of rejected images, among which duplicates do not count.
        images: number of all images.
    """

    def __init__(self, config: Config, images: int) -> None:
        self._config, self._images = config, images
        self._first: list[ImageRecord] = []
        self._rejected = self._bad = 0

    def add(self, records: Sequence[ImageRecord]) -> None:
        """Add rejected images.

        Raises:
            UserError: if more images are rejected than the limit allows, whatever is still to come.
        """
        self._first = heapq.nsmallest(_NAMED, [*self._first, *records], key=lambda record: record.name)
        self._rejected += len(records)
        self._bad += sum(
            bool(record.rejected and record.rejected.kind is not RejectionKind.DUPLICATE) for record in records
        )
        limit = self._config.preprocess.max_reject_share
        if self._bad > limit * self._images:
            raise UserError(
                f"{self._bad} of {self._images} images were rejected, more than preprocess.max_reject_share {limit:g}"
                f"{self._reasons()}"
            )

    def check_trained(self, trained: int) -> None:
        """Check that some images are left to train on.

        Args:
            trained: number of images to train on.

        Raises:
            UserError: if there are none.
        """
        if not trained:
            sources = printable(", ".join(self._config.source))
            raise UserError(f"no image of {sources} is left to train on{self._reasons()}")

    def _reasons(self) -> str:
        named = [printable(f"{record.name} {record.rejected}") for record in self._first]
        return f": {'; '.join(named)}{_more(self._rejected)}" if named else ""


class FailedShards:
    """Counts the shards of a patch set that failed in all attempts, and remembers those that a message names.

    Args:
        url: path or URL of the patch set.
        shards: number of all its shards.
    """

    def __init__(self, url: str, shards: int) -> None:
        self._url, self._most = url, max(_FEW_FAILED, _FAILED_SHARE * shards)
        self._first: list[str] = []
        self._failed = 0

    def add(self, file: str, reason: str) -> None:
        """Add a failed shard.

        Raises:
            UserError: if so many have failed that something else must be wrong.
        """
        self._failed += 1
        if len(self._first) < _NAMED:
            self._first.append(f"{file} could not be made ({reason})")
        if self._failed > self._most:
            self.check()

    def check(self) -> None:
        """Check that no shard is missing.

        Raises:
            UserError: if one has failed.
        """
        if self._failed:
            raise UserError(
                f"{self._url} is unfinished: {'; '.join(self._first)}{_more(self._failed)}; "
                "rerun the same command to resume"
            )


def _more(count: int) -> str:
    return f" and {count - _NAMED} more" if count > _NAMED else ""
