"""Directions that the other side predicts: the strongest singular vectors, however they are found."""

import pytest
import torch
from counting import count_all
from torch import Tensor

from hyperalign.align import directions as directions_module
from hyperalign.align.directions import Directions, directions_flops, find_directions
from hyperalign.ledger import eigh_flops, gram_flops

NARROW, WIDE = 40, 200  # found by an eigendecomposition and by iteration, at rank 8


def orthonormal(n: int, k: int, seed: int) -> Tensor:
    """(n, k) columns."""
    drawn = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis


def cross_of(width: int, strengths: Tensor, *, n_columns: int = 220) -> tuple[Tensor, Tensor]:
    """A cross-product with these singular values, and its left singular vectors."""
    left, right = orthonormal(width, len(strengths), 0), orthonormal(n_columns, len(strengths), 1)
    return (left * strengths @ right.mT).float(), left.float()


def decaying(n: int = 40) -> Tensor:
    """0.8 of the one before, as spectra of real encoders fall or faster."""
    return 5 * 0.8 ** torch.arange(n, dtype=torch.float64)


def assert_same_space(found: Directions, basis: Tensor, atol: float) -> None:
    torch.testing.assert_close(found.basis @ found.basis.mT, basis @ basis.mT, atol=atol, rtol=0)


@pytest.mark.parametrize(("width", "n_columns"), [(NARROW, 220), (WIDE, 220), (WIDE, 60), (WIDE, 190)])
def test_the_strongest_left_singular_vectors_are_found(width: int, n_columns: int) -> None:
    """From rows and from columns, where they are fewer; decomposed and iterated."""
    cross, left = cross_of(width, decaying(), n_columns=n_columns)

    found = find_directions(cross, 8)

    torch.testing.assert_close(found.strength, decaying()[:8].float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((found.basis * left[:, :8]).sum(0).abs(), torch.ones(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.basis.mT @ found.basis, torch.eye(8), atol=1e-5, rtol=0)


def test_iteration_finds_the_space_of_an_eigendecomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    cross, _ = cross_of(WIDE, decaying())
    iterated = find_directions(cross, 8)
    monkeypatch.setattr(directions_module, "_is_iterated", lambda width, rank: False)

    decomposed = find_directions(cross, 8)

    assert not torch.equal(iterated.basis, decomposed.basis)
    assert_same_space(iterated, decomposed.basis, atol=1e-4)
    torch.testing.assert_close(iterated.strength, decomposed.strength, atol=1e-4, rtol=1e-4)


def test_iteration_keeps_nearly_all_of_a_signal_in_noise() -> None:
    """Eight planted directions over a floor of noise, as finite items make it."""
    cross, left = cross_of(WIDE, torch.full((8,), 3.0, dtype=torch.float64))
    noisy = cross + 0.02 * torch.randn(cross.shape, generator=torch.Generator().manual_seed(2))

    found = find_directions(noisy, 8)

    assert_same_space(found, torch.linalg.svd(noisy, full_matrices=False).U[:, :8], atol=1e-4)
    assert (found.basis.mT @ left).square().sum() > 0.98 * 8  # 8 of 200 random directions would keep 0.04 of it


@pytest.mark.parametrize(("width", "n_columns"), [(NARROW, 220), (WIDE, 220), (WIDE, 60)])
def test_directions_that_nothing_predicts_are_zero(width: int, n_columns: int) -> None:
    cross, left = cross_of(width, torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64), n_columns=n_columns)

    found = find_directions(cross, 8)

    assert found.basis.isfinite().all()
    assert found.basis[:, 3:].abs().max() == 0
    assert_same_space(found, left, atol=1e-5)
    torch.testing.assert_close(found.strength[:3], torch.tensor([2.0, 1.0, 0.5]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [1, NARROW, WIDE])
def test_where_nothing_is_predicted_there_is_no_direction(width: int) -> None:
    found = find_directions(torch.zeros(width, 60), 1)

    assert found.basis.abs().max() == 0
    assert found.strength.tolist() == [0]


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_how_the_other_side_lies_in_its_space_does_not_matter(width: int) -> None:
    cross, _ = cross_of(width, decaying())

    first, second = find_directions(cross, 8), find_directions(cross @ orthonormal(220, 220, 3).float(), 8)

    assert_same_space(first, second.basis, atol=1e-4)
    torch.testing.assert_close(first.strength, second.strength, atol=1e-4, rtol=1e-4)


def test_directions_are_the_same_bits_again_and_leave_the_global_generator_alone() -> None:
    cross, _ = cross_of(WIDE, decaying())
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), find_directions(cross, 8)

    untouched = torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)

    assert untouched
    assert torch.equal(find_directions(cross, 8).basis, first.basis)


@pytest.mark.parametrize(
    ("width", "n_columns", "rank"),
    [(40, 60, 8), (200, 220, 8), (200, 60, 8), (300, 200, 8), (200, 5, 8), (80, 300, 8), (81, 300, 8), (3, 7, 3)],
)
def test_directions_cost_what_runs(width: int, n_columns: int, rank: int) -> None:
    """From rows and columns, on both sides of where iteration begins, width 80, and past a strip of the product."""
    cross = torch.randn(width, n_columns, generator=torch.Generator().manual_seed(0))

    assert count_all(lambda: find_directions(cross, rank)) == directions_flops(width, n_columns, rank)


def test_iteration_is_the_cheaper_way() -> None:
    """At the default rank, on both sides of where it begins."""
    product = gram_flops(1536, 321)

    assert directions_flops(320, 1536, 128) - gram_flops(1536, 320) == eigh_flops(320)
    assert directions_flops(321, 1536, 128) - product < eigh_flops(321)
