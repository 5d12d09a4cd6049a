"""Show or verify a patch set.

`python -m pipeline.patchset show URL` prints what a patch set holds; `verify URL` checks that it is undamaged.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import storage, terminal
from pipeline.settings import UserError
from pipeline.settings.command_line import Parser, command
from pipeline.settings.fields import absolute_path

if TYPE_CHECKING:
    from pipeline.data.patchset import PatchSet

_MOST_PAIRS = 1000
"""Tiles on a sheet; more would make an image that few programs open."""


@command
def main(argv: Sequence[str]) -> None:
    """Run `python -m pipeline.patchset`."""
    parser = Parser("patchset", "Show or verify a patch set.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print a summary and write a contact sheet of HR/LR pairs")
    show.add_argument("url", metavar="URL", help="folder of the patch set, a local path or fsspec URL")
    show.add_argument(
        "--sheet",
        metavar="FILE",
        help="PNG file to write, a local path or fsspec URL (default: NAME-sheet.png in the current folder)",
    )
    show.add_argument("--pairs", type=_pairs, default=24, help="number of tiles on the sheet, 1 to 1000 (default: 24)")
    show.add_argument("--seed", type=int, default=0, help="seed that chooses the tiles (default: 0)")
    show.add_argument("--all", action="store_true", help="list all rejected images, not only the first 20")
    verify = commands.add_parser("verify", help="recompute checksums and counts; the exit code is 1 if one is wrong")
    verify.add_argument("url", metavar="URL", help="folder of the patch set, a local path or fsspec URL")
    options = parser.parse_args(argv)
    url = options.url.rstrip("/")
    if not storage.is_url(url) and not Path(url).is_dir():
        raise UserError(f"{url} is no folder, expected the patch set that pipeline.preprocess prints")

    from pipeline.data import patchset, summary  # after the checks, because imports take seconds

    patch_set = patchset.load(url)
    if options.command == "show":
        rejected = summary.list_rejected(patch_set, None if options.all else summary.NAMED)
        print("\n".join([summary.describe(patch_set), *rejected]), flush=True)
        sheet = absolute_path(options.sheet or f"{storage.plain_name(patch_set.name)}-sheet.png")
        _write_sheet(patch_set, sheet, options.pairs, options.seed)
        print(f"contact sheet: {sheet}")
    elif not _verify(patch_set):
        raise SystemExit(1)


def _pairs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_PAIRS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_PAIRS}")
    return int(text)


def _write_sheet(patch_set: PatchSet, url: str, pairs: int, seed: int) -> None:
    from pipeline.data import summary

    content = io.BytesIO()
    summary.contact_sheet(patch_set, pairs, seed).save(content, "PNG")
    try:
        storage.write(url, content.getvalue())
    except OSError as error:
        reason = error.strerror or storage.one_line(error)
        raise UserError(
            f"the contact sheet {url} cannot be written ({reason}), expected --sheet to name a file in a folder that "
            "can be written to"
        ) from None


def _verify(patch_set: PatchSet) -> bool:
    from pipeline.data import patchset, verification

    undamaged = True
    for fault in verification.find_table_faults(patch_set):
        undamaged = False
        print(fault, flush=True)
    if not undamaged:
        print("the shards were not checked; to make the tables again, delete the damaged ones and rerun the command")
        return False
    with terminal.stage("verify", total=patch_set.manifest.totals.shards, unit="shards") as shown:
        for done, shard in enumerate(patch_set.read_shards(), start=1):
            for fault in verification.find_faults(patch_set, shard):
                undamaged = False
                print(f"{shard.file}: {fault}", flush=True)
            shown.update(done)
    for file in verification.unknown_files(patch_set):
        print(f"{file} does not belong to the patch set and is never read; an interrupted run may have left it")
    if undamaged:
        print(f"{patch_set.url} is undamaged: {patchset.describe(patch_set)}")
    else:
        print("to repair it, delete the damaged files and rerun the command that made them: it makes only these again")
    return undamaged


if __name__ == "__main__":
    main()
