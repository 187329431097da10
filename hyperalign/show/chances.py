"""A run's comparisons and draws, small enough to stand in a page that counts them again under other limits.

A rank needs to know who is better than whom: a bit for every two pairs. Sorted by score, the bits of neighbours are
nearly the same, so each row is kept as its difference to the one before and all are deflated; 9,000 pairs with scores
from 1 to 25 % take 0.1 MB. The chance of being the best needs draws from the posterior, the same for all pairs: each
pair keeps its mean, a step, and one character a draw for how many steps the draw is from the mean. 64 steps over the
range of a pair's draws are a tenth of its standard deviation each.
"""

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperalign.relimit import OpenRun

__all__ = ["LEVELS", "Chances", "pack_chances"]

LEVELS = 64
_FIRST = 63  # "?": from here to "~" no character means anything to HTML
_MOST_DRAWS = 2_250_000  # characters of all pairs together
_MOST_BITS = 900_000  # characters of the comparisons; a grid of near-equal pairs would take megabytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Chances:
    """What of a run's hits goes into its page; P pairs by position.

    Attributes:
        n_draws: D.
        draws: P·D characters, a pair after the other.
        mean: (P,) of the draws, in points.
        step: (P,) points a step.
        by_score: (P,) the pairs from the highest score down.
        better: Deflated bits in base 64, rows and columns in that order; empty where they would take too much room.
    """

    n_draws: int
    draws: str
    mean: NDArray[np.float64]
    step: NDArray[np.float64]
    by_score: NDArray[np.int64]
    better: str


def pack_chances(opened: OpenRun) -> Chances:
    """Comparisons and draws of a run, its pairs in the order of `opened.table`."""
    draws = opened.standings.draws(_MOST_DRAWS // len(opened.table))[opened.places]
    low, high = draws.min(1), draws.max(1)
    step = np.maximum((high - low) / (LEVELS - 1), 1e-9)
    codes = ((draws - low[:, None]) / step[:, None]).round().astype(np.uint8) + _FIRST
    by_score = np.argsort(-opened.table["score"].to_numpy(), kind="stable")
    return Chances(
        n_draws=draws.shape[1],
        draws=codes.tobytes().decode("ascii"),
        mean=(low + step * (LEVELS - 1) / 2).astype(np.float64),
        step=step.astype(np.float64),
        by_score=by_score,
        better=_packed(opened.standings.better(), opened.places[by_score]),
    )


def _packed(better: NDArray[np.bool_], order: NDArray[np.int64]) -> str:
    """Who is better than whom, each row as what differs from the row before, deflated, in base 64."""
    bits = np.packbits(better[np.ix_(order, order)], axis=1, bitorder="little")
    bits[1:] ^= bits[:-1].copy()
    text = base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode("ascii")
    return text if len(text) <= _MOST_BITS else ""
