"""The ways from noise to an image, by their definitions."""

import pytest
import torch

from sr_model.refinement import Denoising, Flow, Process

PROCESSES: list[Process] = [Flow(0.04), Denoising()]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_network_that_knows_the_answer_reaches_the_truth(process: Process) -> None:
    """The way is straight in its variable, so Euler's steps with the true derivative end at the truth."""
    truth, noise = torch.rand(1, 3, 2, 2, dtype=torch.float64), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    nodes = process.steps(7)
    state = noise * process.start if isinstance(process, Flow) else truth + noise * process.start
    for i in range(7):
        done = torch.full((1,), i / 7, dtype=torch.float64)
        example = process.example(done, truth, noise)
        assert torch.allclose(example.state, state * nodes.input_scale[i])
        derivative = nodes.slope[i] * state + example.target
        state = state + (nodes.tau[i + 1] - nodes.tau[i]) * derivative
    assert torch.allclose(state, truth)


def test_states_of_the_flow_have_unit_variance_where_residuals_have() -> None:
    torch.manual_seed(0)
    truth, noise = torch.randn(2, 100_000, 1, 1), torch.randn(2, 100_000, 1, 1)
    example = Flow(0.04).example(torch.tensor([0.2, 0.8]), truth, noise)
    torch.testing.assert_close(example.state.var((1, 2, 3)), torch.ones(2), rtol=0, atol=0.02)
    correlation = (example.state * example.target).mean((1, 2, 3))
    torch.testing.assert_close(correlation, torch.zeros(2), rtol=0, atol=0.02, msg="the slope is the best linear guess")


def test_one_step_of_the_flow_forgets_its_noise() -> None:
    nodes = Flow(0.04).steps(1)
    assert 1 + float(nodes.slope[0]) == pytest.approx(0)


def test_denoising_begins_with_noise_alone_and_ends_without() -> None:
    nodes = Denoising().steps(10)
    assert float(nodes.input_scale[0]) < 0.01
    assert float(nodes.tau[-1]) == 0
    assert (nodes.tau.diff() < 0).all()


def test_denoising_has_the_schedule_of_sr3() -> None:
    """The product over SR3's 2000 steps is near the closed form."""
    kept = (1 - torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)).cumprod(0)
    nodes = Denoising().nodes(1 - torch.arange(1, 2001, dtype=torch.float64) / 2000)
    torch.testing.assert_close(nodes.input_scale, kept.sqrt(), rtol=0.03, atol=1e-4)
