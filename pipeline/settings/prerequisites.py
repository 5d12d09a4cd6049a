"""Checks before a command starts: a missing place or file makes it fail for certain, so the user learns it at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.settings.errors import UserError
from pipeline.settings.places import ray_address
from pipeline.settings.schema import Config
from pipeline.storage import is_url, printable


def check_prerequisites(config: Config, trains: bool = False, scores: bool = False) -> None:
    """Check the places and local files that a command needs. It imports nothing that takes long and opens no file.

    Args:
        config: resolved settings.
        trains: also check the files that a training reads.
        scores: also check the files that an evaluation reads.

    Raises:
        UserError: if a file or folder does not exist, or the address of the cluster is that of a dashboard.
    """
    ray_address(config)
    for source in config.source:
        if not _may_exist(source):
            raise UserError(
                f"source {printable(source)} does not exist, expected a folder, archive, file or glob pattern"
            )
    for key, file in _files(config, trains, scores):
        if not _may_exist(file, pattern=key.startswith("evaluate.benchmarks")):
            raise UserError(f"{key} is {printable(file)}, which does not exist: expected an existing file or folder")


def _files(config: Config, trains: bool, scores: bool) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the path or URL of each file that a setting names."""
    if trains:
        start = config.train.init_from
        if start and (is_url(start) or Path(start).is_absolute()):  # other names are looked up later
            yield "train.init_from", start
        for weights in config.train.pretrained().values():
            if weights.source != "torchvision":
                yield weights.setting, weights.source
    if scores or (trains and config.evaluate.while_training):
        for name, source in config.evaluate.benchmarks.items():
            yield f"evaluate.benchmarks.{name}", source
    if scores and config.evaluate.squeezenet not in (None, "torchvision"):
        yield "evaluate.squeezenet", config.evaluate.squeezenet


def _may_exist(source: str, pattern: bool = True) -> bool:
    """Return false for a local path at which there is nothing; patterns, URLs and names of datasets may exist."""
    named = source == "builtin" or source.split("/")[0] == "div2k"
    return named or is_url(source) or os.path.lexists(source) or (pattern and any(sign in source for sign in "*?["))
