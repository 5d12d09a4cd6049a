"""Records of finished cells: their content, that they count as finished, and the pages made from them."""

import copy
import dataclasses
import json
import re
import socket
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage import data

from pipeline import publish, storage
from pipeline.grid import importing, variants
from pipeline.grid import records as written
from pipeline.networks import bundled
from pipeline.reporting import cards, records, results_page
from pipeline.reporting.records import TrainingRecord
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.storage import DamagedFileError
from pipeline.training import runs
from tests.conftest import ROOT
from tests.pipeline.grid.grids import Grid, tune

ROWS = {
    "bn·mse", "bn·perceptual", "flow", "longer", "nobn·mse", "nobn·perceptual", "sr3", "srcnn", "srgan", "srgan·even",
}  # fmt: skip
"""Labels of the records in docs/results."""


@pytest.fixture(scope="module")
def kept(finished_grid: Grid) -> Path:
    return finished_grid[1].parents[2] / "records"


@pytest.fixture(scope="module")
def mse(kept: Path) -> TrainingRecord:
    record = records.read(str(kept), "mse")
    assert record
    return record


def test_every_finished_cell_is_recorded(kept: Path, finished_grid: Grid) -> None:
    assert records.names(str(kept)) == ["mse", "perceptual"]  # the broken cell has none
    for label in ("mse", "perceptual"):
        assert {file.name for file in (kept / label).iterdir()} == {"model.safetensors", "record.json", "README.md"}
        weights = safetensors.torch.load_file(kept / label / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}


def test_a_cell_is_recorded_before_the_next_one_ends(kept: Path, finished_grid: Grid) -> None:
    (last,) = finished_grid[1].parents[1].glob("trainings/*-perceptual*/result.json")
    assert (kept / "mse/model.safetensors").stat().st_mtime < last.stat().st_mtime


def test_a_record_holds_configuration_metrics_and_scores(mse: TrainingRecord, finished_grid: Grid) -> None:
    assert records.configuration(mse).train.loss == {"mse": 1.0}
    validations = [r.step for r in mse.history if r.kind == "validation"]
    assert validations == [0, 4, 8]
    assert mse.scores["held-out"].mean["trained"]["psnr_y"] > 10
    assert len(mse.scores["held-out"].images) == 2
    assert mse.result.steps == 8
    assert {"torch", "ray", "mlflow", "python"} <= set(mse.versions)


def test_a_record_names_no_place_of_the_machine(kept: Path, finished_grid: Grid) -> None:
    home = str(finished_grid[1].parents[2])
    for file in kept.rglob("*.*"):
        if file.suffix != ".safetensors":
            assert home not in file.read_text()


def test_the_card_says_what_it_is(kept: Path, mse: TrainingRecord) -> None:
    card = (kept / "mse/README.md").read_text()
    psnr = mse.scores["held-out"].mean["trained"]["psnr_y"]
    assert "# SRResNet x4, mse" in card
    assert f"| held-out (2) | this model | {psnr:.2f} |" in card
    assert "Six crops of photographs, public domain." in card
    assert "--model mse/model.safetensors" in card


@pytest.mark.long
def test_a_recorded_cell_counts_as_finished(
    finished_grid: Grid, kept: Path, mse: TrainingRecord, tmp_path: Path
) -> None:
    options = [o for o in finished_grid[0] if not o.startswith(("--home", "tune.grid"))]
    grid = json.dumps({"train.loss": {"mse": {"mse": 1.0}}})
    printed, _ = tune(*options, f"--home={tmp_path}", f"tune.grid={grid}")
    assert f"cell mse taken from {kept}/mse" in printed
    assert "0 of 1 trials to train" in printed
    assert "measure a step" not in printed
    (scores,) = tmp_path.glob("grids/*/cells/mse/scores.json")
    again = json.loads(scores.read_text())["sets"]["held-out"]["mean"]["trained"]["psnr_y"]
    assert again == pytest.approx(mse.scores["held-out"].mean["trained"]["psnr_y"], abs=0.01)  # fp16
    (folder,) = tmp_path.glob("grids/*")
    written = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert {"report.html", "results.md", "results.csv"} <= written.keys()
    tune(*options, f"--home={tmp_path}", f"tune.grid={grid}")
    after_a_rerun = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert after_a_rerun == written


def test_another_training_does_not_take_a_records_place(kept: Path, mse: TrainingRecord) -> None:
    other = dataclasses.replace(mse, identity={**mse.identity, "patch_set": "other"})
    with pytest.raises(UserError, match=r"mse holds the record of another training .*expected tune.records to name"):
        written.save(str(kept), other, "")
    assert records.read(str(kept), "mse") == mse


