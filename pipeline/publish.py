"""Show the recorded trainings as the results page of the documentation, or in MLflow.

`python -m pipeline.publish docs` writes the results page and the model cards from the records.
`python -m pipeline.publish mlflow` imports the records into a store of their own, as `make results-ui` does before it
opens the UI.
`python -m pipeline.publish curve LABEL SCORES` adds a model's scores with several shares of another model (alpha), or
after several numbers of steps, to its record.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path

from pipeline import storage
from pipeline.settings import UserError
from pipeline.settings.command_line import Parser, command

_RECORDS = "docs/results"


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.publish`."""
    parser = Parser("publish", (__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    docs = kinds.add_parser("docs", help="write results.md, its figures, and the model cards")
    docs.add_argument("--out", type=Path, default=Path("docs/explanation"), help="folder to write to (%(default)s)")
    docs.add_argument("--seeds", default=f"{_RECORDS}/seeds", help="records of short trainings (%(default)s)")
    further = "records of other tasks, such as another scale; only model cards are written for them (%(default)s)"
    docs.add_argument("--others", default=f"{_RECORDS}/others", help=further)
    earlier = "records of the first edition, which only the figure of costs shows (%(default)s)"
    docs.add_argument("--earlier", default=f"{_RECORDS}/first-edition", help=earlier)
    docs.add_argument("--benchmarks", type=Path, help="folder of Set5/ and Set14/; without it, crops stay as they are")
    imported = kinds.add_parser("mlflow", help="import the records into a separate MLflow store")
    imported.add_argument("--home", default="runs/results", help="folder of that store (%(default)s)")
    imported.add_argument("--port", type=int, help="port for MLflow's UI, which must be free; 5000 by default")
    curve = kinds.add_parser("curve", help="add a model's scores at several alphas or numbers of steps to its record")
    curve.add_argument("label", help="label of the record")
    curve.add_argument(
        "scores", help="the scores.json that interpolate --sets or evaluate --steps has written, or its folder"
    )
    for kind in (docs, imported, curve):
        kind.add_argument("--records", default=_RECORDS, help="folder of the records (%(default)s)")
    options = parser.parse_args(argv)
    if not storage.names(options.records):
        raise UserError(f"{options.records} holds no record, expected a folder that was written with tune.records")
    if options.kind == "curve":
        _add_curve(options.records, options.label, options.scores)
        return
    if options.kind == "mlflow" and options.port:
        _require_free(options.port)

    from pipeline.grid import importing  # after the checks, because imports take seconds
    from pipeline.reporting import cards, records, results_page

    whole = records.read_all(options.records)
    found = [record for record in whole if record.planned_steps is None]
    if not found:
        raise UserError(f"{options.records} holds no finished training, expected a folder written with tune.records")
    for record in whole:
        if record.planned_steps is not None:
            steps = f"{record.result.steps:,} of {record.planned_steps:,} steps"
            print(f"{record.label} is left out, because its training has made {steps} so far", flush=True)
    if options.kind == "mlflow":
        importing.import_records(found, options.records, options.home, options.port or 5000)
        return
    seeds = records.read_all(options.seeds)
    results_page.write_page(found, seeds, options.records, options.out, options.benchmarks, options.earlier)
    written = 0
    for folder in (options.records, options.others, options.earlier):
        own = found if folder == options.records else records.read_all(folder)
        cards.write_cards(folder, own)
        written += len(own)
    print(f"{options.out / 'results.md'} and {written} model cards written")


def _add_curve(folder: str, label: str, place: str) -> None:
    from pipeline.evaluation.scores import Scores
    from pipeline.grid import records  # after the checks, because imports take seconds

    url = place if place.endswith(".json") else f"{place.rstrip('/')}/scores.json"
    scores = storage.read_document(url, Scores, "rerun the command that wrote it")
    if scores is None:
        raise UserError(f"{url} does not exist, expected the scores of pipeline.interpolate or pipeline.evaluate")
    print(f"{records.add_variants(folder, label, scores)} points added to the record {label}")


def _require_free(port: int) -> None:
    """Raise a UserError unless a server can listen at a port of this machine."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        reason = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used ({error})"
        raise UserError(
            f"port {port} {reason}: choose another, such as make results-ui PORT={min(port, 65534) + 1}"
        ) from None


if __name__ == "__main__":
    main()
