"""Measure patterns that networks leave, such as a checkerboard: the phase energy of their images over the truth's.

    python -m benchmarks.phase MODEL ... [--images SET=FOLDER ...] [--patch-set FOLDER]

A model is named as for `pipeline.upscale`. A set is a folder of images or a benchmark set; without files of LR images,
they are made with MATLAB's bicubic. `--patch-set` adds the held-out images of a patch set. The energies are summed over
a set before they are divided, because that of a flat image is nearly 0. `sr_model.metrics` defines the phase energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.measuring import Result, parser_of, print_results
from pipeline.data import benchmark_sets, patchset
from pipeline.evaluation import scoring
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from sr_model.metrics import phase_energy
from sr_model.pixels import Pixels, to_tensor

MAX_PIXELS = 10**8
AIM = 1.2
Pairs = Iterator[tuple[Pixels, Pixels]]
"""HR and LR images."""


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, file or URL of a model")
    parser.add_argument("--images", nargs="+", default=["builtin=builtin"], metavar="SET=FOLDER", help="(%(default)s)")
    parser.add_argument("--patch-set", metavar="FOLDER", help="patch set whose held-out images are measured, too")
    arguments = parser.parse_args()
    sets: dict[str, Callable[[int], Pairs]] = {
        name: partial(read_set, name, folder) for name, _, folder in (text.partition("=") for text in arguments.images)
    }
    if arguments.patch_set:
        sets["held-out"] = partial(read_held_out, arguments.patch_set)
    results = []
    for model in arguments.models:
        upscaler = load_upscaler(find_model(model))
        for name, pairs in sets.items():
            found = true = 0.0
            for hr, lr in pairs(upscaler.scale):
                found += phase_energy(upscaler.enlarge(to_tensor(lr)), upscaler.scale)
                true += phase_energy(to_tensor(hr), upscaler.scale)
            print(f"{model}, {name}: {found / true:.3f}", flush=True)
            results.append(Result(f"phase_{model}_{name}", round(found / true, 3), "ratio", AIM, "lower"))
    print_results(results)


def read_set(name: str, folder: str, scale: int) -> Pairs:
    """Yield the images of a set."""
    for image in benchmark_sets.list_images(name, folder, scale, ""):
        hr, lr, _ = scoring.load_pair(image.hr, image.lr, scale, MAX_PIXELS)
        yield hr, lr


def read_held_out(url: str, scale: int) -> Pairs:
    """Yield the held-out images of a patch set."""
    patch_set = patchset.load(url)
    assert patch_set.scale == scale
    for number in range(patch_set.held_out):
        image = patch_set.read_holdout(number)
        yield image.hr, image.lr


if __name__ == "__main__":
    main()
