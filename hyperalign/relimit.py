"""A finished run under other limits: nothing is trained or scored again, only the order among the pairs is found anew.

Ranks and chances of being the best depend on who takes part, so they are counted again; scores and their intervals do
not. Opening a run compares all of its pairs once; each limit after that takes a moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperalign.embed.plain import first_line
from hyperalign.embed.zoo import EncoderSpec, Limits, pairs_within, read_spec, within
from hyperalign.rank.ranking import answer
from hyperalign.rank.resampling import Contributions, per_image, per_picture
from hyperalign.rank.standings import Standings, pareto
from hyperalign.record import embedded_whole
from hyperalign.run import Run, load_tensors

__all__ = ["Answered", "Limited", "OpenRun", "contributions_of", "open_run", "read_answered"]


class Limited(NamedTuple):
    """The order among the pairs that some limits let through.

    Attributes:
        table: Their rows of the leaderboard, by position; `position`, `rank` and `p_best` are among them.
        pareto: (Q,) True where no other pair has a higher validation score with no larger an image encoder.
        counts: What the limits let through, as a sentence.
        answer: The winner, and who cannot be told from it, as a sentence.
    """

    table: pd.DataFrame
    pareto: NDArray[np.bool_]
    counts: str
    answer: str


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenRun:
    """A finished run, ready to be asked for other limits.

    Attributes:
        run: The run.
        table: Rows of the method that answers, by position.
        standings: The same pairs compared, in the order of the run's hits, as the run itself compared them.
        places: (P,) where each row of the table stands in that order.
        specs: The encoders that took part.
        latencies: Measured milliseconds by image encoder.
    """

    run: Run
    table: pd.DataFrame
    standings: Standings
    places: NDArray[np.int64]
    specs: tuple[EncoderSpec, ...]
    latencies: dict[str, float]

    def under(self, limits: Limits) -> Limited:
        """The order among the pairs that `limits` lets through; limits of the run itself stay.

        Raises:
            ValueError: If nothing passes, or a limit asks what is not known; the nearest encoder is named.
        """
        passing = within(self.specs, limits, latencies=self.latencies)
        images, texts = ([spec for spec in passing if spec.modality == side] for side in ("image", "text"))
        let_in = {"image_encoder": [spec.name for spec in images], "text_encoder": [spec.name for spec in texts]}
        kept = np.logical_and(*(self.table[side].isin(names).to_numpy(bool) for side, names in let_in.items()))
        if limits.pair_params is not None:
            pairs_within(images, texts, limits)  # says who is the nearest, where none passes
            size = self.table["n_params_image"] + self.table["n_params_text"]
            kept = kept & np.fromiter(map(limits.pair_params.contains, size), np.bool_, len(size))
        if not kept.any():
            raise ValueError("no pair of this run is within these limits; search anew for others")
        rank, p_best = self._among(kept)
        position = np.arange(1, len(rank) + 1)
        table = self.table[kept].assign(position=position, rank=rank, p_best=p_best).reset_index(drop=True)
        best = pareto(*(table[name].to_numpy(float) for name in ("validation_score", "n_params_image")))
        counts = f"within the limits: {len(table):,} of the {len(self.table):,} pairs of this run"
        return Limited(table, best, counts, answer(table))

    def _among(self, kept: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rank and chance of being the best of the rows (Q of P) that take part, in the order of the table."""
        taking_part = np.zeros(len(kept), np.bool_)
        taking_part[self.places[kept]] = True
        rank, p_best = self.standings.among(taking_part)
        at = np.cumsum(taking_part)[self.places[kept]] - 1
        return rank[at], p_best[at]

    def as_run(self, limits: Limits) -> Run:
        """The same as a run that can be shown: its table, its sentences; what it cost and who agreed stay away."""
        found = self.under(limits)
        result = {**self.run.result, "counts": [found.counts], "answer": [found.answer, self._front(found)]}
        return replace(self.run, leaderboard=found.table, result={**result, "agreement": []})  # type: ignore[typeddict-item]

    def _front(self, found: Limited) -> str:
        """The best pair for each size of image encoder, from the largest down."""
        front = found.table[found.pareto]
        named = [f"{row.image_encoder}+{row.text_encoder} {row.score:.1f}" for row in front.head(_NAMED).itertuples()]
        more = f" and {len(front) - _NAMED} smaller ones" if len(front) > _NAMED else ""
        return (
            f"The best for its size, each with a smaller image encoder than the one before: {', '.join(named)}{more}."
        )


