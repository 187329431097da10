"""An order of pairs that does not depend on luck, and the sentence that says which pair to take.

Validation decides the order, the test images say how good each pair is and which they cannot tell apart: these share
a rank. A missing score is an error, not a last place.
"""

import numpy as np
import pandas as pd

from hyperalign.rank.resampling import Bootstrap

__all__ = ["answer", "rank_pairs", "reorder"]

_LISTED = 5  # indistinguishable pairs that are named before the rest is counted


def rank_pairs(table: pd.DataFrame, resampled: Bootstrap) -> pd.DataFrame:
    """Add score, interval, rank, chance of being the best and position to one row per pair, and sort by position.

    `position` is unique: by `validation_score` where the table has it, else by score, then fewer parameters of both
    encoders together, then name.

    Args:
        table: P rows of one method and seed with `image_encoder`, `text_encoder`, `n_params_image`, `n_params_text`
            and any other columns. A `score` that is there already must be that of the hits.
        resampled: The P pairs in the order of the rows.

    Returns:
        `position`, `rank`, `image_encoder`, `text_encoder`, `score`, `score_low`, `score_high`, `p_best` and the other
        columns; the index counts from 0.
    """
    names = _names(table)
    if len(table) != len(resampled.score):
        raise ValueError(f"every pair needs one score, got {len(table)} pairs and {len(resampled.score)} scores")
    if names.duplicated().any():
        raise ValueError(f"a pair is ranked once, got {names[names.duplicated()].iloc[0]} twice")
    given = table["score"] if "score" in table else resampled.score
    wrong = ~np.isclose(given, resampled.score, atol=1e-3)
    if wrong.any():
        raise ValueError(f"the score of {names[wrong].iloc[0]} is missing or is not that of its hits")
    added = {
        "score": resampled.score,
        "score_low": resampled.low,
        "score_high": resampled.high,
        "p_best": resampled.p_best,
    }
    by = table["validation_score"].to_numpy() if "validation_score" in table else resampled.score
    keys = pd.DataFrame({"score": -by.round(6), "n_params": _n_params(table).to_numpy(), "name": [*names]})
    order = keys.sort_values(["score", "n_params", "name"]).index
    ranked = table.assign(rank=resampled.rank, **added).iloc[order].reset_index(drop=True)
    ranked["position"] = np.arange(1, len(ranked) + 1)
    first = ["position", "rank", "image_encoder", "text_encoder", *added]
    return ranked[[*first, *(name for name in ranked if name not in first)]]


def reorder(table: pd.DataFrame, closer: pd.DataFrame) -> pd.DataFrame:
    """Put pairs that were looked at closer in the order of that look, on the places that they hold together.

    A pair counts with the better of its two validation scores, as the better of its two connectors is used. Who was
    not looked at keeps its place: its score is that of another method.

    Args:
        table: As `rank_pairs` returns it, by validation.
        closer: Rows of some of these pairs by another method, with `validation_score`.

    Returns:
        The rows by their new `position`; all else as it was.
    """
    looked_at = dict(zip(_names(closer), closer["validation_score"], strict=True))
    ordered = table.sort_values("position", ignore_index=True)
    own_scores = ordered["validation_score"]
    scores = [max(own, looked_at.get(name, own)) for name, own in zip(_names(ordered), own_scores, strict=True)]
    places = np.flatnonzero(_names(ordered).isin(looked_at))
    order = np.arange(len(ordered))
    order[places] = places[np.argsort(-np.round(np.asarray(scores)[places], 6), kind="stable")]
    return ordered.iloc[order].assign(position=ordered["position"].to_numpy()).reset_index(drop=True)


def answer(table: pd.DataFrame, *, n_left: int = 0) -> str:
    """Say which pair to take, from the rows that `rank_pairs` returns; where several share rank 1, say so.

    Names stand as they are in the table: whoever shows the sentence guards against what they contain.

    Args:
        table: Pairs with a test score.
        n_left: Further pairs that left on a sample; a probability is then one among those in the table.
    """
    ordered = table.sort_values("position", ignore_index=True)
    best = ordered.iloc[0]
    winner = (
        f"{_names(ordered)[0]} scores {best['score']:.1f} (95 % interval {best['score_low']:.1f} to "
        f"{best['score_high']:.1f})"
    )
    if len(table) == 1 and n_left:
        return f"{winner}: no other pair was embedded whole, for {n_left:,} left on samples of the data."
    among = f" of the {len(table)} that were embedded whole" if n_left else ""
    winner += f" and is the best pair{among} with probability {best['p_best']:.2f}"
    if len(table) == 1:
        return f"{winner}: no other pair was compared."
    first = ordered[ordered["rank"] == 1].reset_index(drop=True)
    names = [*_names(first)]
    if len(first) == 1 and best["rank"] == 1:
        return f"{winner}; every other pair is worse with 95 % confidence."
    sizes = _n_params(first)
    cheapest = int(sizes.to_numpy().argmin())
    listed = ", ".join(names) if len(names) <= _LISTED else f"{', '.join(names[:3])} and {len(names) - 3} more"
    size = f"with {_count(sizes[cheapest])} parameters"
    if best["rank"] > 1:
        n_better = int(best["rank"]) - 1
        better = "1 pair is" if n_better == 1 else f"{n_better:,} pairs are"
        return (
            f"{winner}: validation chose it, but on the test images {better} better with 95 % confidence. At rank 1: "
            f"{listed}; the cheapest of them is {names[cheapest]}, {size}."
        )
    which = "the first" if cheapest == 0 else f"{names[cheapest]}, which scores {first['score'][cheapest]:.1f}"
    return (
        f"{winner}, but {len(first)} pairs are indistinguishable at 95 %: {listed}. The cheapest of them is {which}, "
        f"{size}."
    )


def _names(table: pd.DataFrame) -> "pd.Series[str]":
    return table["image_encoder"].astype(str) + "+" + table["text_encoder"].astype(str)


def _n_params(table: pd.DataFrame) -> "pd.Series[float]":
    return table["n_params_image"] + table["n_params_text"]


def _count(number: float) -> str:
    for suffix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{suffix}"
    return str(int(number))
