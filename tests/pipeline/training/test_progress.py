"""The lines about a training: new records only, and not every one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.tracking import JournalRecord
from pipeline.training.planning import Plan
from pipeline.training.progress import show_progress


def session(step: int) -> JournalRecord:
    return JournalRecord("session", step, 0, {"train/workers": 2.0})


def means(step: int) -> JournalRecord:
    values = {"train/objective": 0.01, "train/patches_per_s": 20.0, "train/lr": 1e-3, "train/steps_total": 100.0}
    return JournalRecord("train", step, 0, values)


def validation(step: int, psnr: float) -> JournalRecord:
    return JournalRecord("validation", step, 0, {"val/psnr_y": psnr})


def test_a_resumed_training_prints_no_earlier_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(str(tmp_path)) as show:
        show([session(0), means(10), validation(10, 21.0), session(10), means(20), validation(20, 22.0)], True)
        assert capsys.readouterr().out == ""
        show([session(20), means(30)], False)
        show([means(40), validation(40, 23.0)], False)
        assert capsys.readouterr().out.splitlines() == [
            "train: resuming from step 20 with 2 workers",
            "train: step 40, held-out PSNR (Y) 23.000 dB",
        ]
        show([means(50), means(100)], False)
    (last,) = capsys.readouterr().out.splitlines()
    assert last.startswith("train: 100 of 100 steps in 0 s, 23.00 dB at step 40, loss 0.01000, 20.0 patches/s")


def test_skipped_steps_are_counted_after_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(str(tmp_path)) as show:
        show([session(0), means(10)], False)
        show([JournalRecord("skipped", step, 0, {"skipped/mse": 1.0}) for step in range(11, 99)], False)
        show([means(100)], False)
    printed = capsys.readouterr().out
    assert printed.count("not finite") == 1
    assert "train: step 11 skipped: mse not finite" in printed
    assert "88 steps skipped" in printed.splitlines()[-1]


def test_a_restart_counts_from_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(str(tmp_path)) as show:
        show([session(0), means(10)], False)
        show([means(50)], False)
        show([session(30), means(60)], False)
        show([means(100)], False)
    printed = capsys.readouterr().out
    assert "train: starting with 2 workers" in printed
    assert "train: resuming from step 30 with 2 workers" in printed
    assert printed.splitlines()[-1].startswith("train: 100 of 100 steps")


def test_an_unexpected_decision_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(100, 8, "fp32", compiled=False, note="the training is not compiled, because there is no compiler")
    storage.write_document(str(tmp_path / "plan.json"), plan)
    with show_progress(str(tmp_path)) as show:
        show([session(0), means(10)], False)
    assert "train: the training is not compiled, because there is no compiler" in capsys.readouterr().out


def test_a_remark_and_distances_are_printed_when_they_are_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def remark(found: Sequence[Mapping[str, float]]) -> str:
        return f"over {len(found)} records: it wins" if len(found) > 2 else ""

    alone = JournalRecord("train", 10, 0, {"train/patches_per_s": 20.0, "train/lr": 1e-3, "train/steps_total": 100.0})
    with show_progress(str(tmp_path), remark) as show:
        show([session(0), alone, means(20)], False)
        show([means(30), means(40)], False)
        show([JournalRecord("validation", 40, 0, {"val/psnr_y": 23.0, "val/st_lpips": 0.2})], False)
        show([means(100)], False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:3] == [
        "train: step 30: over 3 records: it wins",
        "train: step 40, held-out PSNR (Y) 23.000 dB, ST-LPIPS 0.2000",
    ]
