"""The perception-distortion plane: its points, their cost, the table and the drawing, and curves in records."""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline import publish
from pipeline.evaluation.scores import HELD_OUT, Metrics, Scores, SetScores, write_scores
from pipeline.reporting import plane, records, results_page
from pipeline.reporting.comparison import markdown
from pipeline.reporting.records import Variant
from pipeline.reporting.rows import Row
from pipeline.settings import Config, UserError
from tests.conftest import ROOT


def scored(**means: Metrics) -> SetScores:
    return SetScores("made here", [], {"bicubic": {"psnr_y": 26.0, "distance": 4.0}, **means})


def curve(dial: str, *values: float) -> list[Variant]:
    return [
        Variant(f"{dial} {value:g}", dial, value, {"Set5": {"psnr_y": 31 - value, "distance": 2 - value / 10}})
        for value in values
    ]


def row(label: str, psnr: float, distance: float, variants: list[Variant] | None = None) -> Row:
    sets = {name: scored(trained={"psnr_y": psnr, "distance": distance}) for name in (HELD_OUT, "Set5")}
    small = Config(model={"channels": 4, "blocks": 1})
    return Row(label, "finished", small, seconds=7200, threads=2, sets=sets, variants=variants or [])


ROWS = [row("plain", 27.0, 3.0), row("sharp", 26.5, 2.5, curve("alpha", 1, 0.5))]


def test_bicubic_all_rows_and_their_curves_are_points() -> None:
    points = plane.list_points(ROWS)
    labels = ["bicubic", "plain", "sharp", "sharp, alpha 0.5", "sharp, alpha 1"]
    assert [point.label for point in points] == labels
    assert [point.family for point in points] == ["bicubic", "plain", "sharp", "sharp", "sharp"]
    assert points[1].place(HELD_OUT, "distance") == (27.0, 3.0)
    assert points[1].place(HELD_OUT, "st_lpips") is None
    assert points[3].place(HELD_OUT, "distance") is None
    assert [point.core_hours for point in points] == [None, 4, 4, 4, 4]
    assert plane.list_points([Row("broken", "failed", Config(), "no room")]) == []


def test_the_table_has_a_row_for_each_set_and_point() -> None:
    table = plane.plane_table(plane.list_points(ROWS))
    assert table[0] == [
        "set",
        "",
        "PSNR (Y), dB",
        "SqueezeNet distance",
        "GFLOP per megapixel",
        "core-hours of training",
    ]
    assert [line[:4] for line in table if line[0] == "Set5"] == [
        ["Set5", "bicubic", "26.00", "4.0000"],
        ["Set5", "plain", "27.00", "3.0000"],
        ["Set5", "sharp", "26.50", "2.5000"],
        ["Set5", "sharp, alpha 0.5", "30.50", "1.9500"],
        ["Set5", "sharp, alpha 1", "30.00", "1.9000"],
    ]
    assert len(table) == 1 + 3 + 5
    no_distance = Row("a", "finished", Config(), sets={"Set5": SetScores("", [], {
        "bicubic": {"psnr_y": 26.0}, "trained": {"psnr_y": 27.0},
    })})  # fmt: skip
    points = plane.list_points([no_distance])
    assert (plane.plane_table(points), plane.draw_plane(points)) == ([], "")


def test_the_drawing_names_all_families_once() -> None:
    drawing = plane.draw_plane(plane.list_points(ROWS))
    assert drawing == plane.draw_plane(plane.list_points(ROWS)), "the same points give the same file"
    ElementTree.fromstring(drawing)
    for label in ("bicubic", "plain", "sharp", HELD_OUT, "Set5", "SqueezeNet distance"):
        assert drawing.count(f"<!-- {label} -->") == 1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "srcnn", "kernels": "9-1-5", "colour": "y"}, 2 * 8_032 + 2 * 3 * 25),  # and the interpolation
        ({"name": "srcnn"}, 2 * (3 * 64 * 81 + 64 * 32 * 25 + 32 * 3 * 25) + 2 * 3 * 25),
        ({"batch_norm": False}, 2 * 142e3),  # 2.62e9 operations for 96x96 pixels
    ],
)
def test_operations_are_those_of_the_convolutions(model: dict[str, object], expected: float) -> None:
    assert plane.operations(Config(model=model)) == pytest.approx(expected / 1e3, rel=0.02)


