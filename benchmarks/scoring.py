"""Compare the time of SSIM on one 2K image with that of scikit-image, whose function always uses one thread.

A whole score (PSNR on Y, SSIM on Y, PSNR in RGB) is timed beside it.

    python -m benchmarks.scoring [--rounds N]
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity

from benchmarks.measuring import Result, medians, parser_of, print_results, print_times, time_in_turns
from sr_model.metrics import luma, score, ssim

HEIGHT, WIDTH = 1356, 2040
"""Size of most images of DIV2K."""


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
    )


if __name__ == "__main__":
    main()
