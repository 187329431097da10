"""White rows and coordinates: known by hand, blind to how an encoder lies in its space, and unmoved by bad rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from counting import count_seen
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align import moments as moments_module
from hyperalign.align.canonical import (
    Canonical,
    CanonicalConfig,
    Coordinates,
    Whitening,
    centred,
    find_whitening,
    to_coordinates,
)
from hyperalign.align.grid import to_float
from hyperalign.align.moments import add_gram, find_caption_moments, find_moments, moment_rows

OK = np.ones(200, dtype=np.bool_)


def rows_of(n: int = 200, dim: int = 6, seed: int = 0) -> NDArray[np.float32]:
    """Correlated rows, off the origin."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + 2, dtype=np.float32)


def whitening_of(rows: NDArray[Any], *, ridge: float = 1e-9, normalise: bool = False, **rest: Any) -> Whitening:
    """Moments and whitening in one."""
    ok = rest.pop("ok", np.ones(len(rows), dtype=np.bool_))
    return find_whitening(find_moments(rows, ok, normalise=normalise, **rest), ridge=ridge, normalise=normalise)


def white(rows: NDArray[Any], whitening: Whitening) -> Tensor:
    """L⁻¹(z − μ) of raw rows."""
    return whitening.whiten(centred(to_float(rows), whitening))