def test_more_steps_of_a_network_that_draws_cost_more() -> None:
    base = {"channels": 8, "blocks": 2, "batch_norm": False}
    config = Config(model={"name": "refiner", "channels": 8, "blocks": 2, "base": base}, train={"method": "flow"})
    one, four = (plane.operations(config, steps) for steps in (1, 4))
    assert 1.2 * one < four < 4 * one  # the network that it starts from is computed once


def scores_of(*methods: str) -> Scores:
    metrics: Metrics = {"psnr_y": 30.0, "ssim_y": 0.8, "psnr_rgb": 29.0, "distance": 1.5}
    return Scores("x", "", {"Set5": SetScores("", [], dict.fromkeys(("bicubic", *methods), metrics))})


def test_the_dials_are_read_off_the_names_of_methods() -> None:
    found = records.read_variants(scores_of("A", "alpha 0.5", "alpha 0.2", "B", "flow, 4 steps", "flow, 1 step"))
    assert [(variant.name, variant.dial, variant.value) for variant in found] == [
        ("alpha 0.2", "alpha", 0.2), ("alpha 0.5", "alpha", 0.5), ("1 step", "steps", 1), ("4 steps", "steps", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "method", ["flow, 4 steps, heun", "flow, 4 steps (consistent)", "flow, 4 steps, seed 1", "flow, 4 steps (2)"]
)
def test_a_dial_alone_makes_a_curve(method: str) -> None:
    sentence = f"the scores of Set5 have '{method}', expected those of one model without further options, such as "
    with pytest.raises(UserError, match=re.escape(sentence + "'flow, 4 steps'")):
        records.read_variants(scores_of("A", method))
    assert records.read_variants(scores_of("flow, 4 steps, euler"))[0].name == "4 steps"


def add_curve(*arguments: str) -> None:
    publish.main.__wrapped__(["curve", *arguments])  # type: ignore[attr-defined]


def test_a_curve_is_added_to_a_record_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "records"
    shutil.copytree(ROOT / "docs/results/longer", folder / "longer")
    before = records.read(str(folder), "longer")
    assert before
    write_scores(str(tmp_path / "scores"), scores_of("A", "alpha 0.5", "alpha 0.2"))
    for _ in range(2):  # a second time changes nothing
        add_curve("longer", str(tmp_path / "scores"), f"--records={folder}")
    assert capsys.readouterr().out.count("2 points added to the record longer\n") == 2
    after = records.read(str(folder), "longer")
    assert after
    assert [variant.name for variant in after.variants] == ["alpha 0.2", "alpha 0.5"]
    assert after.scores == before.scores
    table = markdown(plane.plane_table(plane.list_points([results_page.record_row(after)])))
    assert "| Set5 | longer, alpha 0.2 | 30.00 |  | 1.5000 |" in table
    with pytest.raises(UserError, match="has no record shorter, expected one of longer"):
        add_curve("shorter", str(tmp_path / "scores"), f"--records={folder}")
    write_scores(str(tmp_path / "plain"), scores_of("A"))
    with pytest.raises(UserError, match="the scores have neither shares nor steps"):
        add_curve("longer", str(tmp_path / "plain"), f"--records={folder}")
    shutil.copytree(ROOT / "docs/results/flow", folder / "flow")
    write_scores(str(tmp_path / "other"), scores_of("A, 4 steps"))
    with pytest.raises(
        UserError, match=r"after 4 steps, Set5 has 30\.00 dB, and 31\.17 dB in the record flow: expected"
    ):
        add_curve("flow", str(tmp_path / "other"), f"--records={folder}")
    write_scores(str(tmp_path / "steps"), scores_of("A, 2 steps"))
    with pytest.raises(UserError, match="the model of the record longer does not draw images in steps"):
        add_curve("longer", str(tmp_path / "steps"), f"--records={folder}")
