"""Pairs compared with each other once, so that the order among any of them is found at once.

Whether one pair is better than another does not depend on who else takes part. So all comparisons of a finished run are
made when it is loaded (seconds at 9,000 pairs) and kept as bits; another limit only counts them again.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hyperalign.rank.best import draw_scores, wins_of
from hyperalign.rank.resampling import Contributions, better_than, find_linear, find_scores, resample

__all__ = ["Standings", "pareto"]

_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)  # bits set in a byte


class Standings:
    """P pairs, and who is better than whom."""

    def __init__(self, contributions: Contributions, *, n_boot: int = 2_000, seed: int = 0) -> None:
        """Compare all pairs; holds 8,000·P + P²/8 bytes.

        Args:
            contributions: What each test image adds to the scores of the P pairs.
            n_boot: Resamples of the images.
            seed: Of the resamples; the one of the run gives the run's own numbers.
        """
        resamples = torch.from_numpy(resample(contributions, n_boot=n_boot, seed=seed))
        score, rows = find_scores(contributions), find_linear(contributions)
        self._better = np.empty((len(score), -(-len(score) // 8)), np.uint8)
        for pairs, better in better_than(score, rows, resamples):
            self._better[pairs] = np.packbits(better.numpy(), axis=1)
        self._draws = torch.cat([draws.T for draws in draw_scores(score, rows, seed=seed)], 1).contiguous()
        self._least, self._most = self._draws.amin(1).numpy(), self._draws.amax(1).numpy()

    def better(self) -> NDArray[np.bool_]:
        """(P, P) True where the pair of the column is better at 95 % than the pair of the row."""
        return np.unpackbits(self._better, axis=1, count=len(self._better)).astype(np.bool_)

    def draws(self, most: int) -> NDArray[np.float32]:
        """(P, D) expected scores drawn from their posterior, up to a shift; D is at most `most`, evenly thinned."""
        n_draws = self._draws.shape[1]
        picked = np.linspace(0, n_draws - 1, min(most, n_draws)).round().astype(np.int64)
        return np.asarray(self._draws[:, torch.from_numpy(picked)].numpy())

    def among(self, kept: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rank and chance of being the best among some of the pairs.

        Args:
            kept: (P,) which pairs take part, at least one.

        Returns:
            (Q,) 1 + how many of those that take part are better at 95 %, and (Q,) chances that add up to 1, in the
            order of the pairs. What all pairs of the run say of how far apart pairs are goes into these chances.
        """
        index = np.flatnonzero(kept)
        if not len(index):
            raise ValueError("an order needs at least one pair, got none")
        rank = 1 + _ONES[self._better[index] & np.packbits(kept)].sum(1, dtype=np.int64)
        floor = self._least[index].max()  # some pair never scores less, so who never scores more is never the best
        near = np.flatnonzero(self._most[index] >= floor)
        p_best = np.zeros(len(index))
        wins = wins_of(self._draws[torch.from_numpy(index[near])].T)
        p_best[near] = (wins / wins.sum()).numpy()
        return rank, p_best


def pareto(score: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(P,) True where no other pair is at least as good and smaller, or better and no larger.

    Args:
        score: (P,), higher is better.
        size: (P,), lower is better; of pairs equal in both the first stays.
    """
    order = np.lexsort((-score, size))
    best = np.maximum.accumulate(score[order])
    first = np.ones(len(order), np.bool_)
    first[1:] = score[order][1:] > best[:-1]
    kept = np.zeros(len(order), np.bool_)
    kept[order] = first
    return kept
