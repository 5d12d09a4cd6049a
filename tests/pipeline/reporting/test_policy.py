"""Markup in names and settings is text in a report, and a browser runs and loads nothing but the report's own parts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page

from pipeline.evaluation.scores import ImageScores, Metrics, Scores, SetScores
from pipeline.reporting.report import write_report
from pipeline.settings import Config
from pipeline.tracking import JournalRecord
from tests.conftest import random_image

PLANTED = (
    "<script>window.planted = 1</script>",
    "</script><script>window.planted = 1</script>",
    "<img src=x onerror='window.planted = 1'>",
    "\"onerror='window.planted = 1' x='",
    "<svg onload='window.planted = 1'>",
    "<style>h1 { display: none }</style>",
    "<base href='http://planted.example/'>",
    "{{ 7 * 7 }}${planted}",
)
METRICS: Metrics = {"psnr_y": 30.0, "ssim_y": 0.9, "psnr_rgb": 29.0}
METHODS = ("bicubic", "untrained", "trained")


def report_with(names: tuple[str, ...], folder: Path) -> Path:
    """Write a report whose names of sets and images, facts and settings are the given ones."""
    shown = {}
    for method in ("hr", "bicubic", "trained"):
        Image.fromarray(random_image(140, 150, len(method))).save(folder / f"{method}.png")
        shown[method] = str(folder / f"{method}.png")
    scores = dict.fromkeys(METHODS, METRICS)
    sets = {name: SetScores(lr=name, images=[ImageScores(f"{name}.png", scores, shown)], mean=scores) for name in names}
    config = Config().model_copy(update={"source": list(names)})
    history = [JournalRecord("train", step, 0, {"train/objective": 0.5 / step}) for step in (1, 2)]
    write_report(str(folder), config, Scores("", names[0], sets), history, {name: name for name in names})
    return folder / "report.html"


@pytest.fixture
def problems(page: Page) -> Iterator[list[str]]:
    """Collect what the browser reports while a page is shown, and what it asks for elsewhere."""
    found: list[str] = []
    listeners: dict[Any, Any] = {
        "console": lambda message: found.append(message.text) if message.type in ("error", "warning") else None,
        "pageerror": lambda error: found.append(str(error)),
        "request": lambda sent: None if sent.url.startswith(("file:", "data:")) else found.append(sent.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield found
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


def test_markup_in_names_is_shown_as_text(page: Page, problems: list[str], tmp_path: Path) -> None:
    page.goto(report_with(PLANTED, tmp_path).as_uri())
    text = page.locator("main").inner_text()
    assert all(planted in text for planted in PLANTED)
    page.locator(".tabs button").nth(2).click()
    page.get_by_label("right of the boundary").select_option("bicubic")
    assert page.locator(".slider:visible img").last.evaluate("image => image.naturalWidth") == 150
    assert page.evaluate("window.planted") is None
    assert page.locator("h1").is_visible()
    assert page.locator("base, main style, main script:not([type='application/json'])").count() == 0
    assert page.locator("img.drawing").evaluate("image => image.naturalWidth") > 500
    assert problems == []


def test_the_policy_stops_what_was_not_escaped(page: Page, problems: list[str], tmp_path: Path) -> None:
    report = report_with(("a",), tmp_path)
    report.write_text(report.read_text().replace("<main>", "<main>" + "".join(PLANTED), 1))
    page.goto(report.as_uri())
    assert page.evaluate("window.planted") is None
    assert page.locator("h1").is_visible()
    assert page.evaluate("document.baseURI").startswith("file:")
    assert len([problem for problem in problems if "Content Security Policy" in problem]) >= 4
