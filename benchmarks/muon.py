"""Compare the time of an optimizer step on SRResNet's hidden convolutions: this project's Muon, torch's, and Adam.

`torch.optim.Muon` accepts only matrices, so it gets the same weights in the shape (out, in*9). The optimizers take
turns, and medians are compared.

    python -m benchmarks.muon [--rounds N]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.measuring import SCALE, Result, medians, parser_of, print_results, print_times, time_in_turns
from sr_model.muon import Muon
from sr_model.networks.srresnet import SRResNet


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each optimizer (%(default)s)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    hidden = [weight.detach() for weight in SRResNet(SCALE, batch_norm=False).muon_weights()]
    times = time_in_turns(
        {
            "this project's Muon": Muon(with_gradients(hidden)).step,
            "torch.optim.Muon": torch.optim.Muon(with_gradients([weight.flatten(1) for weight in hidden])).step,
            "torch.optim.Adam, fused": torch.optim.Adam(with_gradients(hidden), fused=True).step,
        },
        arguments.rounds,
    )
    print_times(times)
    own, torchs, _ = medians(times).values()
    print_results(Result("muon", round(torchs / own, 1), "time of torch.optim.Muon / of this Muon", None, "higher"))


def with_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copy weights, and give the copies random gradients."""
    generator = torch.Generator().manual_seed(0)
    copies = [weight.clone().requires_grad_() for weight in weights]
    for copy in copies:
        copy.grad = torch.randn(copy.shape, generator=generator)
    return copies


if __name__ == "__main__":
    main()
