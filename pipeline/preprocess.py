"""Make a patch set from images.

`python -m pipeline.preprocess --source FOLDER` prints the location of the patch set. Everything is named by its inputs,
so finished shards are reused and an unchanged source is not read twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data import patchset, preparation
from pipeline.settings.command_line import command, parse

_LISTED = 20


@command
def main(argv: Sequence[str]) -> None:
    """Run `python -m pipeline.preprocess`."""
    patch_set, _ = preparation.prepare(parse(argv, "preprocess", "Make a patch set from images."))
    print(f"patch set {patch_set.url}: {patchset.describe(patch_set)}")
    rejected = [record for record in patch_set.images if record.rejected]
    for record in rejected[:_LISTED]:
        print(f"  rejected {record.name}: {record.rejected}")
    if len(rejected) > _LISTED:
        print(f"  and {len(rejected) - _LISTED} more, see python -m pipeline.patchset show {patch_set.url}")


if __name__ == "__main__":
    main()
