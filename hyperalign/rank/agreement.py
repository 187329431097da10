"""How far one order of the pairs agrees with another, and how far the reference agrees with itself.

A correlation that cannot be computed (one pair, all scores equal) is NaN and comes with its reason.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hyperalign.rank.resampling import Contributions, resample, select

__all__ = ["Agreement", "agreement", "ndcg", "noise_ceiling", "regret_interval"]


class Agreement(NamedTuple):
    """One order held against a reference over the same pairs.

    Attributes:
        n_pairs: Pairs in both.
        spearman: Rank correlation.
        kendall: Kendall's tau-b.
        ndcg_at_5: In [0, 1]; 1 when the first five are the reference's, in its order.
        regret_at_1: Points of the reference lost by taking the order's first pair instead of the reference's.
        regret_low: Lower end of its 95 % interval; NaN where no hits were given.
        regret_high: Upper end of it.
        reason: Why a correlation is NaN; empty where none is.
    """

    n_pairs: int
    spearman: float
    kendall: float
    ndcg_at_5: float
    regret_at_1: float
    regret_low: float = np.nan
    regret_high: float = np.nan
    reason: str = ""


def agreement(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    chosen: int | None = None,
    hits: Contributions | None = None,
    seed: int = 0,
) -> Agreement:
    """Hold the order by `scores` against the order by `reference`.

    Args:
        scores: (P,) of the method that is judged.
        reference: (P,) of the method it is judged by, in per cent.
        chosen: The pair that the method picked on validation; by default the first of its highest `scores`.
        hits: The reference's contributions (averaged over its seeds where it has several), for the regret's interval.
        seed: Of the resamples.
    """
    own, truth = _finite(scores), _finite(reference)
    if own.shape != truth.shape:
        raise ValueError(f"both must score the same pairs, got {len(own)} and {len(truth)} scores")
    chosen = int(own.argmax()) if chosen is None else chosen
    spearman, kendall, reason = _correlations(own, truth)
    low, high = (np.nan, np.nan) if hits is None else regret_interval(hits, chosen, int(truth.argmax()), seed=seed)
    return Agreement(
        n_pairs=len(own),
        spearman=spearman,
        kendall=kendall,
        ndcg_at_5=ndcg(own, truth),
        regret_at_1=float(truth.max() - truth[chosen]),
        regret_low=low,
        regret_high=high,
        reason=reason,
    )


def noise_ceiling(seeds: Sequence[ArrayLike]) -> Agreement:
    """The reference's agreement with itself: the mean over all two of its seeds, each judged by the other.

    No method can be expected to agree better with one seed of the reference than another of its seeds does.

    Args:
        seeds: For each seed the scores (P,) of the reference.
    """
    if len(seeds) < 2:
        n_pairs = len(_finite(seeds[0])) if seeds else 0
        return Agreement(n_pairs, np.nan, np.nan, np.nan, np.nan, reason="the reference has one seed")
    each = [agreement(own, truth) for own, truth in permutations(seeds, 2)]
    spearman, kendall, ndcg_at_5, regret = np.mean([one[1:5] for one in each], axis=0).tolist()
    return Agreement(each[0].n_pairs, spearman, kendall, ndcg_at_5, regret, reason=each[0].reason)


def ndcg(scores: ArrayLike, reference: ArrayLike, k: int = 5) -> float:
    """Normalised discounted cumulative gain of the first k pairs, the reference's scores above its lowest as gains.

    Gains count from the lowest score, or every order of pairs that work at all would look nearly perfect. Tied scores
    share their places' discounts. Source: Järvelin & Kekäläinen 2002, ACM Trans. Inf. Syst. 20, 422–446.

    Returns:
        1 for the reference's own order, and where all of the reference's scores are equal.
    """
    own, truth = pd.Series(_finite(scores)), _finite(reference)
    gains = pd.Series(truth - truth.min())
    if not gains.any():
        return 1.0
    shared = gains.groupby(own).transform("mean")[own.sort_values(ascending=False).index]
    discounts = 1 / np.log2(np.arange(2, min(k, len(own)) + 2))
    best = np.sort(gains)[::-1]
    return float(shared.to_numpy()[: len(discounts)] @ discounts / (best[: len(discounts)] @ discounts))


def regret_interval(
    hits: Contributions, chosen: int, best: int, *, n_boot: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the points by which `best` scores above `chosen`, on the same resamples of the images.

    `best` stays the pair that is the best on all images: the best of each resample would overstate the regret.
    """
    scores = resample(select(hits, [best, chosen]), n_boot=n_boot, seed=seed)
    low, high = np.quantile(scores[:, 0].astype(np.float64) - scores[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _correlations(own: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float, str]:
    if len(own) < 2:
        return np.nan, np.nan, "an order needs two pairs"
    if np.ptp(own) == 0 or np.ptp(truth) == 0:
        return np.nan, np.nan, "all scores are equal" if np.ptp(own) == 0 else "all scores of the reference are equal"
    from scipy import stats  # half a second, and wanted where a reference was run

    return float(stats.spearmanr(own, truth).statistic), float(stats.kendalltau(own, truth).statistic), ""


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"every pair needs one finite score, got {values.tolist()}")
    return values
