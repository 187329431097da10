"""Canonical coordinates: white, blind to how an encoder happens to lie in its space, and unmoved by bad rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align import canonical as canonical_module
from hyperalign.align.canonical import (
    Canonical,
    CanonicalConfig,
    Coordinates,
    find_canonical,
    find_moments,
    to_coordinates,
)
from hyperalign.align.grid import to_float

OK = np.ones(200, dtype=np.bool_)


def rows_of(n: int = 200, dim: int = 6, seed: int = 0) -> NDArray[np.float32]:
    """Correlated rows, off the origin."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + 2, dtype=np.float32)


def whiten(
    rows: NDArray[Any], *, rank: int = 6, ridge: float = 1e-9, normalise: bool = False, **rest: Any
) -> Canonical:
    """Moments and whitening in one."""
    ok = rest.pop("ok", np.ones(len(rows), dtype=np.bool_))
    moments = find_moments(rows, ok, normalise=normalise, **rest)
    return find_canonical(moments, rank, ridge=ridge, normalise=normalise)


def coordinates(rows: NDArray[Any], canonical: Canonical) -> Tensor:
    return to_coordinates(to_float(rows), canonical)


def test_moments_are_those_of_numpy() -> None:
    rows = rows_of()

    moments = find_moments(rows, OK, normalise=False)

    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-5)
    assert (moments.n_rows, moments.width, moments.features.tolist()) == (200, 6, list(range(6)))


def test_moments_do_not_depend_on_blocks_nor_on_the_order_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of()
    whole = find_moments(rows, OK, normalise=True)
    monkeypatch.setattr(canonical_module, "BLOCK", 17)

    blocks = find_moments(rows, OK, normalise=True)
    shuffled = find_moments(rows[np.random.default_rng(1).permutation(200)], OK, normalise=True)

    for moments in (blocks, shuffled):
        torch.testing.assert_close(moments.mean, whole.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(moments.covariance, whole.covariance, rtol=1e-4, atol=1e-7)


def test_a_large_mean_does_not_drown_the_covariance() -> None:
    """Far from the origin E[z²] − E[z]² in float32 would have nothing left."""
    rows = rows_of() + np.float32(3000)

    moments = find_moments(rows, OK, normalise=False)

    np.testing.assert_allclose(moments.covariance, np.cov(rows.astype(float).T, bias=True), rtol=1e-3, atol=1e-3)


def test_coordinates_are_white() -> None:
    found = coordinates(rows_of(), whiten(rows_of()))

    torch.testing.assert_close(found.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.T @ found / 200, torch.eye(6), atol=2e-3, rtol=0)


def test_a_ridge_shrinks_a_coordinate_by_a_share_that_is_known() -> None:
    """Two uncorrelated features of variance 4 and 1, mean 2.5: variances become λ/(λ + 0.4·2.5) = 4/5 and 1/2."""
    corners = np.array([[2, 1], [2, -1], [-2, 1], [-2, -1]], dtype=np.float32)

    found = coordinates(corners, whiten(corners, rank=2, ridge=0.4))

    torch.testing.assert_close(found.square().mean(0), torch.tensor([0.8, 0.5]))


def test_coordinates_do_not_see_rotation_nor_shift() -> None:
    rows = rows_of()
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0].astype(np.float32)
    moved = rows @ rotation + np.float32(7)

    first, second = coordinates(rows, whiten(rows, ridge=0.1)), coordinates(moved, whiten(moved, ridge=0.1))

    torch.testing.assert_close(first @ first.T, second @ second.T, atol=1e-2, rtol=0)


def test_with_unit_rows_coordinates_do_not_see_the_length_of_a_row() -> None:
    rows = rows_of()
    longer = rows * np.random.default_rng(5).uniform(0.5, 9, size=(200, 1)).astype(np.float32)

    first, second = (coordinates(some, whiten(some, normalise=True, ridge=0.1)) for some in (rows, longer))

    torch.testing.assert_close(first @ first.T, second @ second.T, atol=1e-3, rtol=1e-3)


def test_the_strongest_directions_come_first_and_the_rest_is_cut() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * np.array([1, 10, 3], dtype=np.float32)

    canonical = whiten(rows, rank=2, ridge=0.5)

    assert canonical.projection.abs().argmax(0).tolist() == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_unusable_rows_change_nothing(value: float) -> None:
    rows, ok = rows_of(), OK.copy()
    ok[[3, 50]] = False
    rows[[3, 50]] = value

    found, expected = whiten(rows, ok=ok), whiten(np.delete(rows, [3, 50], axis=0))

    torch.testing.assert_close(found.projection, expected.projection)
    torch.testing.assert_close(found.mean, expected.mean)
    assert coordinates(rows, found).isfinite().all()


