"""The benchmark of a GPU: on a CPU, it goes the same way in small."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import ceilings, correctness, feeding, memory, precisions, results, steps, trainings, two_ranks
from benchmarks.gpu.__main__ import main, sections
from benchmarks.gpu.job import FULL, SMALL, Job
from benchmarks.gpu.predictions import CPU, H100, find_card, predict
from benchmarks.gpu.results import Measurement
from benchmarks.measuring import Result
from pipeline.data import preparation
from pipeline.grid.variants import list_variants
from pipeline.settings.command_line import parse
from pipeline.training import runs
from tests.conftest import ROOT

REFUSE_RAY = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ImportError(f"{name} is not installed on a machine that only has a GPU")

sys.meta_path.insert(0, Refusal())
"""


def run(tmp_path: Path, *arguments: str) -> tuple[list[Measurement], str]:
    """Run the benchmark in small where neither Ray nor MLflow can be imported."""
    (tmp_path / "refuse").mkdir()
    (tmp_path / "refuse" / "sitecustomize.py").write_text(REFUSE_RAY)
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--small", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "refuse")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return results.read(tmp_path / "out"), done.stdout


def check(measured: list[Measurement]) -> None:
    """Everything was measured, and what does not depend on speed met its target."""
    assert [m for m in measured if m.result.value is None] == []
    assert [m for m in measured if m.verdict.startswith("missed")] == []


def test_sections_run_without_ray_and_keep_their_results(tmp_path: Path) -> None:
    measured, printed = run(tmp_path, "1", "--only", "ceilings")
    assert "Predicted for a CPU" in printed
    assert ceilings.COPY in printed
    check(measured)
    assert {m.section for m in measured} == {"ceilings"}
    copied = next(m for m in measured if m.result.name == ceilings.COPY)
    assert copied.ratio is not None
    assert copied.ratio > 0
    assert torch.__version__ in copied.result.machine
    assert ceilings.COPY in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", [1, 2])
def test_a_whole_part_runs_without_ray(tmp_path: Path, part: int) -> None:
    measured, _ = run(tmp_path, str(part))
    check(measured)
    assert {m.section for m in measured} == {section.name for section in sections(part, SMALL)}
    if part == 1:
        assert set(predict(1, SMALL, CPU)) <= {m.result.name for m in measured}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread; at this size, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(partial(correctness.measure, compiles=False), id="correctness"),
        pytest.param(partial(steps.measure, batches=[2, 4], batch_norm=False, compiles=False), id="steps"),
        pytest.param(
            partial(steps.measure, batches=[4], batch_norm=True, compiles=False), id="BatchNorm", marks=pytest.mark.long
        ),
        pytest.param(partial(feeding.measure, compiles=False), id="feeding", marks=pytest.mark.long),
        pytest.param(memory.measure, id="memory", marks=pytest.mark.long),
        pytest.param(partial(two_ranks.measure, compiles=False), id="two ranks", marks=pytest.mark.long),
        pytest.param(precisions.measure, id="precisions", marks=pytest.mark.long),
    ],
)
def test_a_section_measures_in_small(tmp_path: Path, measure: Callable[[Job], None]) -> None:
    recorder = results.Recorder(tmp_path, "section", predict(1, SMALL, CPU))
    measure(Job(recorder, SMALL, torch.device("cpu"), tmp_path))
    measured = results.read(tmp_path)
    assert measured
    check([m for m in measured if m.result.name != memory.FLAT])  # other tests of this process use memory, too


def test_a_section_that_takes_too_long_is_killed_and_the_part_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    handler = signal.getsignal(signal.SIGTERM)
    main(["1", "--small", "--only", "ceilings", "memory", f"--out={tmp_path}", "--limit-s=0.1"])
    signal.signal(signal.SIGTERM, handler)
    outcomes = [(m.section, m.verdict) for m in results.read(tmp_path) if m.result.name == "the section"]
    assert [section for section, _ in outcomes] == ["ceilings", "memory"]
    assert all("killed after" in verdict or "no time left" in verdict for _, verdict in outcomes)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == []


