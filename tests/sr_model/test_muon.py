import pytest
import torch

from sr_model.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 36), (1, 20, 20)])
def test_singular_values_come_close_to_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert 0.3 < values.min() <= values.max() < 1.3
    assert (values > 0.6).float().mean() > 0.9


def test_it_makes_the_steps_of_torchs_muon() -> None:
    torch.manual_seed(0)
    convolutions = [torch.nn.Parameter(torch.randn(8, 4, 3, 3)) for _ in range(2)]
    matrices = [torch.nn.Parameter(p.detach().flatten(1).clone()) for p in convolutions]
    ours = Muon(convolutions, lr=0.01)
    theirs = torch.optim.Muon(matrices, lr=0.01, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, m in zip(convolutions, matrices, strict=True):
            p.grad = torch.randn_like(p)
            m.grad = p.grad.flatten(1)
        ours.step()
        theirs.step()
    for p, m in zip(convolutions, matrices, strict=True):
        torch.testing.assert_close(p.flatten(1), m, rtol=0, atol=2e-3)  # theirs is in bf16


def test_weights_of_channels_last_and_of_no_gradient() -> None:
    torch.manual_seed(0)
    plain, last, frozen = (torch.nn.Parameter(torch.ones(4, 4, 3, 3)) for _ in range(3))
    last.data = last.data.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(4, 4, 3, 3)
    plain.grad, last.grad = gradient, gradient.contiguous(memory_format=torch.channels_last)
    Muon([plain, last, frozen], lr=0.1).step()
    torch.testing.assert_close(plain, last)
    assert (frozen == 1).all()
    assert not (plain == 1).any()
