import math

import pytest
import torch
from torch import Tensor

from sr_model.adversarial import Form, compare, generator_loss, gradient_penalty
from sr_model.artefacts import artefact_loss

FORMS: tuple[Form, ...] = ("relativistic", "pairing", "vanilla")


def logits(seed: int, parts: int = 9) -> Tensor:
    return torch.randn(4, parts, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
def test_a_discriminator_that_cannot_tell_has_the_loss_ln_2(form: Form) -> None:
    same = torch.zeros(4, 9)
    assert compare(form, same, same).discriminator_loss().tolist() == pytest.approx([math.log(2)] * 4)
    assert generator_loss(form, same, same).tolist() == pytest.approx([math.log(2)] * 4)


@pytest.mark.parametrize("form", FORMS)
def test_one_that_is_right_is_accurate_and_has_little_loss_and_the_network_has_much(form: Form) -> None:
    true, enlarged = logits(0) + 20, logits(1) - 20
    found = compare(form, true, enlarged)
    assert found.accuracy().tolist() == [1.0] * 4
    assert found.discriminator_loss().max() < 1e-6
    assert generator_loss(form, true, enlarged).min() > 15
    assert compare(form, enlarged, true).accuracy().tolist() == [0.0] * 4


def test_the_losses_are_those_of_the_papers() -> None:
    true, enlarged = logits(0), logits(1)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(9), torch.zeros(9)
    for i in range(4):
        x, y = true[i], enlarged[i]
        vanilla = compare("vanilla", true, enlarged).discriminator_loss()[i]
        assert vanilla == pytest.approx(float(entropy(x, ones) + entropy(y, zeros)) / 2, rel=1e-5)
        assert generator_loss("vanilla", true, enlarged)[i] == pytest.approx(float(entropy(y, ones)), rel=1e-5)
        relative = compare("relativistic", true, enlarged).discriminator_loss()[i]
        expected = entropy(x - y.mean(), ones) + entropy(y - x.mean(), zeros)
        assert relative == pytest.approx(float(expected) / 2, rel=1e-5)
        paired = compare("pairing", true, enlarged).discriminator_loss()[i]
        assert paired == pytest.approx(float(torch.nn.functional.softplus(y - x).mean()), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_an_image_depends_on_its_own_counterpart_alone(form: Form) -> None:
    true, enlarged = logits(0), logits(1)
    whole = compare(form, true, enlarged).discriminator_loss()
    parts = [compare(form, true[i : i + 1], enlarged[i : i + 1]).discriminator_loss() for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_the_penalty_is_that_of_a_linear_discriminator() -> None:
    weight = torch.randn(2 * 3 * 8 * 8, generator=torch.Generator().manual_seed(0)).view(2, -1)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    penalty = gradient_penalty(images.flatten(1) @ weight.T, images)
    assert penalty.tolist() == pytest.approx([float(weight.sum(0).square().sum()) / 4] * 3, rel=1e-5)


def test_the_artefact_loss_is_zero_where_the_average_errs_more_and_falls_on_uneven_errors() -> None:
    hr = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(1)) / 10
    sr = (hr + noise).requires_grad_()
    assert artefact_loss(sr, hr + 2 * noise, hr).abs().max() == 0
    assert artefact_loss(hr + 0.1, hr, hr).abs().max() < 1e-6  # the same error everywhere is no artefact
    loss = artefact_loss(sr, hr, hr)
    assert loss.shape == (2,)
    assert loss.min() > 0
    (gradient,) = torch.autograd.grad(loss.sum(), sr)
    assert torch.equal(gradient.sign(), noise.sign() * (gradient != 0))  # no gradient flows through the weights
    error = (hr - sr).detach().abs().sum(1, keepdim=True)
    window = error[0, 0, 5:12, 8:15]  # the pixel (8, 11) is in its middle
    weight = window.var() * error[0].var() ** 0.2
    assert gradient[0, 0, 8, 11].abs() == pytest.approx(float(weight) / hr[0].numel(), rel=1e-3)
