"""Small grids, started with the commands that users run."""

import json
from pathlib import Path

import safetensors.torch

from tests import commands
from tests.conftest import SMALL, write_photos
from tests.sr_model.terms.test_perceptual import random_weights

Grid = tuple[list[str], Path, str, str]
"""Options, folder, standard output and standard error."""


def finished_grid(base: Path) -> Grid:
    """Run a grid in which one cell fails."""
    axis = {"mse": {"mse": 1.0}, "broken": {"mse": 1e38}, "perceptual": {"perceptual": 1.0, "tv": 5.5e-4}}
    grid = json.dumps({"train.loss": axis})
    note = "Six crops of photographs, public domain."
    options = grid_options(base, f"tune.grid={grid}", "train.max_skipped=2", "cluster.cpus_per_worker=1")
    options += [f"tune.records={base / 'records'}", f"tune.note={note}"]
    printed, errors = tune(*options, code=1)
    (folder,) = (base / "home/grids").iterdir()
    return options, folder, printed, errors


def tune(*argv: str, code: int = 0, module: str = "tune") -> tuple[str, str]:
    """Run a command, check its exit code, and return its standard output and standard error."""
    done = commands.run(module, *argv)
    assert done.code == code, done
    return done.stdout, done.stderr


def grid_options(base: Path, *more: str) -> list[str]:
    """Write images and VGG weights into a folder, and return the options of a small grid and further options."""
    write_photos(base / "photos")
    weights = base / "vgg19.safetensors"
    safetensors.torch.save_file({k: v for k, v in random_weights().items() if "features" in k}, weights)
    options = [f"--source={base / 'photos'}", f"--home={base / 'home'}", *SMALL, "name=grid", "cluster.workers=1"]
    return [*options, f"train.perceptual.weights={weights}", 'train.perceptual.layers={"conv1_2": 1}', *more]
