import pytest
import torch

from sr_model.terms import TERMS, Term, objective
from sr_model.terms.pixel import charbonnier, l1, mse, total_variation


def test_terms_are_means_over_each_image() -> None:
    sr = torch.zeros(2, 3, 2, 2)
    hr = torch.stack([torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), 0.1)])
    total, terms = objective([Term("mse", 2.0, 0.0, mse), Term("l1", 1.0, 0.0, l1)], sr, hr, torch.arange(2))
    torch.testing.assert_close(terms["mse"], torch.tensor([0.25, 0.01]))
    torch.testing.assert_close(terms["l1"], torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(total, torch.tensor([1.0, 0.12]))


@pytest.mark.parametrize("name", ["charbonnier", "l1", "mse", "tv"])
def test_every_term_has_a_gradient(name: str) -> None:
    sr = torch.rand(1, 3, 4, 4, requires_grad=True)
    kind = TERMS[name]
    term = Term(name, 1.0, 0.0, kind.create(kind.settings(), {}))
    total, _ = objective([term], sr, torch.rand(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64))
    total.sum().backward()
    assert sr.grad is not None
    assert (sr.grad != 0).float().mean() > 0.5  # slopes of tv may cancel


def test_total_variation_is_the_sum_of_steps_by_the_number_of_values() -> None:
    sr = torch.zeros(2, 3, 4, 5)
    sr[0, 1, 2, 2] = 0.5  # four neighbours
    assert total_variation(sr, sr).tolist() == pytest.approx([4 * 0.5 / 60, 0])


def test_charbonnier_is_the_absolute_error_but_smooth_at_zero() -> None:
    sr = torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1).requires_grad_()
    value = charbonnier(sr, torch.zeros(2, 1, 1, 1))
    assert value.tolist() == pytest.approx([1e-3, 0.5], abs=1e-5)
    value.sum().backward()
    assert sr.grad is not None
    assert sr.grad.flatten().tolist() == pytest.approx([0, 1], abs=1e-5)
