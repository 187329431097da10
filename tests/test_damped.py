"""Steps along the mean gradient: as long as it is no noise, and not at all where it is."""

import math

import pytest
import torch
from torch import Tensor

from hyperalign.align.damped import DampedMean


def run(gradients: Tensor, *, memory: float = 8.0, rate: float = 1.0) -> tuple[Tensor, list[float]]:
    """Where a parameter ends that starts at zero, and how much of each step was taken."""
    parameter = torch.zeros(gradients.shape[1], requires_grad=True)
    optimiser, taken = DampedMean([parameter], memory), list[float]()
    for gradient in gradients:
        parameter.grad = gradient.clone()
        taken.append(optimiser.step(rate))
    return parameter.detach(), taken


def test_equal_gradients_are_taken_whole_but_for_the_first() -> None:
    gradients = torch.tensor([3.0, -4.0]).repeat(5, 1)

    end, taken = run(gradients, rate=0.1)

    assert taken[0] == 0
    assert taken == sorted(taken)
    torch.testing.assert_close(end, -0.1 * sum(taken) * gradients[0])


def test_the_second_of_two_equal_gradients_is_known_by_hand() -> None:
    """With β = ½ the weights are 1/3 and 2/3: pure noise would leave 5/9 of its power."""
    _, taken = run(torch.ones(2, 3), memory=2.0)

    assert taken[1] == pytest.approx(1 - 5 / 9)


@pytest.mark.parametrize("seed", range(3))
def test_noise_moves_next_to_nothing(seed: int) -> None:
    """400 steps of length √1000 each; taken whole, means of 16 would walk some 400."""
    noise = torch.randn(400, 1000, generator=torch.Generator().manual_seed(seed))

    end, taken = run(noise, memory=16.0)

    assert float(end.norm()) < 30
    assert sum(taken) / len(taken) < 0.05


def test_a_gradient_that_stands_out_of_the_noise_is_followed() -> None:
    noise = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))

    end, taken = run(noise + 2, memory=16.0)

    assert sum(taken[20:]) / 180 > 0.95
    assert float(end.mean()) == pytest.approx(-2 * sum(taken), rel=0.05)


def test_noise_is_told_with_its_bias_from_the_second_step_on() -> None:
    """The share of noise in an exponential mean of t gradients, against its weights summed up."""
    optimiser = DampedMean([torch.zeros(1)], 5.0)
    for t in (1, 2, 7, 60):
        optimiser.n_steps = t
        weights = torch.tensor([0.2 * 0.8**k for k in range(t)])
        weights /= weights.sum()
        assert optimiser._noise_share() == pytest.approx(float(weights.square().sum()), rel=1e-5)


def test_no_gradient_at_all_moves_nothing() -> None:
    parameter = torch.ones(3, requires_grad=True)

    assert DampedMean([parameter], 4.0).step(1.0) == 0.0
    assert parameter.tolist() == [1, 1, 1]
    assert not math.isnan(run(torch.zeros(4, 2))[1][-1])
