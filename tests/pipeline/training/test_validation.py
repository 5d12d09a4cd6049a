"""Validation of one rank: the scores and comparisons of a network."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import preparation
from pipeline.evaluation import scoring
from pipeline.networks.upscaling import upscale_image
from pipeline.networks.weights import build_network
from pipeline.settings.command_line import parse
from pipeline.tracking import Journal
from pipeline.training.ranks import Ranks
from pipeline.training.validation import Validator, one_behind, stop_watching
from sr_model.metrics import phase_energy
from sr_model.pixels import to_tensor


@pytest.mark.usefixtures("ray_session")
def test_scores_and_comparisons_are_those_of_the_upscaled_images(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    config = parse(small(), "train", "")
    patch_set, _ = preparation.prepare(config)
    net = build_network(config.scale, config.model, 0).eval()
    images = [patch_set.read_holdout(number) for number in range(patch_set.held_out)]
    upscaled = [upscale_image(net, image.lr) for image in images]
    scores = [scoring.score_image(sr, image.hr, config.scale) for sr, image in zip(upscaled, images, strict=True)]
    validator = Validator(config, patch_set, {}, Ranks(torch.device("cpu")), Journal(f"{tmp_path}/journal"))
    validation = validator.validate(net, step=3)
    stop_watching()
    assert validation.metrics == {
        "val/psnr_y": np.mean([score.psnr_y for score in scores]),
        "val/ssim_y": np.mean([score.ssim_y for score in scores]),
        "val/psnr_rgb": np.mean([score.psnr_rgb for score in scores]),
    }
    judged = parse(small("train.method=gan", "train.gan.from_scratch=true"), "train", "")
    further = Validator(judged, patch_set, {}, Ranks(torch.device("cpu")), Journal(f"{tmp_path}/other"))
    metrics = further.validate(net).metrics
    stop_watching()
    pairs = zip(upscaled, images, strict=True)
    tensors = [[to_tensor(part) for part in (sr, image.lr, image.hr)] for sr, image in pairs]
    expected = [scoring.measure({"sr": sr}, lr, hr)["sr"] for sr, lr, hr in tensors]
    for name in ("st_lpips", "lr_psnr"):
        assert metrics[f"val/{name}"] == pytest.approx(np.mean([score[name] for score in expected]))
    energies = np.mean([[phase_energy(sr), phase_energy(hr)] for sr, _, hr in tensors], axis=0)
    assert metrics["val/phase_ratio"] == pytest.approx(energies[0] / energies[1])
    assert {name: metrics[name] for name in validation.metrics} == validation.metrics
    assert len(validation.images) == len(images) == 2
    for file, sr, image in zip(validation.images.values(), upscaled, images, strict=True):
        with Image.open(tmp_path / "journal" / file) as strip:
            bicubic, middle, truth = np.split(np.asarray(strip), 3, axis=1)
        assert np.array_equal(bicubic, scoring.bicubic_image(image.lr, config.scale))
        assert np.array_equal(middle, sr)
        assert np.array_equal(truth, image.hr)


def test_a_score_is_read_while_the_next_one_is_computed() -> None:
    made = []

    def make() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number

    behind = [(number, len(made)) for number in one_behind(make())]
    assert behind == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_behind(iter([]))) == []