_NAMED = 8  # pairs of the front that are named before the rest is counted


class Answered(NamedTuple):
    """The pairs of the method that answers, and what their scores are made from.

    Attributes:
        table: Their rows of the leaderboard, by position.
        contributions: What each test image adds to their scores, in the order of the run's hits.
        places: (P,) where each row of the table stands in that order.
    """

    table: pd.DataFrame
    contributions: Contributions
    places: NDArray[np.int64]


def open_run(run: Run) -> OpenRun:
    """Read the hits of a finished run and compare its pairs; seconds where there are thousands.

    Raises:
        FileNotFoundError: If the run has no hits.
    """
    table, contributions, places = read_answered(run)
    known = table.drop_duplicates("image_encoder").set_index("image_encoder")["latency_ms"].dropna()
    return OpenRun(
        run=run,
        table=table,
        standings=Standings(contributions, seed=int(run.result["configuration"].get("seed", 0))),
        places=places,
        specs=_specs(run),
        latencies={str(name): float(ms) for name, ms in known.items()},
    )


def read_answered(run: Run) -> Answered:
    """Read the hits of the method that answers.

    Raises:
        FileNotFoundError: If the run has no hits.
    """
    try:
        return _read_answered(run)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"hits, encoders and leaderboard of {run.path} are not of one run ({first_line(error)}); search again"
        ) from None


def _read_answered(run: Run) -> Answered:
    board = run.leaderboard
    own = board[board["method"] == run.result["method"]]
    first = own.sort_values("position", kind="stable").iloc[0]
    own = own[(own["sides"] == first["sides"]) & (own["seed"] == first["seed"])]
    own = own[own["score"].notna()]  # pairs that left before everything was embedded have no hits
    table = own.sort_values("position", ignore_index=True)
    configuration = run.result["configuration"]
    contributions = contributions_of(
        load_tensors(run.path / "hits.safetensors"),
        f"{first['method']}-{first['sides']}-{first['seed']}",
        task=str(configuration.get("task", "retrieval")),
    )
    in_hits = pd.Series(range(len(table)), index=_hits_order(run, table, _specs(run)))
    names = pd.MultiIndex.from_frame(table[["image_encoder", "text_encoder"]])
    return Answered(table, contributions, np.asarray(in_hits.loc[names], dtype=np.int64))


def contributions_of(hits: Mapping[str, NDArray[Any]], stage: str, *, task: str) -> Contributions:
    """What each test image adds to the scores of a method's pairs, in the order of its hits.

    Args:
        hits: Arrays of `hits.safetensors`.
        stage: Of the method.
        task: "retrieval" or "zero-shot".
    """
    if task == "zero-shot":
        return per_picture(hits[f"{stage}/top_1"].astype(np.float32))
    t2i, i2t = (hits[f"{stage}/{name}"].astype(np.float32) for name in ("t2i", "i2t"))
    return per_image(t2i, i2t, hits["owner"])


def _hits_order(run: Run, table: pd.DataFrame, specs: Sequence[EncoderSpec]) -> pd.MultiIndex:
    """The pairs in the order of the hits: what the run has noted (an adopted encoder's stand last), else the grid's."""
    names: dict[str, list[str]] = {"image": [], "text": []}
    counted = set(embedded_whole(run.result))
    for spec in specs:
        if spec.name in counted:
            names[spec.modality].append(spec.name)
    if (run.path / "kept.safetensors").is_file():
        pairs = load_tensors(run.path / "kept.safetensors")["pairs"]
        return pd.MultiIndex.from_tuples([(names["image"][i], names["text"][j]) for i, j in pairs])
    there = set(zip(table["image_encoder"], table["text_encoder"], strict=True))
    grid = [(image, text) for image in names["image"] for text in names["text"]]
    return pd.MultiIndex.from_tuples([pair for pair in grid if pair in there])


def _specs(run: Run) -> tuple[EncoderSpec, ...]:
    """The encoders that took part."""
    return tuple(read_spec(record, Path()) for record in run.result.get("encoders", []))