def canonical_of(rows: NDArray[Any], rank: int = 6, **rest: Any) -> Canonical:
    """All directions of white space, as coordinates."""
    whitening = whitening_of(rows, **rest)
    return whitening.canonical(whitening.project(torch.eye(len(whitening.mean))), rank)


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
    monkeypatch.setattr(moments_module, "BLOCK", 17)

    blocks = find_moments(rows, OK, normalise=True)
    shuffled = find_moments(rows[np.random.default_rng(1).permutation(200)], OK, normalise=True)

    for moments in (blocks, shuffled):
        torch.testing.assert_close(moments.mean, whole.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(moments.covariance, whole.covariance, rtol=1e-4, atol=1e-7)


OWNER = np.repeat(np.arange(60), 1 + np.arange(60) % 7)  # from 1 to 7 captions a picture
ODD = np.flatnonzero(np.arange(len(OWNER)) % 11 == 3)


def captions_of(spread: float = 1.0) -> NDArray[np.float32]:
    """Captions of pictures that differ, around the pictures' means."""
    around = spread * rows_of(n=len(OWNER), seed=1)
    return np.asarray(rows_of(n=60, seed=2)[OWNER] + around, dtype=np.float32)


def test_caption_moments_are_exact_where_no_picture_has_more_than_two() -> None:
    """And then nothing is saved: every caption is a row of the product."""
    rows, owner, ok = captions_of()[:50], np.repeat(np.arange(25), 2), np.ones(50, dtype=np.bool_)

    found = find_caption_moments(rows, ok, owner, normalise=True)

    torch.testing.assert_close(found.covariance, find_moments(rows, ok, normalise=True).covariance)
    assert moment_rows(ok, owner) == 50


@pytest.mark.parametrize(
    "bad", [[], ODD.tolist(), list(range(10, 40))], ids=["all usable", "some not", "whole pictures"]
)
def test_caption_moments_come_from_all_means_and_two_captions_of_each_picture(bad: list[int]) -> None:
    """Written out picture by picture; the mean is that of all captions."""
    rows, ok = captions_of().astype(np.float64), np.ones(len(OWNER), dtype=np.bool_)
    ok[bad] = False
    spoiled = captions_of()
    spoiled[bad] = np.nan
    mean, n_rows = rows[ok].mean(0), 0
    expected = np.zeros((6, 6))
    for picture in range(60):
        own = rows[ok & (OWNER == picture)]
        if not len(own):
            continue
        n_rows += 1 + (2 if len(own) > 1 else 0)
        expected += len(own) * np.outer(own.mean(0) - mean, own.mean(0) - mean)
        if len(own) > 1:
            pair = own[sorted({picture % len(own), (picture + len(own) // 2) % len(own)})] - own.mean(0)
            expected += len(own) / 2 * pair.T @ pair

    found = find_caption_moments(spoiled, ok, OWNER, normalise=False)

    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.covariance, expected / ok.sum(), rtol=1e-3, atol=1e-3)
    assert moment_rows(ok, OWNER) == n_rows < ok.sum() == found.n_rows


def test_caption_moments_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ok = np.ones(len(OWNER), dtype=np.bool_)
    whole = find_caption_moments(captions_of(), ok, OWNER, normalise=True)
    for module in ("moments", "grid"):
        monkeypatch.setattr(f"hyperalign.align.{module}.BLOCK", 17)

    blocks = find_caption_moments(captions_of(), ok, OWNER, normalise=True)

    torch.testing.assert_close(blocks.mean, whole.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(blocks.covariance, whole.covariance, rtol=1e-3, atol=1e-6)


def test_caption_moments_are_on_average_those_of_all_captions() -> None:
    """Over many pictures which two are taken averages out: within 2 % where one picture's may be twice as far."""
    owner, rng = np.repeat(np.arange(4000), 5), np.random.default_rng(0)
    rows = np.asarray(rng.normal(size=(4000, 3))[owner] + rng.normal(size=(20000, 3)), dtype=np.float32)
    ok = np.ones(20000, dtype=np.bool_)

    found = find_caption_moments(rows, ok, owner, normalise=False).covariance

    np.testing.assert_allclose(found, np.cov(rows.T, bias=True), atol=0.04)


def test_a_large_mean_does_not_drown_the_covariance() -> None:
    """Far from the origin E[z²] − E[z]² in float32 would have nothing left."""
    rows = rows_of() + np.float32(3000)

    moments = find_moments(rows, OK, normalise=False)

    np.testing.assert_allclose(moments.covariance, np.cov(rows.astype(float).T, bias=True), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dim", [6, 128, 300])
def test_a_symmetric_product_in_strips_is_the_product_above_its_diagonal(dim: int) -> None:
    """Strips are 128 columns wide; what is there already is added to."""
    rows, total = torch.from_numpy(rows_of(n=50, dim=dim)), torch.ones(dim, dim, dtype=torch.float64)

    add_gram(total, rows)

    torch.testing.assert_close(total.triu(), (rows.double().T @ rows.double() + 1).triu(), atol=1e-2, rtol=1e-5)


def test_moments_past_a_strip_are_those_of_numpy() -> None:
    rows = rows_of(n=400, dim=150)

    found = find_moments(rows, np.ones(400, dtype=np.bool_), normalise=False).covariance

    assert torch.equal(found, found.T)
    np.testing.assert_allclose(found, np.cov(rows.astype(float).T, bias=True), rtol=1e-3, atol=1e-2)


def test_rows_become_white() -> None:
    found = white(rows_of(), whitening_of(rows_of()))

    torch.testing.assert_close(found.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.T @ found / 200, torch.eye(6), atol=2e-3, rtol=0)


def test_a_ridge_shrinks_a_coordinate_by_a_share_that_is_known() -> None:
    """Two uncorrelated features of variance 4 and 1, mean 2.5: L is diagonal, variances become 4/(4 + 0.4·2.5), 1/2."""
    corners = np.array([[2, 1], [2, -1], [-2, 1], [-2, -1]], dtype=np.float32)

    whitening = whitening_of(corners, ridge=0.4)

    torch.testing.assert_close(whitening.root, torch.diag(torch.tensor([5.0, 2.0])).sqrt())
    torch.testing.assert_close(white(corners, whitening).square().mean(0), torch.tensor([0.8, 0.5]))


def test_the_root_is_lower_triangular_and_gives_the_covariance_back() -> None:
    """Σ + λ·mean(diag Σ)·I = L Lᵀ."""
    moments = find_moments(rows_of(), OK, normalise=False)

    root = find_whitening(moments, ridge=0.3, normalise=False).root

    assert torch.equal(root, root.tril())
    expected = moments.covariance + 0.3 * moments.covariance.diagonal().mean() * torch.eye(6)
    torch.testing.assert_close(root @ root.T, expected.float(), atol=1e-4, rtol=1e-4)


def test_a_projection_gives_directions_of_white_space() -> None:
    rows, directions = rows_of(), torch.linalg.qr(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))).Q
    whitening = whitening_of(rows, ridge=0.1)

    canonical = whitening.canonical(whitening.project(directions), 5)

    expected = white(rows, whitening) @ directions
    torch.testing.assert_close(coordinates(rows, canonical)[:, :3], expected, atol=1e-4, rtol=1e-4)
    assert coordinates(rows, canonical)[:, 3:].abs().max() == 0
    assert canonical.own_rank == 3


def test_white_rows_do_not_see_rotation_nor_shift() -> None:
    rows = rows_of()
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0].astype(np.float32)
    moved = rows @ rotation + np.float32(7)

    first, second = (white(some, whitening_of(some, ridge=0.1)) for some in (rows, moved))

    torch.testing.assert_close(first @ first.T, second @ second.T, atol=1e-2, rtol=0)


def test_white_rows_do_not_see_the_scale_of_an_encoder() -> None:
    rows = rows_of()

    first, second = (white(some, whitening_of(some, ridge=0.1)) for some in (rows, 7 * rows))

    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def test_with_unit_rows_white_rows_do_not_see_the_length_of_a_row() -> None:
    rows = rows_of()
    longer = rows * np.random.default_rng(5).uniform(0.5, 9, size=(200, 1)).astype(np.float32)

    first, second = (white(some, whitening_of(some, normalise=True, ridge=0.1)) for some in (rows, longer))

    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_unusable_rows_change_nothing(value: float) -> None:
    rows, ok = rows_of(), OK.copy()
    ok[[3, 50]] = False
    rows[[3, 50]] = value

    found, expected = canonical_of(rows, ok=ok), canonical_of(np.delete(rows, [3, 50], axis=0))

    torch.testing.assert_close(found.projection, expected.projection)
    torch.testing.assert_close(found.mean, expected.mean)
    assert coordinates(rows, found).isfinite().all()
    assert white(rows, whitening_of(rows, ok=ok)).isfinite().all()


def test_an_encoder_narrower_than_the_rank_has_zeros_at_the_end() -> None:
    canonical = canonical_of(rows_of(dim=6), rank=9)

    found = coordinates(rows_of(dim=6), canonical)

    assert found.shape == (200, 9)
    assert found[:, 6:].abs().max() == 0
    assert canonical.own_rank == 6


def test_fewer_rows_than_features_span_one_direction_less_than_rows() -> None:
    rows = rows_of(n=5, dim=40)

    found = white(rows, whitening_of(rows, ridge=0.1))

    assert found.isfinite().all()
    assert torch.linalg.matrix_rank(found, rtol=1e-4) == 4


@pytest.mark.parametrize(
    "rows",
    [
        np.full((20, 4), 3.0, np.float32),
        np.ones((20, 1), np.float32),
        rows_of(n=1, dim=4),
    ],
)
@pytest.mark.parametrize("normalise", [False, True])
def test_rows_that_do_not_differ_have_coordinates_of_zero(rows: NDArray[np.float32], normalise: bool) -> None:
    whitening = whitening_of(rows, ridge=0.1, normalise=normalise)
    canonical = canonical_of(rows, rank=4, ridge=0.1, normalise=normalise)

    assert not whitening.varies
    assert white(rows, whitening).abs().max() == 0
    assert canonical.projection.abs().max() == 0
    assert canonical.own_rank == 1  # a width must be something
    assert coordinates(rows, canonical).abs().max() == 0


def test_unit_rows_that_differ_by_rounding_alone_have_coordinates_of_zero() -> None:
    """Whitened, the last bit of a float32 would become noise as loud as any signal."""
    rng = np.random.default_rng(0)
    rows = (rng.uniform(0.5, 9, size=(999, 1)) * rng.normal(size=37)).astype(np.float32)

    assert coordinates(rows, canonical_of(rows, rank=37, ridge=0.1, normalise=True)).abs().max() == 0


def test_a_width_of_one_has_one_coordinate() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)

    found = coordinates(rows, canonical_of(rows, rank=3))

    assert math.isclose(float(found[:, 0].square().mean()), 1, rel_tol=1e-4)
    assert found[:, 1:].abs().max() == 0


def test_of_a_wide_encoder_the_features_of_largest_variance_are_used() -> None:
    rows = rows_of(dim=5) * np.array([0.01, 5, 0.01, 3, 0.01], dtype=np.float32)

    whitening = whitening_of(rows, max_features=2, ridge=0.1)
    canonical = canonical_of(rows, rank=5, max_features=2, ridge=0.1)
    before = coordinates(rows, canonical)
    rows[:, [0, 2, 4]] = 9

    assert canonical.features.tolist() == whitening.features.tolist() == [1, 3]
    assert canonical.width == whitening.width == 5
    torch.testing.assert_close(before[:, :2].mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    assert torch.equal(coordinates(rows, canonical), before)
    torch.testing.assert_close(white(rows, whitening), before[:, :2], atol=1e-4, rtol=1e-4)


def test_an_encoder_without_a_usable_row_is_refused() -> None:
    with pytest.raises(ValueError, match="needs usable rows; all 200 are NaN, Inf or zero"):
        find_moments(rows_of(), ~OK, normalise=False)


def test_kept_coordinates_are_those_made_when_asked_for() -> None:
    rows, index = rows_of(), np.array([5, 2, 199])
    made, kept = (Coordinates(rows, canonical_of(rows)) for _ in range(2))

    kept.keep()
    given = Coordinates(rows, canonical_of(rows), made[0:200])

    for one in (kept, given):
        torch.testing.assert_close(one[index], made[index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one[3:9], made[3:9], atol=1e-5, rtol=1e-5)
        assert len(one) == 200
        assert one[index].shape == (3, 6)


@pytest.mark.parametrize("keep", [False, True])
def test_coordinates_book_what_the_counter_sees(keep: bool) -> None:
    """Kept, 200 rows once, whatever is asked for later."""
    side = Coordinates(rows_of(), canonical_of(rows_of(), rank=8))

    def use() -> None:
        if keep:
            side.keep()
        assert side[np.arange(5)].shape == (5, 8)
        side[0:3]

    assert count_seen(use) == side.flops == (200 if keep else 8) * 2 * 6 * 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("image_ridge", 0.0),
        ("text_ridge", float("nan")),
        ("image_power", -1.0),
        ("max_features", -1),
        ("targets_per_rank", 0.5),
        ("sketch_per_rank", 1.5),
        ("store_bytes", -1),
    ],
)
def test_a_configuration_that_no_run_could_use_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
        CanonicalConfig(**{field: value})  # type: ignore[arg-type]
