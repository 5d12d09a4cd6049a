"""Look into a patch set.

`python -m pipeline.patchset show URL` prints what a patch set holds; `verify URL` checks that it is unchanged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.data import inspection, patchset
from pipeline.settings.command_line import command


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.patchset`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.patchset", description="Look into a patch set.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print a summary and write a contact sheet of HR/LR pairs")
    show.add_argument("url", metavar="URL", help="folder of the patch set, local or any fsspec URL")
    show.add_argument("--sheet", metavar="FILE", help="PNG to write; NAME-sheet.png in the current folder by default")
    show.add_argument("--pairs", type=int, default=24, help="tiles on the sheet (default 24)")
    show.add_argument("--seed", type=int, default=0, help="seed that chooses the tiles (default 0)")
    verify = commands.add_parser("verify", help="recompute checksums and counts; exit code 1 if something is wrong")
    verify.add_argument("url", metavar="URL", help="folder of the patch set, local or any fsspec URL")
    options = parser.parse_args(argv)
    patch_set = patchset.load(options.url.rstrip("/"))
    if options.command == "show":
        print(inspection.summary(patch_set))
        sheet = Path(options.sheet or f"{patch_set.name}-sheet.png")
        inspection.contact_sheet(patch_set, options.pairs, options.seed).save(sheet)
        print(f"contact sheet: {sheet.absolute()}")
    elif not _verify(patch_set):
        raise SystemExit(1)


def _verify(patch_set: patchset.PatchSet) -> bool:
    whole = True
    for i, shard in enumerate(patch_set.all_shards, start=1):
        print(f"\rverifying shard {i} of {len(patch_set.all_shards)}", end="", file=sys.stderr, flush=True)
        for fault in inspection.find_faults(patch_set, shard):
            whole = False
            print(f"\n{shard.file}: {fault}", flush=True)
    print(file=sys.stderr)
    for file in inspection.unknown_files(patch_set):
        print(f"{file} does not belong to the patch set (left by an interrupted run, or put there) and is never read")
    if whole:
        print(f"{patch_set.url} is whole: {patchset.describe(patch_set)}")
    return whole


if __name__ == "__main__":
    main()