@pytest.mark.parametrize("part", [1, 2])
def test_every_section_has_its_time_in_nine_minutes(part: int) -> None:
    assert sum(section.limit_s for section in sections(part, FULL)) < 540


def test_a_section_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--only names ceiling, expected some of ceilings, correctness"):
        main(["1", "--small", "--only", "ceiling", f"--out={tmp_path}"])


def test_what_a_section_measured_before_it_crashed_is_kept(tmp_path: Path) -> None:
    recorder = results.Recorder(tmp_path, "one", {"speed": 4.0})
    recorder.add("speed", 2.0, "m/s", target=3, better="higher")
    with recorder.attempt("crash"):
        raise ValueError("no such\nkernel")
    recorder.add("overflow", math.inf, "")
    speed, crash, overflow = results.read(tmp_path)
    assert (speed.ratio, speed.verdict) == (0.5, "missed")
    assert (crash.result.value, crash.note) == (None, "ValueError: no such kernel")
    assert (overflow.result.value, overflow.note) == (None, "the value is inf")
    assert "| speed" in results.table([speed, crash, overflow])


@pytest.mark.timeout(120)
def test_a_cell_trained_without_ray_is_the_one_that_the_grid_looks_for(
    tmp_path: Path, small: Callable[..., list[str]], ray_session: None
) -> None:
    options = small('tune.grid={"train.loss": {"mse": {"mse": 1}, "l1": {"l1": 1}}}')
    (tmp_path / "refuse").mkdir()
    (tmp_path / "refuse" / "sitecustomize.py").write_text(REFUSE_RAY)
    command = [sys.executable, "-m", "benchmarks.gpu.trainings", "--cell", "l1", *options]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "refuse")}
    for _ in range(2):  # the second time, the training is found
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.match(r"l1: \d+\.\d+ dB on held-out images, .*/trainings/.*-l1-", done.stdout)
    cells = {variant.label: variant.config for variant in list_variants(parse(options, "tune", ""))}
    patch_set, found = preparation.prepare(cells["l1"])
    assert found
    trained = runs.find_training(cells["l1"], patch_set)
    assert trained
    assert trained.result.steps == 8
    assert trained.result.machine
    assert trained.result.versions["torch"] == torch.__version__
    assert len([record for record in trained.history() if record.kind == "session"]) == 1
    assert runs.find_training(cells["mse"], patch_set) is None


def test_a_cell_that_does_not_exist_is_refused(small: Callable[..., list[str]]) -> None:
    with pytest.raises(SystemExit, match="--cell names l2, expected some of mse"):
        trainings.main(["--cell", "l2", *small('tune.grid={"train.loss": {"mse": {"mse": 1}}}')])


def test_predictions_are_those_of_the_arithmetic() -> None:
    predicted = predict(1, FULL, H100)
    for batch, least, most in ((16, 1.5, 2), (64, 2.5, 3.1), (256, 10, 12)):
        assert least <= predicted[steps.step(batch, False, steps.Variant("bf16", compiled=True))] <= most
        assert 6 <= predicted[steps.step(batch, False, steps.Variant("bf16"))] <= 12
    t4 = predict(1, FULL, find_card("Tesla T4"))
    assert t4[steps.step(16, False, steps.Variant("fp32", plain=True))] == pytest.approx(33, rel=0.05)
    assert t4[steps.step(16, False, steps.Variant("fp16", compiled=True))] == pytest.approx(10, rel=0.05)
    assert not [name for name in t4 if "bf16" in name or "tf32" in name]


def test_a_machine_string_says_what_a_result_depends_on() -> None:
    assert f"PyTorch {torch.__version__}" in Result("x", 1, "", None, "lower").machine
