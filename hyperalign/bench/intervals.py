"""Simulated test sets: how often an interval holds the expected score, and whether P(best) comes true.

Pictures and captions are both drawn anew for every test set, so queries and gallery are random, and hits come from
similarities as they do in a search. The expected score of a pair is the mean over all other test sets of its world.
For P(best) it is not needed: the best pair of a grid is planted.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.worlds import WORLDS, Size, World, draw, hits_of, noise_for, plant_grid, play_grid
from hyperalign.rank.metrics import zero_shot_hits
from hyperalign.rank.resampling import Contributions, bootstrap, per_image, per_picture, resample

__all__ = ["Covered", "calibration_error", "cover", "cover_zero_shot", "measure"]

_SIZES = (Size(300, 1), Size(500, 1), Size(1000, 1), Size(300, 5), Size(500, 5), Size(1000, 5))
_GRID_SIZES = (Size(300, 1), Size(500, 1), Size(300, 5))
_SHAPES = ((4, 2), (6, 2), (4, 4), (6, 4), (8, 4), (12, 4))
_BANDS = ((1, 2), (2, 5), (5, 10), (10, 20), (20, 40), (40, 60))  # per cent; one world is planted in each
_TEST_SETS = 80  # of each world
_GRIDS = 700  # of each seed
_WIDTH = 24  # of the rows of pictures to be classified
_CLASSES = 40
_BINS = np.linspace(0, 1, 11)
_NAMED_BINS = np.linspace(0, 1, 6)


class Covered(NamedTuple):
    """What the intervals of one world have done, test set by test set.

    Attributes:
        expected: Expected score, per cent.
        shown: (T,) whether the interval that is shown holds it.
        percentile: (T,) the same for the percentiles of the resamples.
        width: (T,) of the interval that is shown, in points.
        gallery: Variance of the score from test set to test set over the mean of its variances in fixed galleries.
    """

    expected: float
    shown: NDArray[np.bool_]
    percentile: NDArray[np.bool_]
    width: NDArray[np.float64]
    gallery: float


def measure(asked: Asked, *, sizes: Sequence[Size] = _SIZES) -> list[Sheet]:
    """Coverage of intervals by score and by size, for retrieval and for zero-shot, and calibration of P(best).

    Args:
        asked: `config.limit` bounds the test sets of each world and the grids of each seed.
        sizes: Of the test sets that intervals are made from.
    """
    n_sets, n_grids = (min(count, asked.config.limit or count) for count in (_TEST_SETS, _GRIDS))
    return [*_coverage(asked, max(2, n_sets), sizes), *_calibration(asked, n_grids)]


def cover(size: Size, band: tuple[float, float], *, world: World, n_sets: int, seed: int) -> Covered:
    """Plant a world whose expected score lies about the middle of a band, and draw test sets from it.

    Args:
        size: Of the test sets.
        band: Per cent.
        world: How items lie.
        n_sets: Test sets, at least 2.
        seed: Of the world and of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = noise_for(float(np.sqrt(band[0] * band[1])), size, world, generator)
    found = [hits_of(*draw(size, noise, world, generator), size) for _ in range(n_sets)]
    t2i, i2t = np.stack([hits.t2i[:, 0] for hits in found]), np.stack([hits.i2t[:, 0] for hits in found])
    return _judge(per_image(t2i, i2t, size.owner()), seed)


