"""A step of the residual hypernetwork: the same cosines in the cheaper order, and what they cost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from counting import count_all
from planted import plant, spoil
from torch import Tensor

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.hypernetwork import ResidualConfig, ResidualNetwork
from hyperalign.align.residual import (
    RESIDUAL,
    _ResidualLearner,
    _sides,
    residual_step_flops,
    shorten_steps,
    solve_residual,
)

RANK, WIDTHS = 8, (5, 8)  # a text encoder narrower than the rank, and one that is not
NETWORK = ResidualConfig(code_dim=4, hidden=(6,))


def drawn(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three image encoders' rows, one text encoder's, and their connectors."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 6, RANK), (1, 6, RANK), (3, RANK, RANK))
    image, text, connectors = (torch.randn(*shape, generator=generator) for shape in shapes)
    text[:, :, width:] = 0
    return image.requires_grad_(), text.requires_grad_(), connectors


def cosines(image: Tensor, text: Tensor, connectors: Tensor) -> Tensor:
    """(P, B, B), written out plainly."""
    return F.normalize(image, dim=2) @ F.normalize(text @ connectors.mT, dim=2).mT


@pytest.mark.parametrize("width", WIDTHS)
def test_products_of_the_two_sides_are_the_cosines_of_images_and_mapped_texts(width: int) -> None:
    image, text, connectors = drawn(width)

    left, right = _sides(image, text, connectors, width)

    assert left.shape == right.shape == (3, 6, width)
    torch.testing.assert_close(left @ right.mT, cosines(image, text, connectors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_cosines_have_the_same_gradient_in_either_order(width: int) -> None:
    image, text, connectors = drawn(width)
    upstream = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))

    left, right = _sides(image, text, connectors, width)
    found = torch.autograd.grad(left @ right.mT, (image, text), upstream)
    expected = torch.autograd.grad(cosines(image, text, connectors), (image, text), upstream)

    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1][:, :, :width], expected[1][:, :, :width], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_zeros_have_cosines_of_zero_and_break_no_gradient(width: int) -> None:
    image, text, connectors = drawn(width)
    with torch.no_grad():
        image[1, 2], text[0, 4] = 0, 0

    left, right = _sides(image, text, connectors, width)
    products = left @ right.mT
    gradients = torch.autograd.grad(products.sum(), (image, text))

    assert products[1, 2].abs().max() == products[:, :, 4].abs().max() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("rate", [1e38, 3e38])
def test_of_a_training_that_goes_to_pieces_the_closed_form_is_left(rate: float) -> None:
    """The step itself overflows, or what is emitted does where it is folded into the projections."""
    grid = plant(60)
    canonical = build_canonical_grid(grid, CanonicalConfig(rank=8))
    config = replace(RESIDUAL, n_steps=1, batch_size=16, optimizer="adamw", learning_rate=rate)

    found = solve_residual(grid, canonical, config)

    assert found.kept is not None
    before = [side.canonical for side in (*canonical.images, *canonical.texts)]
    for side, plain, learned in zip(
        (*found.images, *found.texts), before, (*found.kept.images, *found.kept.texts), strict=True
    ):
        assert side is not None
        assert torch.equal(side.projection, plain.projection)
        assert learned.transform.abs().max() == 0


@pytest.mark.parametrize("store_bytes", [0, 2**20])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_step_costs_what_runs_at_both_widths(store_bytes: int, tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tiled:
        monkeypatch.setattr("hyperalign.align.connectors.MAX_LOGITS", 1)
    grid = spoil(plant(60, text_dims=(5, 14)), images={1: [3]}, texts={1: [9]})
    canonical = build_canonical_grid(grid, CanonicalConfig(rank=RANK, store_bytes=store_bytes))
    network = ResidualNetwork(torch.eye(RANK).repeat(5, 1, 1), 3, NETWORK, torch.Generator().manual_seed(0))
    learner = _ResidualLearner(grid, canonical, network, replace(RESIDUAL, batch_size=16, pairs_per_step=2))
    sides, booked = [*canonical.images, *canonical.texts], list[int]()

    def step() -> None:
        batch = learner.draw()
        batch.objective.backward()
        booked.append(batch.flops)

    for _ in range(4):
        before = sum(side.flops for side in sides)
        found = count_all(step)
        assert found == booked[-1] + sum(side.flops for side in sides) - before

    assert canonical.widths[3:] == [5, 8]
    assert set(booked) == {residual_step_flops(network, 16, 2, width) for width in WIDTHS}  # text encoders take turns


def test_a_narrower_text_encoder_makes_a_cheaper_step() -> None:
    """At the default sizes, 64 of 128 coordinates; each product of the logits costs half."""
    network = ResidualNetwork(torch.eye(128).repeat(4, 1, 1), 2, ResidualConfig(), torch.Generator().manual_seed(0))

    assert residual_step_flops(network, 256, 2, 64) < residual_step_flops(network, 256, 2, 128)


@pytest.mark.parametrize(
    ("optimizer", "batch", "rate"), [("damped", 64, 0.25), ("sgd", 256, 1.0), ("damped", 2048, 2.0), ("adamw", 64, 2.0)]
)
def test_small_batches_take_shorter_steps_but_by_adamw(optimizer: Any, batch: int, rate: float) -> None:
    config = replace(RESIDUAL, optimizer=optimizer, learning_rate=2.0)

    assert shorten_steps(config, batch) == replace(config, learning_rate=rate)


def test_the_rate_of_a_batch_is_that_of_the_items_there_are() -> None:
    """A batch of 512 of 64 pictures is one of 64, and takes steps as long."""
    grid = plant(64)
    canonical = build_canonical_grid(grid, CanonicalConfig(rank=8))

    cut, asked = (solve_residual(grid, canonical, replace(RESIDUAL, batch_size=size, n_steps=9)) for size in (512, 64))

    for one, other in zip(cut.images, asked.images, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.projection, other.projection)
