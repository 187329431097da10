"""Networks that emit connectors: where they start, what they keep zero, and what they cost."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align.hypernetwork import (
    ResidualConfig,
    ResidualNetwork,
    SlicedNetwork,
    fold_into,
    transform,
    transform_step_flops,
)

CONFIG = ResidualConfig(code_dim=4, hidden=(6, 5))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def residual(bases: Tensor | None = None, *, seed: int = 0) -> ResidualNetwork:
    """Two image and one text encoder of rank 7, their bases turned, unless told others."""
    turned = torch.linalg.qr(torch.randn(3, 7, 7, generator=generator(5)))[0]
    return ResidualNetwork(turned if bases is None else bases, 2, CONFIG, generator(seed))


def shaken(network: ResidualNetwork) -> ResidualNetwork:
    """The network with every parameter random, as after a training."""
    draw = generator(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=draw)
    return network


def test_a_transform_is_known_by_hand() -> None:
    """X + T x for x = (1, 2) and T = ((0, 3), (0, 1))."""
    assert transform(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 3.0], [0.0, 1.0]]])).tolist() == [[[7.0, 4.0]]]


def test_at_the_start_nothing_is_transformed() -> None:
    rows = torch.randn(3, 5, 7, generator=generator())

    assert torch.equal(transform(rows, residual()(torch.arange(3))), rows)


def test_a_step_from_the_start_has_somewhere_to_go() -> None:
    network = residual()

    transform(torch.randn(3, 5, 7, generator=generator()), network(torch.arange(3))).square().sum().backward()

    assert network.last.grad is not None
    assert network.last.grad.abs().max() > 0


def test_encoders_of_both_sides_have_transforms_of_their_own() -> None:
    every = shaken(residual())(torch.arange(3))

    for one, other in ((0, 1), (0, 2)):
        assert not torch.allclose(every[one], every[other])
    torch.testing.assert_close(shaken(residual())(torch.tensor([2, 0])), every[[2, 0]])


def test_the_side_is_told_to_the_network() -> None:
    network = shaken(residual(torch.eye(7).repeat(3, 1, 1)))
    with torch.no_grad():
        network.codes[2] = network.codes[0]

    image, text = network(torch.tensor([0, 2]))

    assert not torch.allclose(image, text)


def test_coordinates_that_are_always_zero_stay_zero() -> None:
    bases = torch.eye(7).repeat(3, 1, 1)
    bases[1, 4:] = 0
    rows = torch.randn(3, 5, 7, generator=generator()) @ bases

    found = transform(rows, shaken(residual(bases))(torch.arange(3)))

    assert found[1, :, 4:].abs().max() == 0
    assert found[0, :, 4:].abs().min() > 0


def test_folding_a_transform_into_a_projection_is_applying_it() -> None:
    every = shaken(residual())(torch.arange(3))
    projection, rows = torch.randn(10, 7, generator=generator()), torch.randn(4, 10, generator=generator(1))

    folded = rows @ fold_into(projection, every[1])

    torch.testing.assert_close(folded, transform((rows @ projection)[None], every[1:2])[0], atol=1e-5, rtol=1e-5)


def test_a_network_is_its_seeds_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()

    first, again, other = residual(), residual(), residual(seed=1)
    sliced = [SlicedNetwork(5, 3, generator(seed)) for seed in (0, 0, 1)]

    for one, same, different in ((first, again, other), tuple(sliced)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), different.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_encoders_that_are_turned_against_each_other_learn_the_same_thing_from_one_code() -> None:
    """What one code says is said in the coordinates that all share."""
    network = shaken(residual())
    with torch.no_grad():
        network.codes[1] = network.codes[0]
    bases = network.get_buffer("bases")

    first, second = network(torch.tensor([0, 1]))

    torch.testing.assert_close(bases[0].T @ first @ bases[0], bases[1].T @ second @ bases[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("hidden", [(2,), (64,), (8, 300)])
def test_a_rate_means_the_same_for_every_width(hidden: tuple[int, ...]) -> None:
    """What goes into the last layer has length 1: a step of it moves a transform by its own gradient."""
    network = ResidualNetwork(torch.eye(3).repeat(2, 1, 1), 1, ResidualConfig(code_dim=4, hidden=hidden), generator())
    upstream = torch.randn(1, 3, 3, generator=generator())

    (network(torch.tensor([0])) * upstream).sum().backward()
    with torch.no_grad():
        assert network.last.grad is not None
        network.last.sub_(network.last.grad)

    torch.testing.assert_close(network(torch.tensor([0])), -upstream, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("common", [0.0, 0.25, 0.9])
def test_what_one_encoder_learns_the_others_of_its_side_learn_in_part(common: float) -> None:
    """With unit codes on two axes the two image encoders have the side alone in common, the text encoder nothing."""
    network = ResidualNetwork(
        torch.eye(3).repeat(3, 1, 1), 2, ResidualConfig(code_dim=4, hidden=(), common=common), generator()
    )
    upstream = torch.randn(1, 3, 3, generator=generator())
    with torch.no_grad():
        network.codes.copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1], [1, 1, -1, -1]]))
        network.get_buffer("side").zero_()

    (network(torch.tensor([0])) * upstream).sum().backward()
    with torch.no_grad():
        assert network.last.grad is not None
        network.last.sub_(network.last.grad)

    own, peer, other = network(torch.arange(3))
    torch.testing.assert_close(own, -upstream[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(peer, -common * upstream[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other, torch.zeros(3, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"code_dim": 0}, "must be at least 1"),
        ({"hidden": (8, 0)}, "must be at least 1"),
        ({"hidden": (8, 1)}, "at least 2 wide, got 1"),
        ({"common": 1.0}, r"common must be in \[0, 1\), got 1.0"),
        ({"common": -0.1}, "got -0.1"),
    ],
)
def test_a_width_that_says_nothing_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ResidualConfig(**wrong)


def test_no_hidden_layer_is_a_linear_network() -> None:
    network = ResidualNetwork(torch.eye(3).repeat(2, 1, 1), 1, ResidualConfig(hidden=()), generator())

    assert network(torch.arange(2)).shape == (2, 3, 3)


def test_an_emission_and_its_gradient_cost_what_the_counter_sees() -> None:
    network = residual()

    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(torch.tensor([0, 2]))
    with FlopCounterMode(display=False) as step:
        network(torch.tensor([0, 2])).sum().backward()

    assert network.emit_flops(2) == forward.get_total_flops()
    assert network.step_flops(2) == step.get_total_flops()


def test_a_transform_and_its_gradient_cost_what_the_counter_sees() -> None:
    by = torch.randn(1, 7, 7, requires_grad=True)

    with FlopCounterMode(display=False) as counter:
        transform(torch.randn(1, 5, 7), by).sum().backward()

    assert counter.get_total_flops() == transform_step_flops(5, 7)


def test_a_slice_is_the_front_of_the_output_scaled_by_its_size() -> None:
    """D_max = 3 and D_txt = 2: six numbers of weight, then three of bias."""
    network, out = SlicedNetwork(3, 2, generator()), torch.arange(1.0, 10.0)

    weight, bias = network.slice_connector(out, 2)

    torch.testing.assert_close(weight, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]) / 2)  # 1/√4
    torch.testing.assert_close(bias, torch.tensor([[7.0, 8.0]]) / 2**0.5)


def test_the_widest_encoder_gets_the_whole_output() -> None:
    network, out = SlicedNetwork(3, 2, generator()), torch.arange(1.0, 10.0)

    weight, bias = network.slice_connector(out, 3)

    assert weight.numel() + bias.numel() == out.numel()


def test_a_sliced_emission_and_its_gradient_cost_what_the_counter_sees() -> None:
    network, means = SlicedNetwork(5, 3, generator()), torch.randn(4, 5)

    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(means)
    with FlopCounterMode(display=False) as step:
        network(means).sum().backward()

    assert network.emit_flops(4) == forward.get_total_flops()
    assert network.step_flops(4) == step.get_total_flops()