def test_an_encoder_narrower_than_the_rank_has_zeros_at_the_end() -> None:
    canonical = whiten(rows_of(dim=6), rank=9)

    found = coordinates(rows_of(dim=6), canonical)

    assert found.shape == (200, 9)
    assert found[:, 6:].abs().max() == 0
    assert canonical.own_rank == 6


def test_fewer_rows_than_features_give_one_coordinate_less_than_rows() -> None:
    rows = rows_of(n=5, dim=40)

    canonical = whiten(rows, rank=40, ridge=0.1)

    assert canonical.own_rank == 4
    assert coordinates(rows, canonical).isfinite().all()


@pytest.mark.parametrize(
    "rows",
    [
        np.full((20, 4), 3.0, np.float32),
        np.ones((20, 1), np.float32),
        rows_of(n=1),
    ],
)
@pytest.mark.parametrize("normalise", [False, True])
def test_rows_that_do_not_differ_have_coordinates_of_zero(rows: NDArray[np.float32], normalise: bool) -> None:
    canonical = whiten(rows, rank=4, ridge=0.1, normalise=normalise)

    assert canonical.projection.abs().max() == 0
    assert canonical.own_rank == 1  # a width must be something
    assert coordinates(rows, canonical).abs().max() < 1e-5


def test_unit_rows_that_differ_by_rounding_alone_have_coordinates_of_zero() -> None:
    """Whitened, the last bit of a float32 would become noise as loud as any signal."""
    rng = np.random.default_rng(0)
    rows = (rng.uniform(0.5, 9, size=(999, 1)) * rng.normal(size=37)).astype(np.float32)

    assert coordinates(rows, whiten(rows, rank=4, ridge=0.1, normalise=True)).abs().max() == 0


def test_a_width_of_one_has_one_coordinate() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)

    found = coordinates(rows, whiten(rows, rank=3))

    assert math.isclose(float(found[:, 0].square().mean()), 1, rel_tol=1e-4)
    assert found[:, 1:].abs().max() == 0


def test_of_a_wide_encoder_the_features_of_largest_variance_are_used() -> None:
    rows = rows_of(dim=5) * np.array([0.01, 5, 0.01, 3, 0.01], dtype=np.float32)

    canonical = whiten(rows, rank=5, max_features=2, ridge=0.1)
    rows[:, [0, 2, 4]] = 9

    assert canonical.features.tolist() == [1, 3]
    assert canonical.width == 5
    torch.testing.assert_close(coordinates(rows, canonical)[:, :2].mean(0), torch.zeros(2), atol=1e-3, rtol=0)


def test_an_encoder_without_a_usable_row_is_refused() -> None:
    with pytest.raises(ValueError, match="needs usable rows; all 200 are NaN, Inf or zero"):
        find_moments(rows_of(), ~OK, normalise=False)


def test_kept_coordinates_are_those_made_when_asked_for() -> None:
    rows, turn, index = rows_of(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), np.array([5, 2, 199])
    kept, made = (Coordinates(rows, whiten(rows), keep=keep) for keep in (True, False))

    for side in (kept, made):
        side.turn(turn)

    torch.testing.assert_close(kept[index], made[index], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept[3:9], made[3:9], atol=1e-5, rtol=1e-5)
    assert len(kept) == 200
    assert kept[index].shape == (3, 4)


@pytest.mark.parametrize("keep", [False, True])
def test_coordinates_book_what_the_counter_sees(keep: bool) -> None:
    rows, canonical = rows_of(), whiten(rows_of(), rank=8)

    with FlopCounterMode(display=False) as counter:
        side = Coordinates(rows, canonical, keep=keep)
        side.turn(torch.ones(8, 3))
        assert side[np.arange(5)].shape == (5, 3)

    assert side.flops == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("shared_rank", 0), ("n_folds", 1), ("ridge", 0.0), ("image_power", -1.0), ("max_features", -1)],
)
def test_a_configuration_that_no_run_could_use_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
        CanonicalConfig(**{field: value})  # type: ignore[arg-type]
