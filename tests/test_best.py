"""The posterior of the scores, held against the same written out with whole matrices."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hyperalign.rank import best
from hyperalign.rank.best import chance_of_best, draw_scores, wins_of

Matrix = NDArray[np.float64]


def world(n_images: int, n_pairs: int) -> tuple[Matrix, Matrix]:
    """Scores around their mean, and what each image adds to their errors, around its mean."""
    rng = np.random.default_rng(n_images)
    rows = rng.standard_normal((n_images, n_pairs)) * np.linspace(0.3, 1.5, n_pairs) / 10
    lead = rng.standard_normal(n_pairs)
    return lead - lead.mean(), rows - rows.mean(1, keepdims=True)


def apart(n_pairs: int) -> Matrix:
    """What takes out a shift that all pairs share."""
    return np.eye(n_pairs) - 1 / n_pairs


def covariance(rows: Matrix) -> Matrix:
    """V of Ledoit and Wolf: the errors' covariance, drawn towards its mean variance in the P − 1 ways there are."""
    n_images, n_pairs = rows.shape
    own = rows.T @ rows
    mean = np.trace(own) / (n_pairs - 1)
    chance = sum(float(row @ row) ** 2 for row in rows) - float((own**2).sum()) / n_images
    drawn = min(1.0, chance / (float((own**2).sum()) - (n_pairs - 1) * mean**2))
    return np.asarray((1 - drawn) * own + drawn * mean * apart(n_pairs))


def whole(noise: best._Noise) -> Matrix:
    """V from its eigenvectors."""
    ways = noise.ways.double().numpy()
    return np.asarray((ways * noise.variance) @ ways.T + noise.rest * (apart(len(ways)) - ways @ ways.T))


@pytest.mark.parametrize(("n_images", "n_pairs"), [(40, 6), (6, 6), (5, 9), (3, 9)])
def test_the_noise_is_ledoit_s_and_wolf_s_with_more_images_than_pairs_and_with_fewer(
    n_images: int, n_pairs: int
) -> None:
    _, rows = world(n_images, n_pairs)

    noise = best._noise(rows)

    assert noise is not None
    assert noise.ways.shape[1] == min(n_pairs - 1, n_images)
    np.testing.assert_allclose(whole(noise), covariance(rows), atol=2e-7)


def test_two_pairs_with_the_same_hits_keep_a_trace_of_noise_between_them() -> None:
    _, rows = world(4000, 3)
    twins = np.concatenate([rows, rows[:, :1]], 1)
    twins -= twins.mean(1, keepdims=True)

    noise = best._noise(twins)

    assert noise is not None
    mean = float((twins**2).sum()) / 3
    assert noise.ways.shape == (4, 2)
    assert best._LEAST_NOISE * mean <= noise.rest < 1e-2 * mean


def test_no_noise_is_none() -> None:
    assert best._noise(np.zeros((5, 3))) is None
    assert best._noise(np.full((1, 2), 1e-7)) is None
    assert best._noise(np.array([[2e-6, -2e-6]])) is not None


@pytest.mark.parametrize(("n_images", "n_pairs"), [(40, 6), (5, 9)])
def test_the_chance_of_a_spread_is_the_likelihood_of_the_scores_times_its_prior(n_images: int, n_pairs: int) -> None:
    lead, rows = world(n_images, n_pairs)
    noise = best._noise(rows)
    assert noise is not None
    spreads, average = np.geomspace(1e-2, 1e2, 9), noise.variance.mean()

    found = best._chance_of_spreads(spreads, noise, lead @ noise.ways.double().numpy(), lead)

    told = []
    for spread in spreads:
        total = spread * apart(n_pairs) + whole(noise) + 1 / n_pairs  # the shift that pairs share has variance 1
        likelihood = -0.5 * (np.linalg.slogdet(total)[1] + lead @ np.linalg.solve(total, lead))
        told.append(likelihood + np.log(spread) - 2 * np.log(average + spread))
    expected = np.exp(np.array(told) - max(told))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-4)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize(("n_images", "n_pairs"), [(40, 6), (5, 9)])
def test_draws_have_the_mean_and_the_covariance_of_the_posterior(n_images: int, n_pairs: int) -> None:
    lead, rows = world(n_images, n_pairs)
    noise = best._noise(rows)
    assert noise is not None
    spread, v = 0.7, whole(noise)
    coins = torch.eye(n_pairs)

    draws, mirrored = best._draws(np.full(n_pairs, spread), coins, noise, lead @ noise.ways.double().numpy(), lead)

    gain = spread * np.linalg.inv(spread * apart(n_pairs) + v + 1 / n_pairs) @ apart(n_pairs)
    mean, shake = (draws + mirrored).double().numpy() / 2, (draws - mirrored).double().numpy() / 2
    np.testing.assert_allclose(mean, np.tile(gain @ lead, (n_pairs, 1)), atol=1e-5)
    shake = shake @ apart(n_pairs)
    np.testing.assert_allclose(shake.T @ shake, gain @ v, atol=1e-5)


@pytest.mark.parametrize("n_draws", [1, 7, 8, 40])
def test_as_many_draws_come_as_were_asked_for_in_blocks_of_any_size(
    n_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead, rows = world(40, 6)
    monkeypatch.setattr(best, "_BLOCK_VALUES", 18)  # three draws of six pairs

    blocks = [len(draws) for draws in draw_scores(50 + lead, rows, n_draws=n_draws)]

    assert sum(blocks) == 2 * -(-n_draws // 2)  # each with its mirror image
    assert max(blocks) <= 3


def test_draws_do_not_depend_on_a_shift_that_all_scores_share() -> None:
    lead, rows = world(40, 6)

    draws, shifted = (torch.cat([*draw_scores(by + lead, rows + by, n_draws=20)]) for by in (0.0, 3.0))

    assert torch.allclose(draws, shifted, atol=1e-5)


def test_without_noise_scores_are_equal_where_they_differ_by_rounding_alone() -> None:
    rows = np.zeros((5, 3))

    assert chance_of_best(np.array([30.000001, 30.0, 29.0]), rows).tolist() == [0.5, 0.5, 0]
    assert chance_of_best(np.array([30.00002, 30.0]), rows[:, :2]).tolist() == [1, 0]


def test_those_that_tie_share_a_draw() -> None:
    draws = torch.tensor([[1.0, 2.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])

    assert torch.allclose(wins_of(draws), torch.tensor([4 / 3, 5 / 6, 5 / 6], dtype=torch.float64))
