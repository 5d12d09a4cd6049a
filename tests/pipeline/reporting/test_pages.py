"""The report of a grid and the MLflow UI, in a real browser."""

import re
from collections.abc import Iterator

import mlflow
import pytest
from playwright.sync_api import Page, expect

from infra.stack import MLflowServer
from tests.pipeline.grid.grids import Grid


def test_the_slider_of_the_report_compares_any_two_versions(page: Page, finished_grid: Grid) -> None:
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    report = (finished_grid[1] / "report.html").as_uri()
    page.goto(report)
    slider = page.locator(".slider:not([hidden])")
    after = slider.locator("img.after")
    width = after.evaluate("image => image.naturalWidth")
    assert width == slider.locator("img").first.evaluate("image => image.naturalWidth") > 100
    assert slider.locator(".tag").all_inner_texts() == ["bicubic", "perceptual"]

    handle = slider.locator("input")
    box = handle.bounding_box()
    assert box
    clips = []
    for share in (0.25, 0.75):
        handle.click(position={"x": share * box["width"], "y": box["height"] / 2})
        clips.append(after.evaluate("image => getComputedStyle(image).clipPath"))
    left, right = (float(clip.rsplit(" ", 1)[1].rstrip("%)")) for clip in clips)
    assert left == pytest.approx(25, abs=6)
    assert right == pytest.approx(75, abs=6)

    before = after.get_attribute("src")
    page.get_by_label("right of the boundary").select_option("mse")
    assert after.get_attribute("src") != before
    assert slider.locator(".tag").all_inner_texts() == ["bicubic", "mse"]
    shown = slider.locator("img").first.get_attribute("alt")
    page.locator(".tabs button").nth(1).click()
    assert page.locator(".slider:not([hidden]) img").first.get_attribute("alt") != shown
    assert not errors
    assert [url for url in requests if not url.startswith(("data:", report))] == []


@pytest.fixture(scope="module")
def ui(finished_grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The MLflow UI on the grid's store."""
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    server.backend = f"sqlite:///{finished_grid[1].parents[1]}/mlflow.db"
    server.start()
    yield server.url
    server.stop()


def test_the_mlflow_ui_lists_and_compares_the_cells(page: Page, ui: str) -> None:
    expect.set_options(timeout=60_000)
    runs = {run.info.run_name: run.info.run_id for run in mlflow.MlflowClient(ui).search_runs(["1"])}
    page.goto(f"{ui}/#/experiments/1/runs")
    expect(page.get_by_text("grid", exact=True).first).to_be_visible()
    # Its cells are folded below it.
    expect(page.get_by_text("matching runs")).to_contain_text(re.compile(r"\b([4-9]|\d\d)\b"))
    ids = ",".join(f'"{runs[name]}"' for name in ("mse", "perceptual"))
    page.goto(f'{ui}/#/compare-runs?runs=[{ids}]&experiments=["1"]')
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    expect(page.get_by_role("link", name="held-out/psnr_y")).to_be_attached()


def test_the_mlflow_ui_shows_the_crops_of_all_cells(page: Page, ui: str) -> None:
    expect.set_options(timeout=60_000)
    runs = {run.info.run_name: run.info.run_id for run in mlflow.MlflowClient(ui).search_runs(["1"])}
    page.goto(f"{ui}/#/experiments/1/runs/{runs['grid']}/artifacts/comparison.png")
    image = page.locator("img[src^='blob:'], img[src*='comparison']").first
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") > 600
