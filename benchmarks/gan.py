"""Compare a step of adversarial training with the sum of the costs of its parts, each measured alone.

The parts are a supervised step of the network, the features of the perceptual term (forward pass of both images,
backward pass of one), a step of the discriminator, and its judgement of the network's output (forward pass of both
images, backward pass of one). The network is the full-size SRResNet x4 without BatchNorm, the discriminator has 32
channels, and a step has 8 patches of 96x96. All measurements take turns, because a busy machine then disturbs them
alike, and medians are compared. The VGG-19 has random weights, which take as long as trained ones.

    python -m benchmarks.gan [--rounds N] [--discriminator patch|paper]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.measuring import (
    CROP,
    Result,
    medians,
    parser_of,
    print_results,
    print_times,
    random_batch,
    time_in_turns,
)
from pipeline.networks import features
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.methods.gan_checks import gan_settings
from pipeline.training.precision import Precision, autocast, choose_precision
from pipeline.training.ranks import Ranks
from sr_model.adversarial import compare, generator_loss
from sr_model.discriminators import DISCRIMINATORS
from sr_model.pixels import to_unit
from sr_model.terms.perceptual import PerceptualLoss

BATCH = 8
LAYERS = {"relu2_2": 0.5, "conv3_1": 0.5}
CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="timed steps (%(default)s)")
    parser.add_argument("--discriminator", choices=list(DISCRIMINATORS), default="patch", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vgg = f"{folder}/vgg19.safetensors"
        safetensors.torch.save_file(random_vgg(), vgg)
        shared = ["model.batch_norm=false", f"train.global_batch={BATCH}", f"train.perceptual.weights={vgg}"]
        shared += [f"train.perceptual.layers={','.join(f'{name}={weight}' for name, weight in LAYERS.items())}"]
        alone = parse([*shared, "train.loss=l1=1"], "train", "")
        gan = parse(
            [
                *(*shared, "train.loss=l1=1,perceptual=0.05", "train.method=gan", "train.gan.from_scratch=true"),
                *("train.gan.warmup_steps=0", f"train.gan.discriminator={arguments.discriminator}"),
                f"train.gan.{arguments.discriminator}.channels=32",
            ],
            "train",
            "",
        )
        precision = choose_precision(gan.train.precision, CPU)
        batch = random_batch(BATCH)
        generator, whole = (Learner(config, 10**6, Ranks(CPU), precision) for config in (alone, gan))
        hr = to_unit(batch.hr, CPU, batch.orientation)
        sr = (hr + 0.02 * torch.randn_like(hr)).requires_grad_()
        parts: dict[str, Callable[[], object]] = {
            "network": lambda: generator.step(0, [batch]),
            "features": feature_pass(gan, sr, hr),
            **discriminator_passes(gan, precision, sr, hr),
        }
        times = time_in_turns({**parts, "step": lambda: whole.step(0, [batch])}, arguments.rounds, warm_up=2)
    print_times(times)
    median = medians(times)
    total = sum(median[name] for name in parts)
    print(f"computed in {precision}; the parts take {total:.4f} s")
    unit = "time of a step / sum of its parts measured alone"
    print_results(Result(f"gan_step_{arguments.discriminator}", round(median["step"] / total, 3), unit, 1.15, "lower"))


def feature_pass(config: Config, sr: Tensor, hr: Tensor) -> Callable[[], None]:
    """Return a function that computes the perceptual term and its gradient."""
    (term,) = (term for term in features.load_terms(config.train, CPU) if isinstance(term.distance, PerceptualLoss))

    def compute() -> None:
        torch.autograd.grad(term.distance(sr, hr).sum(), sr)

    return compute


def discriminator_passes(config: Config, precision: Precision, sr: Tensor, hr: Tensor) -> dict[str, Callable[[], None]]:
    """Return functions for the discriminator's own step, and for its judgement of the network's output."""
    settings = gan_settings(config)
    net = DISCRIMINATORS[settings.discriminator].build(settings.discriminator_settings(), CROP)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def step() -> None:
        net.requires_grad_(True)
        optimizer.zero_grad()
        with autocast(precision, CPU):
            true, enlarged = net(torch.cat([hr, sr.detach()])).chunk(2)
        compare(settings.adversarial, true, enlarged).discriminator_loss().mean().backward()
        optimizer.step()

    def judge() -> None:
        net.requires_grad_(False)
        with autocast(precision, CPU):
            with torch.no_grad():
                true = net(hr)
            enlarged = net(sr)
        torch.autograd.grad(generator_loss(settings.adversarial, true, enlarged).sum(), sr)

    return {"discriminator": step, "judgement": judge}


def random_vgg() -> dict[str, Tensor]:
    """Make random weights of VGG-19's first convolutions, with torchvision's names."""
    torch.manual_seed(0)
    shapes = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
    layers = {number: nn.Conv2d(before, width, 3) for number, (before, width) in shapes.items()}
    return {
        f"features.{number}.{name}": value.detach()
        for number, layer in layers.items()
        for name, value in layer.named_parameters()
    }


if __name__ == "__main__":
    main()
