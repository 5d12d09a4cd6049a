"""Compare the time of SSIM on one 2K image with that of scikit-image, whose function always uses one thread.

A whole score (PSNR on Y, SSIM on Y, PSNR in RGB) is timed beside it. On a smaller image, the time of ST-LPIPS for
one more version of an image is compared with that of enlarging it with the bundled network in fp32, on one thread.

    python -m benchmarks.scoring [--rounds N]
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity

from benchmarks.measuring import Result, medians, parser_of, print_results, print_times, time_in_turns
from pipeline.networks import bundled, features
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from sr_model.metrics import luma, score, ssim
from sr_model.pixels import to_input

HEIGHT, WIDTH = 1356, 2040
"""Size of most images of DIV2K."""
SIDE = 512
"""Side of the image for ST-LPIPS."""


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each (%(default)s)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    hr = rng.integers(0, 256, (HEIGHT, WIDTH, 3))
    sr = (hr + rng.integers(-20, 21, hr.shape)).clip(0, 255)
    images = [torch.from_numpy(image.astype(np.uint8)).permute(2, 0, 1) for image in (sr, hr)]
    a, b = map(luma, images)

    def reference() -> float:
        return float(
            structural_similarity(
                a.numpy(), b.numpy(), data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )

    def ours(threads: int) -> float:
        torch.set_num_threads(threads)
        return ssim(a, b)

    def whole(threads: int) -> float:
        torch.set_num_threads(threads)
        return score(images[0], images[1], 4).ssim_y

    print(f"SSIM: {ours(1):.12f}, scikit-image {reference():.12f}")
    actions = {
        "scikit-image's SSIM": reference,
        "SSIM, 1 thread": lambda: ours(1),
        "SSIM, 2 threads": lambda: ours(2),
        "a whole score, 1 thread": lambda: whole(1),
        "a whole score, 2 threads": lambda: whole(2),
    }
    times = time_in_turns(actions, arguments.rounds)
    print_times(times, each="image")
    seconds = medians(times)
    perceptual = _time_st_lpips(images[0][:, :SIDE, :SIDE], images[1][:, :SIDE, :SIDE], arguments.rounds)
    ratios = {n: seconds["scikit-image's SSIM"] / seconds[f"SSIM, {n} thread{'s' if n > 1 else ''}"] for n in (1, 2)}
    print_results(
        [
            Result(
                f"scoring_{n}_threads",
                round(ratio, 2),
                f"time of scikit-image's SSIM / of ours, threads: {n}, one image of {WIDTH}x{HEIGHT}",
                1.0,
                "higher",
            )
            for n, ratio in ratios.items()
        ]
        + [
            Result(
                "st_lpips",
                round(perceptual, 2),
                f"time of ST-LPIPS for a version of a {SIDE}x{SIDE} image / of enlarging it with the full-size network",
                1.2,
                "lower",
            )
        ]
    )


def _time_st_lpips(sr: torch.Tensor, hr: torch.Tensor, rounds: int) -> float:
    """Return the time of ST-LPIPS for one more version of an image, in units of that of enlarging the image."""
    torch.set_num_threads(1)
    metric = features.load_st_lpips(torch.device("cpu"))
    network = load_upscaler(find_model(bundled.DEFAULT), device="cpu", precision="fp32")
    lr = hr[:, ::4, ::4].contiguous()
    one, two, truth = to_input(sr), torch.cat([to_input(sr)] * 2), to_input(hr)
    actions = {
        "ST-LPIPS, 1 version": lambda: metric(one, truth),
        "ST-LPIPS, 2 versions": lambda: metric(two, truth),
        "the network": lambda: network.enlarge(lr),
    }
    times = time_in_turns(actions, rounds)
    print_times(times, each="image")
    seconds = medians(times)
    return (seconds["ST-LPIPS, 2 versions"] - seconds["ST-LPIPS, 1 version"]) / seconds["the network"]


if __name__ == "__main__":
    main()
