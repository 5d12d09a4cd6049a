"""Scores of models that draw images in steps."""

from pathlib import Path

import pytest

from pipeline.evaluation.models import evaluate_models
from pipeline.evaluation.sampled import Drawing, Series, describe
from pipeline.evaluation.scores import Scores, SetScores
from pipeline.networks.weights import build_network, to_safetensors
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from sr_model.networks.sampling import Sampling
from tests.conftest import SMALL, write_photos
from tests.sr_model.networks.test_refiner import make


def series(*means: tuple[int, int, float]) -> tuple[list[Series], Scores]:
    """A series with (steps, seed, distance), and its scores on one set."""
    drawing = Drawing(tuple({steps for steps, _, _ in means}), tuple({seed for _, seed, _ in means}))
    names = {(s.steps, s.seed): drawing.label("m", s) for s in drawing.samplings()}
    methods = tuple((Sampling(steps, seed), names[steps, seed]) for steps, seed, _ in means)
    mean = {names[steps, seed]: {"psnr_y": 30.0, "distance": value} for steps, seed, value in means}
    return [Series("m", methods)], Scores("", "", {"Set5": SetScores("", [], mean)})


def test_all_pairs_of_steps_and_seeds_are_drawn_in_order() -> None:
    drawing = Drawing((4, 1, 4), (7,), "heun")
    assert drawing.samplings() == [Sampling(1, 7, "heun"), Sampling(4, 7, "heun")]
    assert [drawing.label("m", one) for one in drawing.samplings()] == ["m, 1 step, heun", "m, 4 steps, heun"]
    assert Drawing(seeds=(1, 0)).samplings() == [Sampling(None, 0), Sampling(None, 1)]
    assert not Drawing().is_chosen


def test_a_distance_that_rises_with_the_steps_is_said_loudly() -> None:
    (sentence,) = describe(*series((1, 0, 1.5), (8, 0, 1.75)))
    assert sentence.startswith("WARNING: the SqueezeNet distance of m on Set5 rises with the number of steps, from 1.5")
    assert describe(*series((1, 0, 1.5), (8, 0, 1.25))) == []
    assert describe(*series((1, 0, 1.5), (8, 0, 1.501))) == [], "this rise is rounding"
    assert describe(*series((4, 0, 1.5))) == []


def test_several_seeds_give_a_deviation() -> None:
    (table,) = describe(*series((2, 0, 1.0), (2, 1, 3.0)))
    assert "m, 2 steps, 2 seeds" in table
    assert "1.4142" in table


@pytest.mark.long
def test_a_model_gets_a_row_for_each_number_of_steps(tmp_path: Path, ray_session: None) -> None:
    write_photos(tmp_path / "photos", 96)
    options = [*SMALL, f"--home={tmp_path}/home", f"--evaluate.benchmarks=A={tmp_path}/photos", "cluster.gpu=false"]
    config = parse(options, "evaluate", "")
    (tmp_path / "flow.safetensors").write_bytes(to_safetensors(make(), 4))
    (tmp_path / "start.safetensors").write_bytes(to_safetensors(build_network(4, config.model, 1), 4))
    models = [f"{tmp_path}/flow.safetensors", f"{tmp_path}/start.safetensors"]
    found = evaluate_models(config, models, drawing=Drawing((1, 2), (0, 1)), consistent=True)
    assert list(found.scores.sets["A"].mean) == [
        "bicubic",
        *(f"flow, {steps}, seed {seed} (consistent)" for steps in ("1 step", "2 steps") for seed in (0, 1)),
        "start (consistent)",
    ]
    assert any("2 seeds" in remark for remark in found.remarks)
    with pytest.raises(UserError, match="none of the models draws images in steps"):
        evaluate_models(config, models[1:], drawing=Drawing((4,)))
    with pytest.raises(UserError, match="the self-ensemble averages eight images"):
        evaluate_models(config, models, self_ensemble=True)
