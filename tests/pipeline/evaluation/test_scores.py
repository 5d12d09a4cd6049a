"""Scores: how they are identified, stored and printed."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data import patchset, preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import tables, trained_network
from pipeline.evaluation.scores import ImageScores, Scores, SetScores
from pipeline.networks.weights import build_network, to_safetensors
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from tests.conftest import SMALL, write_photos

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclasses.dataclass(frozen=True)
class Case:
    """A patch set, weights, and the scores of both."""

    base: Path
    config: Config
    patch_set: PatchSet
    weights: str
    scored: Scores

    def read(self, *options: str, weights: str | None = None, folder: Path | None = None) -> Scores | None:
        config = parse([*_options(self.base), *options], "evaluate", "")
        return trained_network.read(
            config, self.patch_set, weights or self.weights, str(folder or self.base / "scores")
        )


def _options(base: Path) -> list[str]:
    return [f"--source={base / 'photos'}", f"--home={base / 'home'}", *SMALL, "evaluate.images=1"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Case:
    base = tmp_path_factory.mktemp("scores")
    write_photos(base / "photos")
    config = parse(_options(base), "evaluate", "")
    patch_set, _ = preparation.prepare(config)
    weights = base / "model.safetensors"
    weights.write_bytes(to_safetensors(build_network(config.scale, config.model, 1)))
    return Case(
        base,
        config,
        patch_set,
        str(weights),
        trained_network.evaluate(config, patch_set, str(weights), f"{base}/scores"),
    )


def test_each_method_is_scored_on_each_image(case: Case) -> None:
    (entry,) = case.scored.sets.values()
    assert [image.name for image in entry.images] == ["coffee0.png", "coffee1.png"]
    assert set(entry.mean) == {"bicubic", "untrained", "trained"}
    assert entry.mean["bicubic"]["psnr_y"] == pytest.approx(
        sum(image.scores["bicubic"]["psnr_y"] for image in entry.images) / 2
    )
    assert [set(image.shown) for image in entry.images] == [{"bicubic", "untrained", "trained", "hr"}, set()]
    assert all(Path(url).is_file() for url in entry.images[0].shown.values())


def test_known_scores_are_read_instead_of_measured(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.map_tasks", None)
    assert trained_network.evaluate(case.config, case.patch_set, case.weights, f"{case.base}/scores") == case.scored


def test_scores_are_found_wherever_weights_and_folder_lie(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.base / "scores", tmp_path / "moved")
    weights = shutil.copy(case.weights, tmp_path / "other.safetensors")
    known = case.read(f"--home={tmp_path}", weights=str(weights), folder=tmp_path / "moved")
    assert known
    assert known.identity == case.scored.identity
    shown = known.sets["held-out"].images[0].shown
    assert all(Path(url).is_file() and Path(url).is_relative_to(tmp_path) for url in shown.values())


def test_scores_of_something_else_are_not_taken(case: Case, tmp_path: Path) -> None:
    assert case.read() == case.scored
    assert case.read("train.seed=7") is None  # another untrained network
    assert case.read("evaluate.images=2") is None
    assert case.read("evaluate.benchmarks=builtin=builtin") is None
    other = tmp_path / "other.safetensors"
    other.write_bytes(to_safetensors(build_network(case.config.scale, case.config.model, 2)))
    assert case.read(weights=str(other)) is None


def test_the_identity_downloads_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("a download")

    monkeypatch.setattr("pipeline.downloads.download.fetch", refuse)
    assert case.read("evaluate.squeezenet=torchvision") is None  # the known scores lack the distance


def test_infinite_scores_survive_the_file(tmp_path: Path) -> None:
    image = ImageScores("same.png", {"trained": {"psnr_y": math.inf}}, {})
    written = Scores(
        "id", "protocol", {"Set5": SetScores("files of the set", [image], {"trained": {"psnr_y": math.inf}})}
    )
    storage.write_document(f"{tmp_path}/scores.json", written)
    assert storage.read_document(f"{tmp_path}/scores.json", Scores) == written


@pytest.mark.parametrize("content", ["", "{}", '{"identity": "x", "protocol": "y", "sets": {"Set5": {"lr": 1}}}'])
def test_images_are_scored_again_if_the_file_is_damaged(
    case: Case, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores.json").write_text(content)
    assert case.read(folder=tmp_path) is None
    assert f"{tmp_path}/scores.json is damaged" in capsys.readouterr().err
    again = trained_network.evaluate(case.config, case.patch_set, case.weights, str(tmp_path))
    assert again.sets["held-out"].mean == case.scored.sets["held-out"].mean
    assert case.read(folder=tmp_path) == again


def test_images_are_scored_again_if_one_that_the_report_shows_is_missing(case: Case, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(case.base / "scores", tmp_path / "scores"))
    assert case.read(folder=copied)
    next(copied.glob("images/*/*-hr.png")).unlink()
    assert case.read(folder=copied) is None


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize("damage", [_truncated, Path.unlink])
def test_a_damaged_shard_of_held_out_images_is_one_sentence(
    case: Case, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    copied = patchset.load(shutil.copytree(case.patch_set.url, tmp_path / "set").as_posix())
    shard = Path(copied.url, copied.holdout[0].file)
    damage(shard)
    with pytest.raises(
        UserError, match=rf"^coffee\d.png of the set held-out cannot be scored: the shard {shard} is "
    ) as e:
        trained_network.evaluate(case.config, copied, case.weights, str(tmp_path / "scores"))
    assert f"python -m pipeline.patchset verify {copied.url}" in str(e.value)
    assert not (tmp_path / "scores/scores.json").exists()


def test_images_that_cannot_be_written_are_one_sentence(case: Case, tmp_path: Path) -> None:
    (tmp_path / "images").write_text("no folder")
    with pytest.raises(
        UserError, match=r"^coffee0.png of the set held-out cannot be scored: .*(Not a dir|File exists)"
    ):
        trained_network.evaluate(case.config, case.patch_set, case.weights, str(tmp_path))


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_damaged_weights_are_one_sentence(case: Case, tmp_path: Path, content: bytes | None) -> None:
    weights = tmp_path / "model.safetensors"
    if content is not None:
        weights.write_bytes(content)
    with pytest.raises(UserError, match=r"weights.*model.safetensors[^\n]*expected a .safetensors file"):
        trained_network.evaluate(case.config, case.patch_set, str(weights), str(tmp_path))


def test_tables_fit_80_columns_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        ["set", "cell", "PSNR (Y), dB", "SSIM (Y)", "PSNR (RGB), dB", "SqueezeNet distance"],
        ["held-out (15)", "a_label_that_is_too_long_for_the_terminal", "27.11", "0.7414", "25.82", "3.0272"],
    ]
    text = tables.aligned(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert sorted("".join(text.split())) == sorted("".join("".join(row) for row in rows).replace(" ", ""))
