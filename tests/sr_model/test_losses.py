import pytest
import torch

from sr_model.losses import TERMS, objective


def test_terms_are_means_over_each_picture() -> None:
    sr = torch.zeros(2, 3, 2, 2)
    hr = torch.stack([torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), 0.1)])
    total, terms = objective(sr, hr, {"mse": 2.0, "l1": 1.0})
    torch.testing.assert_close(terms["mse"], torch.tensor([0.25, 0.01]))
    torch.testing.assert_close(terms["l1"], torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(total, torch.tensor([1.0, 0.12]))


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_has_a_gradient(name: str) -> None:
    sr = torch.rand(1, 3, 4, 4, requires_grad=True)
    total, _ = objective(sr, torch.rand(1, 3, 4, 4), {name: 1.0})
    total.sum().backward()
    assert sr.grad is not None
    assert sr.grad.abs().min() > 0
