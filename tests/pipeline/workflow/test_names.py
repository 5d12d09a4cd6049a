"""A workflow whose home, source and benchmark set have names with every sign that a path or URL could be parsed by."""

import shutil
from pathlib import Path

import pytest

from pipeline.settings.command_line import parse
from pipeline.workflow.workflow import run_workflow
from tests.conftest import SMALL

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.long
def test_a_workflow_runs_with_names_of_any_kind(photos: Path, tmp_path: Path) -> None:
    source = photos.rename(tmp_path / "photos [1] #?%41::z")
    (source / "chelsea0.png").rename(source / "Screen::1 [x]?#%20.png")
    deep = source / ("deep" * 40) / ("er" * 60)
    deep.mkdir(parents=True)
    (source / "coffee0.png").rename(deep / "coffee0.png")
    benchmark = tmp_path / "Set5 [x] ?#::%41"
    (benchmark / "hr").mkdir(parents=True)
    shutil.copy(source / "astronaut0.png", benchmark / "hr" / "a [1]::?.png")
    top = tmp_path / "top"
    home = top / "a%20b #1?[x]::y"
    options = [f"--source={source}", f"--home={home}", *SMALL, "train.length=2 steps", "train.validate_every=1"]
    folder = run_workflow(parse([*options, f"evaluate.benchmarks=Set5={benchmark}"], "run", ""))
    assert Path(folder, "report.html").is_file()
    assert len(list(Path(folder, "images").glob("*/*-trained.png"))) == 3
    assert (home / "mlflow.db").stat().st_size
    assert list(top.iterdir()) == [home]  # nothing has been written under a name that was parsed
