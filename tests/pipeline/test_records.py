"""Finished cells as files of a repository: what a record holds, that it counts as finished, and what is made of it."""

import json
import re
from pathlib import Path

import mlflow
import pytest
import safetensors.torch
import torch

from pipeline import features, publish, records, train
from pipeline.commandline import parse
from pipeline.config import Config, UserError
from pipeline.records import Recorded
from tests.conftest import ROOT
from tests.grids import Grid, tune

ROWS = {"bn·mse", "bn·perceptual", "longer", "nobn·mse", "nobn·perceptual"}
"""Trained networks that come along, as far as they are recorded yet."""


@pytest.fixture(scope="module")
def kept(finished_grid: Grid) -> Path:
    return finished_grid[1].parents[2] / "records"


@pytest.fixture(scope="module")
def mse(kept: Path) -> Recorded:
    recorded = records.find(str(kept), "mse")
    assert recorded
    return recorded


def test_every_finished_cell_is_recorded(kept: Path, finished_grid: Grid) -> None:
    assert records.names(str(kept)) == ["mse", "perceptual"]  # the broken one is not
    for label in ("mse", "perceptual"):
        assert {file.name for file in (kept / label).iterdir()} == {"model.safetensors", "record.json", "README.md"}
        weights = safetensors.torch.load_file(kept / label / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}


def test_a_record_holds_configuration_metrics_and_scores(mse: Recorded, finished_grid: Grid) -> None:
    assert mse["config"]["train"]["loss"] == {"mse": 1.0}
    validations = [r["step"] for r in mse["history"] if r["kind"] == "validation"]
    assert validations == [0, 4, 8]
    assert mse["scores"]["held-out"]["mean"]["trained"]["psnr_y"] > 10
    assert len(mse["scores"]["held-out"]["pictures"]) == 2
    assert mse["result"]["steps"] == 8
    assert {"torch", "ray", "mlflow", "python"} <= set(mse["versions"])


def test_a_record_names_no_place_of_the_machine(kept: Path, finished_grid: Grid) -> None:
    home = str(finished_grid[1].parents[2])
    for file in kept.rglob("*.*"):
        if file.suffix != ".safetensors":
            assert home not in file.read_text()


def test_the_card_says_what_it_is(kept: Path, mse: Recorded) -> None:
    card = (kept / "mse/README.md").read_text()
    psnr = mse["scores"]["held-out"]["mean"]["trained"]["psnr_y"]
    assert "# SRResNet x4, mse" in card
    assert f"| held-out (2) | this model | {psnr:.2f} |" in card
    assert "Six crops of photographs, public domain." in card
    assert "--model mse" in card


def test_a_recorded_cell_counts_as_finished(finished_grid: Grid, kept: Path, mse: Recorded, tmp_path: Path) -> None:
    options = [o for o in finished_grid[0] if not o.startswith(("--home", "tune.grid"))]
    grid = json.dumps({"train.loss": {"mse": {"mse": 1.0}}})
    printed, _ = tune(*options, f"--home={tmp_path}", f"tune.grid={grid}")
    assert f"cell mse taken from {kept}/mse" in printed
    assert "0 of 1 trials to train" in printed
    assert "measuring a step" not in printed
    (scores,) = tmp_path.glob("grids/*/cells/mse/scores.json")
    again = json.loads(scores.read_text())["sets"]["held-out"]["mean"]["trained"]["psnr_y"]
    assert again == pytest.approx(mse["scores"]["held-out"]["mean"]["trained"]["psnr_y"], abs=0.01)  # fp16


def test_another_training_does_not_take_a_records_place(kept: Path, mse: Recorded) -> None:
    other = {**mse, "identity": {**mse["identity"], "patch_set": "other"}}
    with pytest.raises(UserError, match=r"mse holds the record of another training .*expected tune.records to name"):
        records.keep(str(kept), "mse", Config(), other, "", None)
    assert records.find(str(kept), "mse") == mse