def cover_zero_shot(n_images: int, band: tuple[float, float], *, n_sets: int, seed: int) -> Covered:
    """The same for pictures that are classified: the classes stay, the pictures are drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    classes = F.normalize(torch.randn(_CLASSES, _WIDTH, generator=generator), dim=1)
    middle, low, high = float(np.sqrt(band[0] * band[1])), -3.0, 4.0

    def draw(noise: float, count: int) -> NDArray[np.float32]:
        labels = torch.randint(_CLASSES, (count,), generator=generator)
        rows = classes[labels] + noise / _WIDTH**0.5 * torch.randn(count, _WIDTH, generator=generator)
        return zero_shot_hits(rows @ classes.T, labels.numpy(), ks=(1,))[:, 0]

    for _ in range(12):
        half = (low + high) / 2
        low, high = (half, high) if 100 * draw(np.exp(half), 4000).mean() > middle else (low, half)
    top_1 = draw(np.exp((low + high) / 2), n_sets * n_images).reshape(n_sets, n_images)
    return _judge(per_picture(top_1), seed)


def calibration_error(
    stated: NDArray[np.float64], came_true: NDArray[np.bool_], edges: NDArray[np.float64]
) -> tuple[float, list[dict[str, Any]]]:
    """Expected calibration error, and the reliability of each bin.

    Σ over bins of (share of the statements) · |mean probability stated − share that came true|.
    Source: Naeini, Cooper & Hauskrecht 2015, AAAI, 2901–2907.

    Args:
        stated: (S,) probabilities.
        came_true: (S,)
        edges: (B + 1,) of the bins, from 0 to 1.
    """
    place = np.clip(np.digitize(stated, edges) - 1, 0, len(edges) - 2)
    error, rows = 0.0, []
    for n in np.unique(place):
        chosen = place == n
        said, held = float(stated[chosen].mean()), float(came_true[chosen].mean())
        error += float(chosen.mean()) * abs(said - held)
        name = f"{100 * edges[n]:.0f} to {100 * edges[n + 1]:.0f} %"
        rows.append({"stated": name, "n": int(chosen.sum()), "mean_stated_share": said, "came_true_share": held})
    return error, rows


def _judge(contributions: Contributions, seed: int) -> Covered:
    """Hold the intervals of T test sets of one world, in the place of pairs, against the mean of all others' scores."""
    result, resamples = bootstrap(contributions, seed=seed), resample(contributions, seed=seed)
    low, high = np.quantile(resamples, [0.025, 0.975], axis=0)
    expected = (result.score.sum() - result.score) / (len(result.score) - 1)
    return Covered(
        float(result.score.mean()),
        (result.low <= expected) & (expected <= result.high),
        (low <= expected) & (expected <= high),
        result.high - result.low,
        float(result.score.var(ddof=1) / resamples.var(0, dtype=np.float64).mean()),
    )


def _coverage(asked: Asked, n_sets: int, sizes: Sequence[Size]) -> Iterator[Sheet]:
    """By score, size and kind of world for retrieval, by score for zero-shot."""
    cells = list(product(asked.seeds(), enumerate(sizes), enumerate(_BANDS)))
    found: list[tuple[dict[str, str], Covered]] = []
    for n, (seed, (i, size), (j, band)) in enumerate(cells):
        asked.progress("test sets", n, len(cells))
        world = WORLDS[(i + j + seed) % len(WORLDS)]._replace(seed=n)
        covered = cover(size, band, world=world, n_sets=n_sets, seed=len(cells) * seed + n)
        found.append(({"score": _in_words(band), "size": str(size), "world": world.name}, covered))
    asked.progress("test sets", len(cells), len(cells))
    notes = [
        f"{n_sets * len(cells):,} test sets of {len(cells)} worlds; one standard error of a row is "
        f"{100 * np.sqrt(0.95 * 0.05 * len(_BANDS) / (n_sets * len(cells))):.1f} points.",
        "Queries and gallery are drawn anew; the expected score is the mean over the world's other test sets.",
        "Percentile: a plain bootstrap over a fixed gallery. Gallery: the variance of the score from test set to test "
        "set over its variance in a fixed gallery, which is what the resamples know.",
    ]
    for key in ("score", "size", "world"):
        kinds = dict.fromkeys(words[key] for words, _ in found)
        rows = [_row(key, kind, [covered for words, covered in found if words[key] == kind]) for kind in kinds]
        yield Sheet(
            f"How often 95 % intervals hold the expected score, by {key}", rows, notes if key == "score" else ()
        )
    yield _zero_shot_sheet(asked, n_sets)


def _zero_shot_sheet(asked: Asked, n_sets: int) -> Sheet:
    rows = []
    for n, band in enumerate(((2.5, 5), *_BANDS[2:])):  # chance is 2.5 % in forty classes
        found = [
            cover_zero_shot(size, band, n_sets=2 * n_sets, seed=100 * seed + 10 * n + k)
            for seed in asked.seeds()
            for k, size in enumerate((300, 1000))
        ]
        rows.append(_row("score", _in_words(band), found))
    return Sheet("How often they hold the expected zero-shot top-1, 300 and 1,000 pictures", rows)


