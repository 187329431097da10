"""A finished run under other limits: nothing is trained or scored again, only the order among the pairs is found anew.

Ranks and chances of being the best depend on who takes part, so they are counted again; scores and their intervals do
not. Opening a run compares all of its pairs once; each limit after that takes a moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperalign.embed.zoo import EncoderSpec, Limits, pairs_within, within
from hyperalign.rank.ranking import answer
from hyperalign.rank.resampling import Contributions, per_image, per_picture
from hyperalign.rank.standings import Standings, pareto
from hyperalign.run import Run, load_tensors

__all__ = ["Limited", "OpenRun", "open_run"]


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
        standings: The same pairs compared, in the order of the table.
        specs: The encoders that took part.
        latencies: Measured milliseconds by image encoder.
    """

    run: Run
    table: pd.DataFrame
    standings: Standings
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
        rank, p_best = self.standings.among(kept)
        position = np.arange(1, len(rank) + 1)
        table = self.table[kept].assign(position=position, rank=rank, p_best=p_best).reset_index(drop=True)
        best = pareto(*(table[name].to_numpy(float) for name in ("validation_score", "n_params_image")))
        counts = f"within the limits: {len(table):,} of the {len(self.table):,} pairs of this run"
        return Limited(table, best, counts, answer(table))

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


def open_run(run: Run) -> OpenRun:
    """Read the hits of a finished run and compare its pairs; seconds where there are thousands.

    Raises:
        FileNotFoundError: If the run has no hits.
    """
    board = run.leaderboard
    own = board[board["method"] == run.result["method"]]
    first = own.sort_values("position", kind="stable").iloc[0]
    own = own[(own["sides"] == first["sides"]) & (own["seed"] == first["seed"])]
    table = own.sort_values("position", ignore_index=True)
    contributions = _contributions(run, f"{first['method']}-{first['sides']}-{first['seed']}")
    specs = tuple(_spec(record) for record in run.result["encoders"])
    in_hits = pd.Series(range(len(table)), index=_grid_order(table, specs))
    names = pd.MultiIndex.from_frame(table[["image_encoder", "text_encoder"]])
    order = in_hits.loc[names].to_numpy()
    ordered = Contributions(np.ascontiguousarray(contributions.hits[:, :, order]), contributions.trials)
    known = table.drop_duplicates("image_encoder").set_index("image_encoder")["latency_ms"].dropna()
    return OpenRun(
        run=run,
        table=table,
        standings=Standings(ordered, seed=int(run.result["configuration"].get("seed", 0))),
        specs=specs,
        latencies={str(name): float(ms) for name, ms in known.items()},
    )


def _contributions(run: Run, stage: str) -> Contributions:
    """What each test image adds to the scores of the method that answers, pairs in the order of the grid."""
    tensors = load_tensors(run.path / "hits.safetensors")
    if run.result["configuration"].get("task") == "zero-shot":
        return per_picture(tensors[f"{stage}/top_1"].astype(np.float32))
    return per_image(tensors[f"{stage}/t2i"], tensors[f"{stage}/i2t"], tensors["owner"])


def _grid_order(table: pd.DataFrame, specs: Sequence[EncoderSpec]) -> pd.MultiIndex:
    """The pairs of a table in the order of the grid, image encoders outermost: that of the hits."""
    place = {spec.name: n for n, spec in enumerate(specs)}
    names = table[["image_encoder", "text_encoder"]]
    order = np.lexsort([names[side].map(place).to_numpy() for side in ("text_encoder", "image_encoder")])
    return pd.MultiIndex.from_frame(names.iloc[order])


def _spec(record: dict[str, Any]) -> EncoderSpec:
    """An encoder as the run has recorded it."""
    known = {field.name for field in fields(EncoderSpec)} - {"folder"}
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in record.items() if name in known
    }
    return EncoderSpec(**values)
