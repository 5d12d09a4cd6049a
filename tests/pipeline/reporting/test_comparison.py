"""Tables of a grid: where published results stand, how stopped cells are marked, what is said of missing ones."""

import math
from typing import Any

import pytest

from pipeline.evaluation.scores import HELD_OUT, ImageScores, SetScores, is_better
from pipeline.evaluation.tables import aligned
from pipeline.reporting import comparison
from pipeline.reporting.rows import Row
from pipeline.settings import Config
from pipeline.tracking import JournalRecord

HISTORY = [JournalRecord("train", 10, 0, {"train/objective": 0.1, "train/patches_per_s": 20.0})]


def scored(psnr: float) -> SetScores:
    means = {"bicubic": {"psnr_y": 28.0, "ssim_y": 0.8}, "trained": {"psnr_y": psnr, "ssim_y": 0.9}}
    return SetScores("made here", [ImageScores("a.png", means, {})], means)


def row(
    label: str, psnr: float, batch_norm: bool = True, loss: str = "mse", sets: tuple[str, ...] = (), **more: Any
) -> Row:
    settings: dict[str, Any] = {"model": {"batch_norm": batch_norm}, "train": {"loss": {loss: 1.0}}, **more}
    found = {name: scored(psnr) for name in (HELD_OUT, *sets)}
    return Row(label, "finished", Config(**settings), folder="x", steps=10, history=HISTORY, seconds=60, sets=found)


def published(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Set, label and PSNR of the published rows."""
    return [(line[0], line[1], line[2]) for line in comparison.score_table(rows) if line[1].startswith("published")]


def test_published_rows_stand_where_the_same_cell_was_scored() -> None:
    rows = [row("bn·mse", 30.0, sets=("Set5",)), row("nobn·perceptual", 25.0, batch_norm=False, loss="perceptual")]
    assert published(rows) == [
        (HELD_OUT, "published nobn·perceptual", "9.21"),
        ("Set5", "published bn·mse", "30.61"),
    ]
    assert "Source of the published rows: the project of students" in comparison.text(rows)


@pytest.mark.parametrize(
    "more",
    [
        {"model": {"channels": 32}},  # a toy network
        {"scale": 2},
        {"train": {"loss": {"l1": 1.0}}},
    ],
)
def test_published_rows_do_not_stand_in_another_grid(more: dict[str, Any]) -> None:
    rows = [row("bn·mse", 30.0, sets=("Set5", "Set14"), **more)]
    assert published(rows) == []
    assert "published" not in comparison.text(rows)


def test_a_stopped_cell_is_marked_and_is_not_the_best() -> None:
    stopped = Row(
        "fast", "stopped", Config(), folder="x", steps=40, stopped=True, history=HISTORY, sets={HELD_OUT: scored(31.0)}
    )
    rows = [row("slow", 30.0), stopped, Row("broken", "failed", Config(), "no room")]
    best = comparison.best_row(rows, "psnr_y")
    assert best
    assert best.label == "slow"
    assert comparison.best(rows) == "On held-out images of the finished cells, highest PSNR: slow."
    labels = {line[1]: line[2] for line in comparison.score_table(rows)}
    assert labels["fast (stopped at step 40)"] == "31.00"
    states = {line[0]: line[1:4] for line in comparison.cell_table(rows)}
    assert states["fast"][0] == "stopped"
    assert states["fast"][2] == "40"
    assert states["broken"] == ["failed", "", ""]
    assert comparison.missing(rows) == ["cell broken failed: no room"]


@pytest.mark.parametrize(
    ("metric", "better"), [("psnr_y", 2.0), ("st_lpips", 1.0), ("distance", 1.0), ("lr_psnr", 2.0)]
)
def test_a_metric_knows_which_value_is_better(metric: str, better: float) -> None:
    other = 3.0 - better
    assert is_better(metric, better, other)
    assert not is_better(metric, other, better)
    assert not is_better(metric, other, other)
    assert is_better(metric, other, None)
    assert not is_better(metric, math.nan, None)


def with_distances(label: str, psnr: float, **distances: float) -> Row:
    found = row(label, psnr)
    for mean in found.sets[HELD_OUT].mean.values():
        mean.update(distances)
    return found


def test_st_lpips_decides_where_the_squeezenet_distance_was_not_measured() -> None:
    sharp, smooth = with_distances("sharp", 29.0, st_lpips=0.1), with_distances("smooth", 30.0, st_lpips=0.2)
    assert comparison.best([sharp, smooth]) == "On held-out images, highest PSNR: smooth; lowest ST-LPIPS: sharp."
    judged = with_distances("sharp", 29.0, st_lpips=0.1, distance=2.0)
    other = with_distances("smooth", 30.0, st_lpips=0.2, distance=1.0)
    assert comparison.best([judged, other]).endswith("lowest SqueezeNet feature distance: smooth.")


def test_rows_of_an_earlier_version_share_the_metrics_that_all_have() -> None:
    table = comparison.score_table([row("old", 29.0), with_distances("new", 30.0, st_lpips=0.1, lr_psnr=50.0)])
    assert table[0] == ["set", "cell", "PSNR (Y), dB", "SSIM (Y)"]


def test_a_label_does_not_break_a_table() -> None:
    table = comparison.score_table([row("a|b", 30.0)])
    assert all(line.count("|") == len(table[0]) + 1 for line in comparison.markdown(table).splitlines())
    text = aligned(comparison.score_table([row("[red]a·" + "very·" * 40 + "long", 30.0)]))
    assert max(map(len, text.splitlines())) <= 80
    assert "[red]" in text