def test_records_are_imported_into_a_store_of_their_own(
    kept: Path, mse: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for _ in range(2):  # a second time adds nothing
        publish.import_records(records.load(str(kept)), str(kept), str(tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert sorted(runs) == ["grid", "mse", "perceptual"]
    run = runs["mse"]
    assert run.data.tags["mlflow.parentRunId"] == runs["grid"].info.run_id
    assert run.data.tags["mlflow.source.git.commit"] == mse["commit"]
    assert run.data.metrics["held-out/psnr_y"] == mse["scores"]["held-out"]["mean"]["trained"]["psnr_y"]
    history = client.get_metric_history(run.info.run_id, "val/psnr_y")
    expected = [(r["step"], r["metrics"]["val/psnr_y"]) for r in mse["history"] if r["kind"] == "validation"]
    assert sorted((metric.step, metric.value) for metric in history) == expected
    assert [file.path for file in client.list_artifacts(run.info.run_id, "model")] == ["model/model.safetensors"]
    assert (tmp_path / "grids/recorded/report.html").exists()


def test_the_page_of_results_is_written_from_records(kept: Path, mse: Recorded, tmp_path: Path) -> None:
    publish.write_page(records.load(str(kept)), records.load(str(kept)), str(kept), tmp_path, None)
    page = (tmp_path / "results.md").read_text()
    psnr = mse["scores"]["held-out"]["mean"]["trained"]["psnr_y"]
    assert f"| **mse** | {psnr:.2f} |" in page
    assert "| published nobn·mse | " in page
    assert "- mse: 8 steps of 6 patches of 32 pixels" in page
    assert "{" not in page.replace("'{", "").replace('{"', "")
    assert (tmp_path / "results-curves.svg").read_text().startswith("<svg")


def test_the_pages_tell_what_the_shipped_records_hold(tmp_path: Path) -> None:
    found = records.load(records.SHIPPED)
    assert {recorded["label"] for recorded in found} <= ROWS
    publish.write_page(found, records.load(str(ROOT / "docs/seeds")), records.SHIPPED, tmp_path, None)
    page = (tmp_path / "results.md").read_text()
    assert page == (ROOT / "docs/results.md").read_text()
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = [line for line in lines if re.match(r"\| .*\d\d\.\d\d \|", line)]
    assert len(shown) > len(found)
    assert set(shown) <= set(page.splitlines())


def test_a_record_names_no_place_outside(kept: Path, mse: Recorded, tmp_path: Path) -> None:
    (tmp_path / "mse").mkdir()
    (tmp_path / "mse/record.json").write_text(json.dumps({**mse, "training": "../../elsewhere"}))
    with pytest.raises(UserError, match=r"record.json is damaged: the training's name is '../../elsewhere'"):
        records.load(str(tmp_path))


def test_no_records_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no record, expected folders that"):
        publish.main.__wrapped__(["mlflow", f"--records={tmp_path}"])  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no network comes with this package"):
        records.best(str(tmp_path))


def test_a_training_is_the_same_by_what_shaped_it(tmp_path: Path) -> None:
    weights = tmp_path / "vgg19.safetensors"
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, weights)
    options = ['train.loss={"perceptual": 1}', f"train.perceptual.weights={weights}"]
    config = parse(options, "tune", "")
    known = train.identity(config, "set")
    older = config.model_dump()
    del older["train"]["optimizer"], known["train"]["optimizer"]  # as if that setting were new

    def same(*more: str, patch_set: str = "set") -> bool:
        return train.is_same(known, Config(**older), parse([*options, *more], "tune", ""), patch_set)

    assert same()
    assert same("train.validate_every=7", "cluster.workers=1", "data.hold=stream")
    assert not same("train.lr=1")
    assert not same("train.optimizer=muon")
    assert not same('train.loss={"mse": 1}')
    assert not same(patch_set="another")
    weights.write_bytes(weights.read_bytes()[:-4] + b"....")
    features._identity.cache_clear()  # which a command reads once
    assert not same()
    weights.unlink()
    features._identity.cache_clear()
    assert same()  # nobody can tell
    assert not same("train.lr=1")
