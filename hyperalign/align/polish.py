"""A few pairs made as good as they get: connectors of their own, between coordinates that are made for them alone.

A search shares what it can between N×M pairs, and that costs the strong ones: narrow coordinates, few features of a
wide encoder, a network that fits all. The pair that is chosen deserves better and can afford it. Its coordinates are
found anew, wider and from all features, and from the closed form between them both sides are trained (measured in
reports/LOG.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hyperalign.align.baseline import APE_BOTH, solve_ape
from hyperalign.align.canonical import Canonical, CanonicalConfig, Whitening
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.grid import Grid, PairIndex
from hyperalign.align.solution import Kept, Progress, Solution, Stop
from hyperalign.align.train import TrainConfig

POLISH = APE_BOTH
_ALL = 1e6  # times R: more coordinates than any encoder has


def of_their_own(canonical: CanonicalConfig) -> CanonicalConfig:
    """Coordinates for few pairs: twice as many, of all features, found from all of the other side."""
    return replace(canonical, rank=2 * canonical.rank, max_features=0, targets_per_rank=_ALL, sketch_per_rank=_ALL)


def alone(grid: Grid, pairs: Sequence[PairIndex]) -> tuple[Grid, list[PairIndex]]:
    """The encoders of some pairs, and the pairs among them."""
    images, texts = _encoders_of(pairs)
    part = replace(
        grid,
        images=tuple(grid.images[i] for i in images),
        texts=tuple(grid.texts[j] for j in texts),
        image_ok=grid.image_ok[images],
        text_ok=grid.text_ok[texts],
    )
    return part, [(images.index(i), texts.index(j)) for i, j in pairs]


def solve_polished(  # noqa: PLR0913 - as the methods of a search, and what one has left
    grid: Grid,
    pairs: Sequence[PairIndex],
    canonical: CanonicalConfig,
    config: TrainConfig = POLISH,
    *,
    kept: Kept | None = None,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Solution:
    """Connectors of some pairs, each trained by itself between coordinates that these pairs share.

    Args:
        grid: Training rows of all encoders.
        pairs: Which; one at least.
        canonical: Coordinates of the search, made wider here (`of_their_own`).
        config: How the connectors are trained.
        kept: What the search has left of all encoders: whitenings of all features are taken from it.
        progress: Called with pairs done and pairs in all.
        should_stop: True leaves out the pairs not finished.

    Returns:
        Indices of pairs are those of `grid`; encoders that are in none have no coordinates.
    """
    part, own = alone(grid, pairs)
    known = None if kept is None else _known(kept, pairs)
    built = build_canonical_grid(part, of_their_own(canonical), known=known)
    found = solve_ape(part, own, config, canonical=built, progress=progress, should_stop=should_stop)
    return back_among(grid, found, dict(zip(own, pairs, strict=True)))


def _encoders_of(pairs: Sequence[PairIndex]) -> tuple[list[int], list[int]]:
    """Image and text encoders that take part, each once, ascending."""
    return sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})


def _known(kept: Kept, pairs: Sequence[PairIndex]) -> list[Whitening | None]:
    """Whitenings of all features that need not be found again, of the encoders as `alone` has them."""
    images, texts = _encoders_of(pairs)
    every = [one.whitening for one in (*(kept.images[i] for i in images), *(kept.texts[j] for j in texts))]
    return [one if len(one.features) == one.width else None for one in every]


def back_among(grid: Grid, found: Solution, at: Mapping[PairIndex, PairIndex]) -> Solution:
    """Connectors of a part of a grid with the indices that their pairs have in the whole."""
    sides: list[list[Canonical | None]] = [[None] * n_encoders for n_encoders in grid.shape]
    for (i, j), (image, text) in at.items():
        sides[0][image], sides[1][text] = found.images[i], found.texts[j]
    return replace(found, pairs=[at[pair] for pair in found.pairs], images=sides[0], texts=sides[1])
