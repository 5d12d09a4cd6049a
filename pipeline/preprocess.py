"""Make a patch set from images.

`python -m pipeline.preprocess --source FOLDER` prints the location of the patch set. Everything is named by its inputs,
so finished shards are reused and an unchanged source is not read twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage, terminal
from pipeline.settings.command_line import command, parse
from pipeline.settings.prerequisites import check_prerequisites


@command
def main(argv: Sequence[str]) -> None:
    """Run `python -m pipeline.preprocess`."""
    config = parse(argv, "preprocess", "Make a patch set from images.")
    check_prerequisites(config)
    with storage.lock_folder(config.outputs, "python -m pipeline.preprocess"):
        with terminal.stage("", "Ray is loading"):
            from pipeline.data import patchset, preparation, summary  # after the checks, because imports take seconds

        patch_set, _ = preparation.prepare(config)
        print(f"patch set {patch_set.url}: {patchset.describe(patch_set)}")
        for line in summary.list_rejected(patch_set, summary.NAMED):
            print(f"  {line}")


if __name__ == "__main__":
    main()
