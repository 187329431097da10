"""One run held against another: the same pairs under both, and what each search cost.

Where both were scored on the same test images, a difference is told from chance by what each image adds to it: what
makes an image hard for both runs cancels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperalign.rank.resampling import find_linear
from hyperalign.relimit import read_answered
from hyperalign.run import Run
from hyperalign.show.view import Board, draw_board
from hyperalign.show.words import clean

__all__ = ["Against", "hold_against"]

_Z_TWO_SIDED = 1.959963984540054  # normal quantile at 0.975

Against = dict[str, Any]
_Pair = tuple[str, str]


def hold_against(run: Run, other: Run) -> Against:
    """What another run says of the pairs of this one, as plain data.

    Returns:
        `name`; `method`; `score`, `low` and `high` of each pair of `run` by position, None where there is none: the
        other's score, and the 95 % interval of this score minus that; `only`, pairs that the other alone has;
        `same_test`; `best`, the other's first pair; `search_flops` of both, this run's first.

    Raises:
        ValueError: If the scores of the two are not of one kind.
    """
    board, beside = draw_board(run), draw_board(other)
    if board.measure != beside.measure:
        raise ValueError(
            f"two runs are held against each other by one score, got {board.measure} of {run.path} and "
            f"{beside.measure} of {other.path}; compare runs of one --task"
        )
    scores = {(row.image, row.text): row.score for row in beside.rows if np.isfinite(row.score)}
    pairs = [(row.image, row.text) for row in board.rows]
    same = _same_test(run, other)
    spread = _spreads(run, other) if same else {}
    differences = [
        (row.score - scores.get(pair, np.nan), spread.get(pair)) for row, pair in zip(board.rows, pairs, strict=True)
    ]
    return {
        "name": clean(other.result["name"]),
        "method": beside.method,
        "score": [_cut(scores.get(pair)) for pair in pairs],
        "low": [None if sd is None else _cut(difference - _Z_TWO_SIDED * sd) for difference, sd in differences],
        "high": [None if sd is None else _cut(difference + _Z_TWO_SIDED * sd) for difference, sd in differences],
        "only": [f"{image}+{text}" for image, text in scores if (image, text) not in set(pairs)],
        "same_test": same,
        "best": _first(beside),
        "search_flops": [one.result.get("totals", {}).get("search_flops") for one in (run, other)],
    }


def _first(board: Board) -> str | None:
    return f"{board.rows[0].image}+{board.rows[0].text}" if board.rows else None


def _same_test(run: Run, other: Run) -> bool:
    """Whether both were scored on the same test images and captions."""
    tests = [one.result.get("data", {}).get("splits", {}).get("test", {}) for one in (run, other)]
    digests = [(test.get("image_digest"), test.get("text_digest")) for test in tests]
    kept = all((one.path / "hits.safetensors").is_file() for one in (run, other))
    return kept and digests[0] == digests[1] and None not in digests[0]


def _spreads(run: Run, other: Run) -> Mapping[_Pair, float]:
    """Standard deviation of the difference of the two scores of each pair in both."""
    first, second = (_linear(one) for one in (run, other))
    if {len(rows) for rows in first.values()} != {len(rows) for rows in second.values()}:
        return {}
    return {pair: float(np.linalg.norm(first[pair] - second[pair])) for pair in first.keys() & second.keys()}


def _linear(run: Run) -> dict[_Pair, NDArray[np.float64]]:
    """What each image adds to the error of each pair's score, (n_images,)."""
    table, contributions, places = read_answered(run)
    rows = find_linear(contributions)
    names = zip(table["image_encoder"], table["text_encoder"], strict=True)
    return {(clean(image), clean(text)): rows[:, place] for (image, text), place in zip(names, places, strict=True)}


def _cut(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 3)
