"""Which pair a method takes, and which orders are held against which."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperalign.board import compare, first_pair
from hyperalign.rank.resampling import Contributions
from hyperalign.solve import Method

PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]
CANDIDATES: Any = SimpleNamespace(
    images=[SimpleNamespace(name="a"), SimpleNamespace(name="b")],
    texts=[SimpleNamespace(name="x"), SimpleNamespace(name="y")],
)


def grid_of(name: str, seed: int, scores: list[float], first: int = 0) -> Any:
    """A method with a test score for each of some pairs, and one of them at the first position."""
    pairs, n = PAIRS[: len(scores)], len(scores)
    hits = np.tile(np.asarray(scores) / 100, (1, 20, 1)).astype(np.float32)
    table = pd.DataFrame(
        {
            "position": [1 + (k - first) % n for k in range(n)],
            "image_encoder": ["ab"[i] for i, _ in pairs],
            "text_encoder": ["xy"[j] for _, j in pairs],
        }
    )
    sides = "both" if name == "hypernet" else "text"
    return SimpleNamespace(
        solved=SimpleNamespace(method=Method(name, sides, seed), solution=SimpleNamespace(pairs=pairs)),
        table=table,
        scores=np.asarray(scores),
        contributions=Contributions(hits, np.ones((1, 20), np.float32)),
    )


def test_the_pair_at_the_first_position_is_told_by_its_places_among_the_encoders() -> None:
    for n, pair in enumerate(PAIRS):
        assert first_pair(grid_of("hypernet", 0, [1.0, 2.0, 3.0, 4.0], first=n).table, CANDIDATES) == pair


def test_whole_grids_are_held_against_the_baseline_and_the_baseline_against_itself() -> None:
    truth = [10.0, 40.0, 20.0, 30.0]
    own = grid_of("hypernet", 0, [11.0, 39.0, 21.0, 31.0], first=3)
    grids = [grid_of("ape", seed, truth) for seed in (0, 1)]
    some = grid_of("polished", 0, truth[:2])

    found = compare([own, *grids, some], CANDIDATES, n_pairs=4, seed=0)

    orders = [(one["order"], one["reference"]) for one in found]
    assert orders == [
        ("hypernet · both", "ape · text, mean of 2 seeds"),
        ("ape · text", "itself under another seed (the noise ceiling)"),
    ]
    regret: NDArray[np.float64] = np.asarray(found[0]["regret_at_1"])
    assert regret == 40.0 - 30.0  # the pair at the first position, whatever scores best
