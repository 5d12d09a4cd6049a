"""PSNR against core-hours: the courses of trainings, in parts and after others, and the drawing."""

from xml.etree import ElementTree

import pytest

from pipeline.evaluation.scores import HELD_OUT, SetScores
from pipeline.reporting import cost
from pipeline.reporting.records import Part
from pipeline.reporting.rows import Row
from pipeline.settings import Config
from pipeline.tracking import JournalRecord, Machine

HOUR = 3_600_000


def scores(psnr: float) -> SetScores:
    return SetScores("made here", [], {"bicubic": {"psnr_y": 26.0}, "trained": {"psnr_y": psnr}})


def part(steps: int, hours: float, threads: int, psnr: float | None) -> Part:
    means = {} if psnr is None else {"Set5": {"psnr_y": psnr}}
    return Part(steps, hours * 3600, threads, "bf16", means, "2026-11-27", "abc", Machine("CPU", 2, 8.0))


def validation(step: int, hours: float, psnr: float) -> JournalRecord:
    return JournalRecord("validation", step, int(hours * HOUR), {"val/psnr_y": psnr})


HISTORY = [
    JournalRecord("session", 0, HOUR, {}),
    validation(0, 1.0, 5.0),
    validation(100, 2.0, 27.0),
    JournalRecord("session", 100, 10 * HOUR, {}),  # after a pause of 8 hours
    validation(200, 11.0, 28.0),
]
SETS = {HELD_OUT: scores(28.0), "Set5": scores(31.0)}
ONE = Row("one", "finished", Config(), history=HISTORY, seconds=7200, threads=2, sets=SETS)
PARTS = Row(
    "parts", "finished", Config(), history=HISTORY, seconds=7200, threads=4, sets=SETS, earlier_hours=0.5,
    parts=[part(100, 1, 2, 30.0), part(200, 1, 4, None)],
)  # fmt: skip


def test_the_course_of_a_training_leaves_out_pauses() -> None:
    assert cost.course(ONE, HELD_OUT) == [(2.0, 27.0), (4.0, 28.0)]
    assert cost.course(ONE, "Set5") == [(4.0, 31.0)]
    assert cost.course(ONE, "Set14") == []


def test_parts_count_with_their_own_threads_after_the_weights_that_they_started_from() -> None:
    assert PARTS.core_hours == pytest.approx(6)
    assert cost.course(PARTS, HELD_OUT) == [(0.5, 5.0), (2.5, 27.0), (6.5, 28.0)]
    assert cost.course(PARTS, "Set5") == [(2.5, 30.0), (6.5, 31.0)]


def test_a_training_on_gpus_counts_their_hours_and_one_on_unknown_devices_is_left_out() -> None:
    gpus = Row("gpus", "finished", Config(), history=HISTORY, seconds=7200, gpus=2, sets=SETS)
    assert gpus.core_hours is None
    assert cost.course(gpus, HELD_OUT) == [(2.0, 27.0), (4.0, 28.0)]
    assert "core-hours or GPU-hours (hollow)" in cost.draw_costs([ONE, gpus])
    unknown = Row("unknown", "finished", Config(), history=HISTORY, seconds=7200, sets=SETS)
    assert cost.course(unknown, HELD_OUT) == []
    assert cost.draw_costs([unknown]) == ""


def test_the_drawing_names_all_rows_and_sets() -> None:
    drawing = cost.draw_costs([ONE, PARTS])
    assert drawing == cost.draw_costs([ONE, PARTS])
    ElementTree.fromstring(drawing)
    for label in ("one", "parts", "bicubic", HELD_OUT, "Set5"):
        assert drawing.count(f"<!-- {label} -->") == 1
