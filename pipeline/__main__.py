"""List the commands: `python -m pipeline`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pipeline.settings import UserError
from pipeline.settings.command_line import command

COMMANDS = {
    "run": "run the whole workflow: preprocess, train, evaluate and report",
    "preprocess": "make a patch set from images",
    "train": "train a network on a patch set",
    "evaluate": "score models, or a finished training",
    "tune": "train and compare a grid",
    "upscale": "upscale an image",
    "export": "export a model to another format",
    "interpolate": "make models between two others",
    "serve": "serve a model over HTTP, with a page",
    "patchset": "show or verify a patch set",
    "publish": "show recorded trainings as a results page or in MLflow",
}
"""Purpose of each command, by the name of its module in this package."""


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline`."""
    if argv and argv[0] in COMMANDS:
        raise UserError(f"{argv[0]} is a module of its own, expected python -m pipeline.{shlex.join(argv)}")
    if argv and argv[0] not in ("-h", "--help"):
        raise UserError(f"there is no command {argv[0]}, expected one of {', '.join(COMMANDS)}")
    print("Train networks for image super-resolution, and upscale images. The commands are:\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m pipeline.{name:<11}  {purpose}")
    print("\nEach command takes --help. To begin: python -m pipeline.run --config configs/demo.yaml")


if __name__ == "__main__":
    main()
