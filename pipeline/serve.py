"""Serve a model over HTTP: `python -m pipeline.serve`, then open http://127.0.0.1:8000 in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from pipeline import terminal
from pipeline.networks import bundled
from pipeline.networks.sources import find_model
from pipeline.serving import PRECISIONS, Limits, ServeOptions, listen
from pipeline.settings import UserError
from pipeline.settings.command_line import Parser, command, positive_number


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.serve`."""
    default = Limits()
    parser = Parser("serve", "Serve a model over HTTP: a page for people, and an endpoint for programs.")
    parser.add_argument(
        "--model", default=bundled.DEFAULT, help="a model, as for pipeline.upscale (default: %(default)s)"
    )
    parser.add_argument("--host", default=ServeOptions.host, help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        default=ServeOptions.port,
        help="port to listen on; 0 for a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--replicas",
        type=_count,
        help="number of processes that compute (default: one per GPU, else one per core, at most 8)",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="the device to compute on (default: cuda if there is a GPU, else cpu)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=ServeOptions.precision,
        help="number format in which the network computes (default: %(default)s)",
    )
    parser.add_argument(
        "--max-mb",
        type=positive_number,
        default=default.megabytes,
        help="largest image file in MB (default: %(default)g)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive_number,
        default=default.megapixels,
        help="largest enlarged image in megapixels (default: %(default)g)",
    )
    parser.add_argument(
        "--queue",
        type=_count,
        default=default.queue,
        help="requests that may wait; further ones are answered with 503 (default: %(default)s)",
    )
    given = parser.parse_args(argv)
    if not (find_spec("uvicorn") and find_spec("grpc_reflection") and find_spec("werkzeug")):
        raise UserError("the packages of the server are missing: expected pip install 'sr-pipeline[serve]'")
    limits = Limits(given.max_mb, given.max_megapixels, given.queue)
    model = find_model(given.model)
    options = ServeOptions(model, given.host, given.port, given.replicas, given.device, given.precision, limits)
    listening = listen(options.host, options.port)
    if not options.is_local:
        print(
            f"warning: everybody who reaches {options.host} can use this server, because it asks for no password",
            file=sys.stderr,
            flush=True,
        )
    with terminal.stage("", "Ray Serve is loading"):
        from pipeline.serving.server import serve_model  # after the checks, because imports take seconds

    serve_model(options, listening)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    main()
