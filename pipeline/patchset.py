"""Show or verify a patch set.

`python -m pipeline.patchset show URL` prints what a patch set holds; `verify URL` checks that it is undamaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.data import patchset, summary, verification
from pipeline.settings.command_line import command


@command
def main(argv: Sequence[str]) -> None:
    """Run `python -m pipeline.patchset`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.patchset", description="Show or verify a patch set.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print a summary and write a contact sheet of HR/LR pairs")
    show.add_argument("url", metavar="URL", help="folder of the patch set, a local path or fsspec URL")
    show.add_argument(
        "--sheet", metavar="FILE", help="PNG file to write (default: NAME-sheet.png in the current folder)"
    )
    show.add_argument("--pairs", type=int, default=24, help="number of tiles on the sheet (default: 24)")
    show.add_argument("--seed", type=int, default=0, help="seed that chooses the tiles (default: 0)")
    verify = commands.add_parser("verify", help="recompute checksums and counts; the exit code is 1 if one is wrong")
    verify.add_argument("url", metavar="URL", help="folder of the patch set, a local path or fsspec URL")
    options = parser.parse_args(argv)
    patch_set = patchset.load(options.url.rstrip("/"))
    if options.command == "show":
        print(summary.describe(patch_set))
        sheet = Path(options.sheet or f"{patch_set.name}-sheet.png")
        summary.contact_sheet(patch_set, options.pairs, options.seed).save(sheet)
        print(f"contact sheet: {sheet.absolute()}")
    elif not _verify(patch_set):
        raise SystemExit(1)


def _verify(patch_set: patchset.PatchSet) -> bool:
    undamaged = True
    for i, shard in enumerate(patch_set.all_shards, start=1):
        print(f"\rverifying shard {i} of {len(patch_set.all_shards)}", end="", file=sys.stderr, flush=True)
        for fault in verification.find_faults(patch_set, shard):
            undamaged = False
            print(f"\n{shard.file}: {fault}", flush=True)
    print(file=sys.stderr)
    for file in verification.unknown_files(patch_set):
        print(f"{file} does not belong to the patch set and is never read; an interrupted run may have left it")
    if undamaged:
        print(f"{patch_set.url} is undamaged: {patchset.describe(patch_set)}")
    return undamaged


if __name__ == "__main__":
    main()