def test_records_are_imported_into_a_store_of_their_own(
    kept: Path, mse: TrainingRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for _ in range(2):  # a second time adds nothing
        importing.import_records(records.read_all(str(kept)), str(kept), str(tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert sorted(runs) == ["grid", "mse", "perceptual"]
    run = runs["mse"]
    assert run.data.tags["mlflow.parentRunId"] == runs["grid"].info.run_id
    assert run.data.tags["mlflow.source.git.commit"] == mse.commit
    assert run.data.metrics["held-out/psnr_y"] == mse.scores["held-out"].mean["trained"]["psnr_y"]
    history = client.get_metric_history(run.info.run_id, "val/psnr_y")
    expected = [(r.step, r.metrics["val/psnr_y"]) for r in mse.history if r.kind == "validation"]
    assert sorted((metric.step, metric.value) for metric in history) == expected
    assert [str(model.status) for model in client.search_logged_models(["1"])] == ["READY", "READY"]
    assert (tmp_path / "grids/recorded/report.html").exists()


def test_a_cell_without_scores_is_shown_without_them(
    kept: Path, mse: TrainingRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    perceptual = records.read(str(kept), "perceptual")
    assert perceptual
    found = [dataclasses.replace(mse, scores={}), perceptual]
    importing.import_records(found, str(kept), str(tmp_path))
    results_page.write_page(found, [], str(kept), tmp_path, None)
    page = (tmp_path / "results.md").read_text()
    assert "| **mse** |  |" in page
    assert re.search(r"\| \*\*perceptual\*\* \| \d", page)


def test_the_page_of_results_is_written_from_records(kept: Path, mse: TrainingRecord, tmp_path: Path) -> None:
    results_page.write_page(records.read_all(str(kept)), records.read_all(str(kept)), str(kept), tmp_path, None)
    page = (tmp_path / "results.md").read_text()
    psnr = mse.scores["held-out"].mean["trained"]["psnr_y"]
    assert f"| **mse** | {psnr:.2f} |" in page
    assert "| published nobn·mse | " in page
    assert "- mse: 8 steps of 6 patches of 32x32 pixels" in page
    assert "{" not in page.replace("'{", "").replace('{"', "")
    assert (tmp_path / "results-curves.svg").read_text().startswith("<svg")


def test_the_page_compares_the_spread_of_seeds_with_what_batch_norm_changes(
    kept: Path, mse: TrainingRecord, tmp_path: Path
) -> None:
    seeds = []
    for batch_norm, psnr in ((False, 30.0), (False, 30.3), (True, 29.0), (True, 29.1)):
        record = storage.parse_document(json.dumps(dataclasses.asdict(mse)).encode(), TrainingRecord, "copy")
        record.config["model"]["batch_norm"] = batch_norm  # type: ignore[index, call-overload]
        record.scores["held-out"].mean["trained"]["psnr_y"] = psnr
        seeds.append(record)
    results_page.write_page([mse], seeds, str(kept), tmp_path, None)
    page = (tmp_path / "results.md").read_text()
    assert "| held-out | nobn | 30.00, 30.30 | 30.15 | 0.30 |" in page
    assert "held-out: nobn minus bn is +1.10 dB; seeds of one network differ by up to 0.30 dB" in page


def test_the_page_shows_the_same_crops_of_every_row(kept: Path, tmp_path: Path) -> None:
    for name, stem in results_page.CROPS:
        (tmp_path / "benchmarks" / name / "HR").mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.astronaut()[:128, :160]).save(tmp_path / "benchmarks" / name / "HR" / f"{stem}.png")
    results_page.write_page(records.read_all(str(kept)), [], str(kept), tmp_path, tmp_path / "benchmarks")
    for name in ("results-crops.png", "result.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 1000
            assert np.asarray(image.convert("L")).std() > 10


def test_the_pages_tell_what_the_shipped_records_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = records.read_all("docs/results")
    assert {record.label for record in found} == ROWS
    seeds, earlier = records.read_all("docs/results/seeds"), "docs/results/first-edition"
    results_page.write_page(found, seeds, "docs/results", tmp_path, None, earlier)
    page = (tmp_path / "results.md").read_text()
    for name in ("results.md", "results-curves.svg", "results-plane.svg", "results-cost.svg"):
        assert (tmp_path / name).read_text() == (ROOT / "docs/explanation" / name).read_text()
    for record in found:
        name = records.folder_name(record.label)
        (tmp_path / name).mkdir()
        for file in ("record.json", "model.safetensors"):
            (tmp_path / name / file).symlink_to(ROOT / "docs/results" / name / file)
    (tmp_path / records.EARLIER).symlink_to(ROOT / "docs/results" / records.EARLIER)
    cards.write_cards(str(tmp_path), found)
    for record in found:
        card = f"{records.folder_name(record.label)}/README.md"
        assert (tmp_path / card).read_text() == (ROOT / "docs/results" / card).read_text()
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = [line for line in lines if re.match(r"\| .*\d\d\.\d\d \|", line)]
    assert len(shown) > len(found)
    assert set(shown) <= set(page.splitlines())


def test_the_shipped_records_are_the_cells_of_their_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = [file for file in Path("configs").glob("*.yaml") if "records: docs/results" in file.read_text()]
    planned = [cell for file in files for cell in variants.list_variants(parse([f"--config={file}"], "tune", ""))]
    cells = {cell.label: cell for cell in planned}
    assert len(cells) == len(planned)
    assert cells.keys() >= ROWS
    for label in ROWS:
        cell, record = cells[label], records.read(str(ROOT / "docs/results"), label)
        assert record
        known = records.configuration(record)
        patch_set = str(record.identity["patch_set"])
        assert runs.describes_same(record.identity, known, cell.config, patch_set), cell.label
        assert known.preprocess == cell.config.preprocess


def test_the_card_of_the_bundled_model_fits_the_package() -> None:
    card = cards.bundled_card(str(ROOT / "docs/results"), bundled.DEFAULT)
    assert card
    assert Path(bundled.weights(bundled.DEFAULT)).with_name("README.md").read_text() == card
    assert "--model srresnet-x4\n" in card
    assert "`docs/results/longer/record.json` in the project's repository" in card


def test_only_folders_with_a_record_count(kept: Path, tmp_path: Path) -> None:
    assert "seeds" not in records.names(str(ROOT / "docs/results"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    assert records.names(str(tmp_path)) == []


def test_a_record_names_no_place_outside(kept: Path, mse: TrainingRecord, tmp_path: Path) -> None:
    (tmp_path / "mse").mkdir()
    for place in ("../../elsewhere", "..", ""):
        (tmp_path / "mse/record.json").write_text(json.dumps({**dataclasses.asdict(mse), "training": place}))
        with pytest.raises(DamagedFileError, match=r"mse/record.json is damaged at training: string should match"):
            records.read_all(str(tmp_path))


def _without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Remove an entry from nested mappings."""
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return record


@pytest.mark.parametrize(
    "keys",
    [
        ("identity", "train"),
        ("identity", "patch_set"),
        ("scores", "held-out", "mean", "bicubic"),
        ("scores", "held-out", "mean", "trained", "psnr_y"),
        ("versions", "torch"),
        ("result", "steps"),
        ("patch_set",),
    ],
    ids=".".join,
)
def test_a_record_that_lacks_something_is_one_sentence(mse: TrainingRecord, tmp_path: Path, keys: list[str]) -> None:
    (tmp_path / "mse").mkdir()
    record = _without(copy.deepcopy(dataclasses.asdict(mse)), *keys)
    (tmp_path / "mse/record.json").write_text(json.dumps(record))
    with pytest.raises(DamagedFileError, match=r"mse/record.json is damaged at [^\n]*; restore it, such as from"):
        records.read(str(tmp_path), "mse")


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no record, expected a folder that was written"):
        publish.main.__wrapped__(["mlflow", f"--records={tmp_path}"])  # type: ignore[attr-defined]


def test_a_training_is_the_same_by_what_shaped_it(tmp_path: Path) -> None:
    weights = tmp_path / "vgg19.safetensors"
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, weights)
    options = ['train.loss={"perceptual": 1}', f"train.perceptual.weights={weights}"]
    config = parse(options, "tune", "")
    known = runs.identify(config, "set")
    older = config.model_dump()
    trains: list[Any] = [older["train"], known["train"]]
    for settings in trains:  # as if these were new
        del settings["optimizer"], settings["perceptual"]["scale"]

    def same(*more: str, patch_set: str = "set") -> bool:
        return runs.describes_same(known, Config(**older), parse([*options, *more], "tune", ""), patch_set)

    assert same()
    assert same("train.validate_every=7", "cluster.workers=1", "data.hold=stream")
    assert not same("train.lr=1")
    assert not same("train.optimizer=muon")
    assert not same('train.loss={"mse": 1}')
    assert not same(patch_set="another")
    others = {name: f"train.perceptual.weights={tmp_path / name}.safetensors" for name in ("copy", "other", "missing")}
    (tmp_path / "copy.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "other.safetensors").write_bytes(weights.read_bytes()[:-4] + b"....")
    assert same(others["copy"])
    assert not same(others["other"])
    assert same(others["missing"])  # the content is unknown
    assert not same(others["missing"], "train.lr=1")


def test_a_port_that_is_in_use_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use: choose another, such as make results-ui PORT="):
            publish.main.__wrapped__(  # type: ignore[attr-defined]
                ["mlflow", f"--records={tmp_path}", f"--home={tmp_path / 'home'}", f"--port={port}"]
            )
    assert not (tmp_path / "home").exists()
