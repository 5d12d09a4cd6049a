"""Fixtures that several test modules use.

The folders of the tests mirror the packages that they test. Tests that need a Ray in this process share one.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Ray and MLflow read these when they are imported. Tests must not use the home directory or send data.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("SR_HOME", None)
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that wait for each other leave the cores to other tests

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from pipeline import storage
from sr_model.pixels import Pixels

if TYPE_CHECKING:
    from tests.pipeline.grid.grids import Grid
    from tests.services import TwoNodes

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SR_TEST_DATA", ROOT.parent / "shared" / "data"))

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
settings.register_profile("tests", deadline=None, max_examples=60)  # no deadline, because machines may be slow
settings.load_profile("tests")


_LONGEST_GROUPS = ("ray_session", "finished_grid", "test_run")
"""Groups that take minutes. They come first, so that no process is left alone with one of them at the end."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks afterwards
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that share a Ray, a grid or a file, so that xdist runs each group in one process."""
    groups = {}
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        group = next((name for name in ("ray_session", "finished_grid") if name in fixtures), item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))
        groups[item] = group
    items.sort(key=lambda item: (*_LONGEST_GROUPS, groups[item]).index(groups[item]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Check that xdist has appended the groups, as "@GROUP", to the names of the tests."""
    ungrouped = [item.nodeid for item in session.items if "@" not in item.nodeid]
    if session.config.getoption("loadgroup", default=False) and ungrouped:
        raise pytest.UsageError(f"pytest-xdist does not group {ungrouped[0]}; install the versions in constraints.txt")


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """Return the folder of Set5 and Set14, for comparisons with published values."""
    folder = DATA / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set SR_TEST_DATA to the folder that contains benchmarks/")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Connect to a local Ray that all tests of this process share."""
    import ray

    from pipeline import cluster
    from pipeline.settings import Config

    cluster.connect(Config())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[Path], Path]) -> "Grid":
    """Run a small grid in which one cell fails."""
    from tests.pipeline.grid import grids

    base = tmp_path_factory.mktemp("grid")
    make_home(base / "home")
    return grids.finished_grid(base)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a database of MLflow to copy, because MLflow takes seconds to make one."""
    import mlflow

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def make_home(empty_database: Path) -> Callable[[Path], Path]:
    """Return a function that makes a home folder in which MLflow's database exists."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        return Path(shutil.copy(empty_database, folder / "mlflow.db")).parent

    return make


@pytest.fixture
def home(make_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """Return a home folder in which MLflow's database exists."""
    return make_home(tmp_path / "home")


@pytest.fixture
def two_nodes() -> "Iterator[TwoNodes]":
    """Start a Ray cluster whose second node the test may kill."""
    from tests.services import TwoNodes

    nodes = TwoNodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make a folder of six small colour images, cut from photographs that scikit-image ships."""
    folder = tmp_path / "photos"
    write_photos(folder)
    return folder


def write_photos(folder: Path, side: int = 144) -> None:
    """Write six crops of photographs as PNG files of `side` pixels."""
    from skimage import data

    folder.mkdir(parents=True)
    for name in ("astronaut", "chelsea", "coffee"):
        image = getattr(data, name)()
        for i, x in enumerate((0, 160)):
            Image.fromarray(image[40 : 40 + side, x : x + side]).save(folder / f"{name}{i}.png")


SMALL = [
    "preprocess.tile=48", "preprocess.row_group=4", "preprocess.shard_mb=0.1", "preprocess.holdout=coffee*",
    "data.crop=32", "data.lanes=2", "data.window=8",
    "model.channels=8", "model.blocks=1", "model.batch_norm=false",
    "train.length=8 steps", "train.global_batch=6", "train.micro_batch=2",
    "train.validate_every=4", "train.checkpoint_every=2", "train.checkpoint_s=0", "train.log_every=2",
    "train.precision=fp32",
]  # fmt: skip
"""Options of a workflow that is as small as possible."""


@pytest.fixture
def small(photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that makes the command line of a small workflow from further options."""

    def options(*more: str) -> list[str]:
        return [f"--source={photos}", f"--home={tmp_path / 'home'}", *SMALL, *more]

    return options


def read_json(url: str) -> Any:
    """Return the value of a JSON file at a path or URL."""
    content = storage.read(url)
    assert content is not None, f"{url} does not exist"
    return json.loads(content)


def random_image(height: int, width: int, seed: int = 0) -> Pixels:
    """Make an image (height, width, 3) of random values."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
