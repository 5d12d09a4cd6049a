"""One Ray for all tests, small images, and the benchmark images where they are at hand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before Ray or MLflow are imported: leave the home directory alone, and send nothing anywhere.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("SR_HOME", None)

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from tests.pipeline.grid.grids import Grid
    from tests.services import TwoNodes

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SR_TEST_DATA", ROOT.parent / "shared" / "data"))

torch.set_num_threads(2)
settings.register_profile("here", deadline=None, max_examples=60)  # machines may be slow
settings.load_profile("here")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (make test): tests stay together that share a Ray, a grid or a file."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        group = next((name for name in ("ray_session", "finished_grid") if name in fixtures), item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """Folder with Set5 and Set14, for checks against published values."""
    folder = DATA / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"no benchmark images in {folder}; name another place with SR_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of two cores, shared by all tests."""
    import ray

    from pipeline import cluster
    from pipeline.settings import Config

    cluster.connect(Config())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory: pytest.TempPathFactory) -> "Grid":
    """A grid of which one cell failed: its options, its folder, what it printed."""
    from tests.pipeline.grid import grids

    return grids.finished_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def two_nodes() -> "Iterator[TwoNodes]":
    """A Ray cluster of its own, whose second node may be killed."""
    from tests.services import TwoNodes

    nodes = TwoNodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six small colour images, cut from photographs that scikit-image ships."""
    folder = tmp_path / "photos"
    write_photos(folder)
    return folder


def write_photos(folder: Path, side: int = 144) -> None:
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
    "train.validate_every=4", "train.checkpoint_every=2", "train.log_every=2", "train.precision=fp32",
]  # fmt: skip
"""Options of the smallest useful workflow."""


@pytest.fixture
def small(photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The smallest workflow's command line, with further options."""

    def options(*more: str) -> list[str]:
        return [f"--source={photos}", f"--home={tmp_path / 'home'}", *SMALL, *more]

    return options


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
