"""Play faults on the local stack: `python -m tests.chaos` for all, `--case NAME --seed N` for one.

A case starts a command, disturbs it at random moments, and checks that the command, or the same one run again, leaves
the same files as an undisturbed one. With `--table FILE`, the results are written as a page of the documentation.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.cases import CASES, Case
from tests.chaos.ground import ChaosError, Ground, Skipped
from tests.chaos.scene import Scene
from tests.chaos.table import Row, keep_row, write_table


def main() -> None:
    """Run `python -m tests.chaos`."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", action="append", metavar="NAME", help="a case, or the first part of several names")
    parser.add_argument("--seed", type=int, default=0, help="chooses the random moments (default: %(default)s)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write all results in the folder to this page")
    parser.add_argument("--folder", type=Path, help="folder to work in, which is kept (default: a temporary one)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.case or case.name.startswith(tuple(options.case))]
    if options.list:
        print("\n".join(f"{case.name:<20} {case.fault}" for case in chosen))
        return
    if not chosen:
        parser.error(f"no case is called {options.case}, expected names that --list prints")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell makes commands in the background ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sr-chaos-"))
    began = time.monotonic()
    ground = Ground(folder.absolute())
    rows: list[Row] = []
    try:
        ground.start()
        for case in chosen:
            rows.append(play(ground, case, options.seed))
            keep_row(folder, rows[-1])
        if options.table:
            write_table(options.table, folder)
    except KeyboardInterrupt:
        print(f"stopped after {len(rows)} of {len(chosen)} cases", file=sys.stderr)
    finally:
        ground.stop()
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
    failed = [row.case.name for row in rows if row.problem]
    minutes = (time.monotonic() - began) / 60
    skipped = sum(bool(row.skipped) for row in rows)
    print(f"{len(rows)} cases in {minutes:.1f} minutes: {len(failed)} failed, {skipped} skipped", *failed)
    sys.exit(bool(failed) or len(rows) < len(chosen))


def play(ground: Ground, case: Case, seed: int) -> Row:
    """Play a case, print how it ends, and leave a healthy stack."""
    print(f"{case.name} --seed {seed}: {case.fault}", flush=True)
    start = time.monotonic()
    row = Row(case)
    try:
        ground.start()
        ground.undisturbed(case.stage)
        start = time.monotonic()
        scene = Scene(ground, case.stage, case.name, random.Random(f"{seed} {case.name}"))
        case.play(scene)
        row = Row(case, len(scene.disturbances) or 1, scene.lost, scene.unit, scene.seen)
    except Skipped as reason:
        row = Row(case, skipped=str(reason))
    except Exception as error:
        row = Row(case, problem=str(error) or type(error).__name__)
        if not isinstance(error, ChaosError):
            traceback.print_exc()
    finally:
        ground.end_commands()
    row.seconds, row.seed = time.monotonic() - start, seed
    print(f"  {row.summary()}", flush=True)
    return row


if __name__ == "__main__":
    main()
