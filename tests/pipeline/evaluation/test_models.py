"""Models side by side: what `python -m pipeline.evaluate --model …` scores and writes."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import evaluate
from pipeline.evaluation import models
from pipeline.evaluation.scores import ImageScores
from pipeline.evaluation.scoring import bicubic_image, score_image
from pipeline.networks.weights import build_network, to_safetensors
from pipeline.reporting import scoreboard
from pipeline.reporting.scoreboard import Scoreboard
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from sr_model.degrade import downscale
from sr_model.pixels import to_eight_bit, to_input, to_pixels, to_tensor
from tests.conftest import SMALL, write_photos


@dataclasses.dataclass(frozen=True)
class Case:
    """An evaluation of a network and of a folder of results on two sets."""

    base: Path
    config: Config
    board: Scoreboard

    def image(self, name: str) -> ImageScores:
        return next(i for entry in self.board.scores.sets.values() for i in entry.images if i.name == name)


def texts(base: Path) -> list[str]:
    return [f"{base}/weights/net.safetensors", f"tool={base}/tool", "bicubic"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Case:
    base = tmp_path_factory.mktemp("models")
    write_photos(base / "photos", 96)
    for number, file in enumerate(sorted((base / "photos").iterdir())):
        target = base / "sets" / ("A" if number < 3 else "Set14") / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(file)
        (image.convert("L") if number == 5 else image).save(target)
    config = parse([*SMALL, f"--home={base / 'home'}", "evaluate.images=1", "cluster.gpu=false"], "evaluate", "")
    (base / "weights").mkdir()
    (base / "weights/net.safetensors").write_bytes(to_safetensors(build_network(4, config.model, 1), 4))
    (base / "tool/A").mkdir(parents=True)
    Image.new("RGB", (96, 96), (90, 80, 70)).save(base / "tool/A/astronaut0_SR.png")
    Image.new("RGB", (98, 97), (90, 80, 70)).save(base / "tool/A/astronaut1_x4.png")
    Image.new("RGB", (24, 24)).save(base / "tool/A/chelsea0.png")
    sets = {"A": f"{base}/sets/A", "Set14": f"{base}/sets/Set14"}
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"benchmarks": sets})})
    return Case(base, config, scoreboard.score_models(config, texts(base), csv=f"{base}/mine.csv", track=True))


def test_every_model_has_a_row_for_each_set(case: Case) -> None:
    sets = case.board.scores.sets
    assert {name: list(entry.mean) for name, entry in sets.items()} == {
        "A": ["bicubic", "net", "tool"],
        "Set14": ["bicubic", "net"],
    }
    metrics = {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "st_lpips", "lr_psnr"}
    assert all(mean.keys() == metrics for entry in sets.values() for mean in entry.mean.values())
    assert "A (2)" in case.board.table
    assert case.board.table.count("net ") == 2


def test_scores_are_those_of_the_images_that_the_models_make(case: Case) -> None:
    hr = np.asarray(Image.open(case.base / "sets/A/astronaut0.png"))
    lr = downscale(to_tensor(hr), 4)
    scores = case.image("astronaut0").scores
    net = build_network(4, case.config.model, 1).eval()
    with torch.no_grad():
        made = to_eight_bit(net(to_input(lr))[0])
    assert scores["bicubic"].items() >= dataclasses.asdict(score_image(bicubic_image(to_pixels(lr), 4), hr, 4)).items()
    assert scores["net"]["psnr_y"] == pytest.approx(score_image(to_pixels(made), hr, 4).psnr_y, abs=1e-3)
    flat = np.broadcast_to(np.array([90, 80, 70], np.uint8), hr.shape)
    assert scores["tool"]["psnr_rgb"] == score_image(flat.copy(), hr, 4).psnr_rgb
    assert scores["bicubic"]["lr_psnr"] > 30 > scores["tool"]["lr_psnr"]
    assert scores["bicubic"]["st_lpips"] < scores["tool"]["st_lpips"]


def test_results_that_do_not_fit_are_named_and_left_out(case: Case) -> None:
    assert case.board.scores.problems == [
        "tool: no file belongs to an image of Set14",
        f"tool: {case.base}/tool/A/chelsea0.png is 24x24, but its HR image is 96x96, so chelsea0 is left out",
    ]
    assert "tool" not in case.image("chelsea0").scores
    assert "tool" in case.image("astronaut1").scores  # of a tool that enlarged an uncropped image


def test_scores_are_written_as_csv_json_and_images(case: Case) -> None:
    files = {Path(file).name: Path(file) for file in case.board.files}
    assert set(files) == {"scores.json", "scores.csv", "comparison-A.png", "comparison-Set14.png", "mine.csv"}
    rows = list(csv.DictReader(files["mine.csv"].read_text().splitlines()))
    assert [(row["set"], row["model"], row["images"]) for row in rows] == [
        ("A", "bicubic", "3"), ("A", "net", "3"), ("A", "tool", "2"), ("Set14", "bicubic", "3"), ("Set14", "net", "3")
    ]  # fmt: skip
    assert float(rows[1]["psnr_y"]) == case.board.scores.sets["A"].mean["net"]["psnr_y"]
    written = json.loads(files["scores.json"].read_text())["sets"]["A"]["images"]
    assert [image["scores"]["net"] for image in written] == [
        image.scores["net"] for image in case.board.scores.sets["A"].images
    ]
    widths = {}
    for name in ("comparison-A.png", "comparison-Set14.png"):
        with Image.open(files[name]) as drawn:
            widths[name] = drawn.width
    assert widths["comparison-A.png"] / widths["comparison-Set14.png"] == pytest.approx(5 / 4)  # LR, models, HR


def test_mlflow_has_the_scores(case: Case) -> None:
    client = mlflow.MlflowClient(case.config.tracking_uri)
    (run,) = client.search_runs(["1"])
    assert run.data.metrics["A/net/psnr_y"] == case.board.scores.sets["A"].mean["net"]["psnr_y"]
    assert run.data.tags["stage"] == "evaluate"
    assert "mlflow.note.content" not in run.data.tags  # no command without --model repeats it
    there = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert there >= {"scores.csv", "comparison-A.png", "results.json"}


def test_the_same_scores_are_not_measured_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.map_tasks", None)
    again = models.evaluate_models(case.config, texts(case.base))
    assert again.scores == case.board.scores
    with pytest.raises(TypeError):
        models.evaluate_models(case.config, texts(case.base)[:1])


def test_an_interrupted_evaluation_leaves_no_scores_beside_other_images(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(Path(case.board.files[0]).parent, folder)
    (folder / "comparison-mine.png").touch()
    monkeypatch.setattr("pipeline.cluster.map_tasks", None)
    with pytest.raises(TypeError):
        scoreboard.score_models(case.config, texts(case.base)[:1], folder=str(folder))
    left = {file.name for file in folder.iterdir() if file.suffix != ".csv"}
    assert left & {"scores.json", "comparison-A.png", "comparison-Set14.png"} == set()
    assert "comparison-mine.png" in left  # which is no comparison of a set


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("https://user:QQ@host/res.zip?sig=QQ&x=/QQ.png", "res.zip"),
        ("https://host/net/model.safetensors?X-Amz-Signature=QQ", "net"),
        ("https://user:QQ/QQ@host", "host"),
        ("s3://bucket/trainings/a-training/", "a-training"),
        ("results/what?/x2", "x2"),
    ],
)
def test_a_label_names_a_model_without_secrets(text: str, label: str) -> None:
    assert models.label_of(text) == label


def run(case: Case, *argv: str) -> None:
    evaluate.main.__wrapped__([f"--home={case.base / 'home'}", *argv])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--model", "nothing", "--sets", "builtin"],
            "there is no model nothing: expected a bundled model, ",
        ),
        (
            ["--model", "BASE/weights", "--sets", "builtin"],
            "has no model.safetensors: .*; it holds no images that another tool",
        ),
        (["--model", "bicubic"], "there is no set of images to score: expected --sets NAME=FOLDER"),
        (["--model", "bicubic", "--sets", "Urban100"], "none of the named sets is at hand"),
        (["--model", "bicubic", "--sets", "a=/nowhere"], "evaluate.benchmarks.a is /nowhere, which does not exist"),
        (["--self-ensemble"], "--self-ensemble needs --model, expected at least one model to score"),
        (["--csv", "x.csv"], "--csv needs --model, expected at least one model to score"),
        (["--model"], "argument --model: expected at least one argument"),
        (["--model", "x", "--steps", "1,0"], "argument --steps: '0' is not a whole number from 1 to 100"),
        (["--model", "bicubic", "--sets", "builtin", "--steps", "1,2", "scale=5"], "scale is 5, expected"),
        (["--model", "bicubic", "--sets", "builtin", "scale=5"], "scale is 5, expected"),
        (["net.safetensors"], "cannot read 'net.safetensors', expected --KEY VALUE"),
    ],
)
def test_mistakes_are_one_sentence(
    case: Case, argv: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SR_SETS", raising=False)
    with pytest.raises(UserError, match=message) as error:
        run(case, *(argument.replace("BASE", str(case.base)) for argument in argv))
    assert "\n" not in str(error.value)


def test_models_of_different_scales_do_not_share_a_table(case: Case, tmp_path: Path) -> None:
    (tmp_path / "two.safetensors").write_bytes(to_safetensors(build_network(2, case.config.model, 1), 2))
    with pytest.raises(UserError, match=r"different scales \(net enlarges 4 times, two enlarges 2 times\)"):
        models.evaluate_models(case.config, [texts(case.base)[0], f"{tmp_path}/two.safetensors"])


def test_the_command_takes_sets_from_a_folder_and_says_what_it_skips(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SR_SETS", f"{case.base}/sets")
    options = ["--sets", "set14", "Set5", "evaluate.images=0", "evaluate.st_lpips=false", "cluster.gpu=false"]
    run(case, "--model", f"small={case.base}/weights/net.safetensors", "--self-ensemble", *options)
    printed = capsys.readouterr().out
    assert "the published set Set5 is skipped, because it is not at hand in" in printed
    assert "Set14 (3)  small (x8)" in printed
    assert "ST-LPIPS" not in printed
    assert "comparison" not in printed
