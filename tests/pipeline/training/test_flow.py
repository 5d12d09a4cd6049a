"""Repeated refinement with the engine: the promises of ordinary training hold, and its noise belongs to the samples."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from skimage import data

from pipeline import api
from pipeline.data.reader import Batch
from pipeline.networks.weights import build_network, load_network, read_weights, to_safetensors
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.methods import find_method
from pipeline.training.ranks import Ranks
from sr_model.degrade import downscale
from sr_model.networks.refiner import Refiner
from tests.commands import run_ranks
from tests.conftest import ROOT
from tests.pipeline.training.test_learner import batch, split

CPU = torch.device("cpu")
SMALL = (
    "model.name=refiner", "model.channels=8", "model.blocks=1", "model.base.channels=8", "model.base.blocks=1",
    "train.method=flow", "train.global_batch=6", "data.crop=32", "train.ema_decay=0.5",
)  # fmt: skip
SR3 = ("model.process=sr3", "train.loss=l1=1", "train.init_from=null")


@pytest.fixture
def base(tmp_path: Path) -> str:
    """Weights of a network to start from."""
    described = parse(["model.channels=8", "model.blocks=1", "model.batch_norm=false"], "train", "")
    net = build_network(4, described.model, seed=5)
    file = tmp_path / "base.safetensors"
    file.write_bytes(to_safetensors(net, 4))
    return str(file)


def config(base: str, *more: str) -> Config:
    return parse([*SMALL, f"train.init_from={base}", *more], "train", "")


def make_learner(settings: Config) -> Learner:
    return Learner(settings, 8, Ranks(CPU), "fp32")


def make_steps(learner: Learner, first: int, last: int, sizes: tuple[int, ...] = (6,)) -> list[float]:
    objectives = []
    for step in range(first, last):
        result = learner.step(step, split(batch(6, seed=step), list(sizes)), len(sizes))
        objectives.append(result.sums["objective"].item())
    return objectives


def refiner(learner: Learner) -> Refiner:
    assert isinstance(learner.ema, Refiner)
    return learner.ema


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.init_from=null"], "train.method is flow without train.init_from"),
        (["train.method=supervised"], "model.name is refiner, which only train.method=flow trains"),
        (["model.process=sr3"], "model.process is sr3, which starts from noise"),
        (["train.loss=tv=1"], "train.loss has tv, which needs an image"),
    ],
)
def test_settings_that_do_not_suit_are_refused_in_a_sentence(base: str, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_method(config(base, *options))


def test_another_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.name is srresnet, expected refiner"):
        find_method(parse(["train.method=flow"], "train", ""))


def test_weights_of_another_base_are_refused(base: str) -> None:
    with pytest.raises(UserError, match="belong to another network"):
        make_learner(config(base, "model.base.blocks=2"))


def test_only_the_refining_network_learns_and_the_file_holds_the_whole_model(base: str, tmp_path: Path) -> None:
    learner = make_learner(config(base))
    before = {name: value.clone() for name, value in learner.net.state_dict().items()}
    make_steps(learner, 0, 4)
    given = read_weights(base)
    for name, value in learner.net.state_dict().items():
        if name.startswith("base."):
            assert torch.equal(value, given[name.removeprefix("base.")]), name
    assert not torch.equal(before["conv_last.weight"], learner.net.state_dict()["conv_last.weight"])
    file = tmp_path / "model.safetensors"
    file.write_bytes(to_safetensors(learner.ema, 4))
    shipped, lr = load_network(str(file)), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(shipped(lr), learner.ema(lr))


def test_a_flow_draws_what_it_was_taught(base: str) -> None:
    """The truth is the base's image with red brighter and blue darker, which a few steps teach."""
    settings = config(base, "train.lr=1e-2", "train.warmup=0", "model.steps=8", "train.ema_decay=0.9")
    learner = Learner(settings, 60, Ranks(CPU), "fp32")
    lr = batch(6).lr // 2 + 64
    with torch.no_grad():
        start = load_network(base)(lr.permute(0, 3, 1, 2) / 255)
    truth = (start + torch.tensor([0.1, 0.0, -0.1]).view(3, 1, 1)).clamp(0, 1)
    hr = truth.mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
    for step in range(60):
        learner.step(step, [Batch(lr, hr, torch.zeros(6, dtype=torch.int64))])
    with torch.no_grad():
        drawn = learner.ema(lr.permute(0, 3, 1, 2) / 255)
    colours = (drawn - truth).mean((0, 2, 3))
    assert colours.abs().max() < 0.05