def _in_words(band: tuple[float, float]) -> str:
    return f"{band[0]:g} to {band[1]:g} %"


def _row(key: str, kind: str, found: list[Covered]) -> dict[str, Any]:
    return {
        key: kind,
        "n_test_sets": sum(len(one.shown) for one in found),
        "lowest_score": min(one.expected for one in found),
        "highest_score": max(one.expected for one in found),
        "covered_share": float(np.mean([one.shown for one in found])),
        "percentile_share": float(np.mean([one.percentile for one in found])),
        "width_score": float(np.mean([one.width for one in found])),
        "gallery_ratio": float(np.mean([one.gallery for one in found])),
    }


def _calibration(asked: Asked, n_grids: int) -> Iterator[Sheet]:
    """P(best) and, beside it, the share of the resamples in which a pair is the best."""
    stated: dict[str, list[NDArray[np.float64]]] = {"P(best)": [], "share of resamples": []}
    best, top = [], []
    for seed in asked.seeds():
        rng, generator = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)
        for n in range(n_grids):
            asked.progress(f"grids of seed {seed}", n, n_grids)
            noise = plant_grid(_SHAPES[rng.integers(len(_SHAPES))], rng)
            size = _GRID_SIZES[rng.choice(len(_GRID_SIZES), p=[0.6, 0.2, 0.2])]
            world = WORLDS[rng.integers(len(WORLDS))]._replace(seed=n)
            contributions = play_grid(noise, size, world=world, generator=generator)
            resampled = bootstrap(contributions, seed=n)
            stated["P(best)"].append(resampled.p_best)
            stated["share of resamples"].append(_shares(contributions, seed=n))
            best.append(np.arange(noise.size) == noise.argmin())
            top.append(resampled.score.max())
        asked.progress(f"grids of seed {seed}", n_grids, n_grids)
    judged = {name: _calibrated(name, shares, best) for name, shares in stated.items()}
    notes = [
        f"{len(best):,} grids of 8 to 48 pairs, each with a best pair that is known; highest scores from "
        f"{min(top):.1f} to {max(top):.1f} %, half of them above {np.median(top):.1f} %.",
        "Named: the pair with the highest chance alone. Perfect: the error that bins of this size show by luck where "
        "every probability is right.",
    ]
    yield Sheet("Calibration of P(best)", [row for row, _, _ in judged.values()], notes)
    for name, (_, every, named) in judged.items():
        yield Sheet(f"Reliability of {name}, all pairs", every)
        yield Sheet(f"Reliability of {name}, the named pair", named)


def _shares(contributions: Contributions, *, seed: int) -> NDArray[np.float64]:
    """(P,) share of the resamples in which a pair is the best."""
    scores = resample(contributions, seed=seed)
    first = scores == scores.max(1, keepdims=True)
    return np.asarray((first / first.sum(1, keepdims=True)).mean(0), dtype=np.float64)


def _calibrated(
    name: str, shares: list[NDArray[np.float64]], best: list[NDArray[np.bool_]]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """One row on how well probabilities came true, and the bins of all pairs and of the named ones."""
    named = np.array([share.max() for share in shares])
    right = np.array([bool(is_best[share.argmax()]) for share, is_best in zip(shares, best, strict=True)])
    error, every_bin = calibration_error(np.concatenate(shares), np.concatenate(best), _BINS)
    named_error, named_bins = calibration_error(named, right, _NAMED_BINS)
    rng = np.random.default_rng(0)
    luck = [calibration_error(named, rng.random(len(named)) < named, _NAMED_BINS)[0] for _ in range(50)]
    brier = [float(np.square(share - is_best).sum()) for share, is_best in zip(shares, best, strict=True)]
    row = {
        "what": name,
        "n_grids": len(best),
        "error_share": error,
        "named_error_share": named_error,
        "perfect_named_error_share": float(np.mean(luck)),
        "named_stated_share": float(named.mean()),
        "named_came_true_share": float(right.mean()),
        "brier": float(np.mean(brier)),
    }
    return row, every_bin, named_bins