@pytest.mark.parametrize("options", [(), SR3], ids=["flow", "sr3"])
def test_the_way_ends_at_the_true_image(base: str, options: tuple[str, ...]) -> None:
    learner = make_learner(config(base, *options))
    net = refiner(learner)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    learner.net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1:3]))
    same = batch(6)._replace(orientation=torch.zeros(6, dtype=torch.int64))
    for step in range(40):
        learner.step(step, [same])
    states, done = (torch.stack(values) for values in zip(*seen, strict=True))
    last = done.argmax(0)  # the step in which each sample was nearest to its end
    assert done.amax(0).min() > 0.9
    lr, hr = (part.permute(0, 3, 1, 2) / 255 for part in same[:2])
    _, anchor = net.condition(lr)
    for sample, step in enumerate(last.tolist()):
        nodes = net.process.nodes(done[step, sample].double())
        state = states[step, sample] / float(nodes.input_scale)
        drawn = anchor[min(sample, len(anchor) - 1)] + net.process.unit * state
        error = (drawn - torch.nn.functional.pixel_unshuffle(hr[sample], 4)).square().mean().sqrt()
        assert error < 0.15, "the truth has a deviation of 0.29, and the base is no better"


def test_one_step_of_the_recorded_flow_is_about_the_image_of_its_start() -> None:
    hr = data.chelsea()[:240, :240]
    lr = downscale(torch.from_numpy(hr).permute(2, 0, 1), 4, "matlab")
    flow = f"{ROOT}/docs/results/flow/model.safetensors"

    def psnr(model: str, steps: int | None = None) -> float:
        image = api.upscale(lr, api.load_model(model, "cpu", "fp32", steps=steps))
        return api.score(image.permute(1, 2, 0).numpy(), hr).psnr_y

    assert abs(psnr(flow, 1) - psnr("srresnet-x4")) < 0.1
    assert psnr(flow, 8) < psnr(flow, 1) - 0.2


def test_samples_of_a_step_lie_in_equal_parts_of_the_way(base: str) -> None:
    learner = make_learner(config(base))
    places: list[torch.Tensor] = []
    learner.net.register_forward_pre_hook(lambda _, arguments: places.append(arguments[2]))
    make_steps(learner, 0, 8, (2, 4))
    parts = torch.cat(places).view(8, 6).mul(6).long()
    assert torch.equal(parts.sort(dim=1).values, torch.arange(6).expand(8, 6))
    assert len({tuple(row.tolist()) for row in parts}) > 1, "a position is not always in the same part"


@pytest.mark.parametrize("options", [(), SR3], ids=["flow", "sr3"])
def test_two_and_two_steps_are_four(base: str, options: tuple[str, ...]) -> None:
    straight, first, second = (make_learner(config(base, *options)) for _ in range(3))
    make_steps(straight, 0, 4)
    make_steps(first, 0, 2)
    second.load(first.save(), first.skips)
    make_steps(second, 2, 4)
    assert second.save() == straight.save()


@pytest.mark.parametrize("options", [(), SR3], ids=["flow", "sr3"])
def test_micro_batches_have_the_noise_of_the_whole_batch(base: str, options: tuple[str, ...]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        gradients = []
        for sizes in ((6,), (2, 4), (0, 1, 5)):
            learner = make_learner(config(base, "train.clip_norm=1e9", "train.lr=1e-9", *options))
            learner.step(3, split(batch(6), list(sizes)), len(sizes))
            gradients.append([p.grad for p in learner.net.parameters() if p.grad is not None])
        for other in gradients[1:]:
            for mine, theirs in zip(gradients[0], other, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)
    finally:
        torch.set_default_dtype(torch.float32)


def test_parts_of_a_batch_on_several_ranks_add_up_to_the_whole(base: str) -> None:
    """Each rank knows the positions of its samples, so the sum of the losses does not depend on the split."""
    whole = batch(6)
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    together = make_learner(config(base)).step(2, [whole]).sums["objective"]
    parts = [
        make_learner(config(base)).step(2, [type(whole)(*(value[own] for value in whole))], 1, 12 + own)
        for own in order.split(3)
    ]
    torch.testing.assert_close(torch.stack([part.sums["objective"] for part in parts]).sum(), together)


def test_each_step_draws_other_noise(base: str) -> None:
    same = split(batch(6), [6])
    learner = make_learner(config(base, "train.lr=1e-12"))
    values = [learner.step(step, same).sums["objective"].item() for step in range(3)]
    assert len(set(values)) == 3
    other = make_learner(config(base, "train.lr=1e-12", "train.seed=1"))
    assert other.step(0, same).sums["objective"].item() != values[0]


@pytest.mark.long
def test_ranks_without_find_unused_parameters_learn_as_one(base: str, tmp_path: Path) -> None:
    learner = make_learner(config(base, "train.lr=1e-3"))
    make_steps(learner, 0, 3)
    run_ranks(_train_on_a_rank, (base, str(tmp_path)), 2)
    whole = learner.net.state_dict()
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)


def _train_on_a_rank(rank: int, base: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    learner = Learner(config(base, "train.lr=1e-3"), 8, Ranks(CPU, rank, 2), "fp32")
    own = torch.arange(rank, 6, 2)
    for step in range(3):
        whole = batch(6, seed=step)
        learner.step(step, [type(whole)(*(value[own] for value in whole))], 1, 6 * step + own)
    torch.save(learner.net.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
