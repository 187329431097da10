"""What is shown of a run, before it is a table or a page: one order, the other methods beside it, the cost.

The rows are those of the method that gives the answer. Another method's score of the same pair stands in a column, as
its mean over seeds; what the ledger says is added up by method and stage.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hyperalign.kept import best_row, read_notes, undamaged
from hyperalign.ledger import SEARCH_STAGES
from hyperalign.record import CEILING, AgreementRecord, distinct_ratios
from hyperalign.run import Run
from hyperalign.show.words import clean, duration, flops, times

__all__ = [
    "ABOUT_RATIOS",
    "Board",
    "Cost",
    "RatioView",
    "Row",
    "agreements",
    "costs",
    "draw_board",
    "ratios",
    "totals",
]

ABOUT_RATIOS = (
    "A ratio is the cost of training every pair by the baseline over the cost of this search (set-up + training + "
    "validation), for the sides, batch sizes and epochs named beside it; another choice of these is another ratio. "
    "The method's published 8× holds the baseline at batch 16384 and width 384 against the hypernetwork at batch 512 "
    "(inferred from its authors' notebook): with the true widths it is 15×, at matched batch 1.1×, while the "
    "hypernetwork sees each encoder on a third of the data."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pair in the order that is shown; a number that is not known is NaN.

    Attributes:
        position: Unique place.
        rank: Place that ties share; None of a pair that left on a sample, whose rank is of other pictures.
        image: Image encoder.
        text: Text encoder.
        score: In per cent, with the ends of its interval.
        low: Lower end.
        high: Upper end.
        p_best: Probability of being the best.
        others: Scores of the same pair by the other methods, in the order of `Board.others`.
        facts: The other columns of the leaderboard, by name.
    """

    position: int
    rank: int | None
    image: str
    text: str
    score: float
    low: float
    high: float
    p_best: float
    others: tuple[float, ...]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Board:
    """The leaderboard of one method.

    Attributes:
        method: Whose order it is, with its sides.
        chosen: What the order was chosen on, in words.
        measure: What the score is.
        others: The other methods, with their sides.
        rows: By position.
        used: The first pair with the connector that is taken, where that is another method's; else None.
        seed: Of the rows that are shown.
    """

    method: str
    chosen: str
    measure: str
    others: tuple[str, ...]
    rows: tuple[Row, ...]
    used: Row | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Ledger lines of one method and stage, added up.

    Attributes:
        method: Whose cost; empty where it is shared.
        stage: Stage of the ledger.
        flops: Sum.
        seconds: Sum; 0 where no time was booked.
        peak_bytes: Largest.
        in_search: Whether it is part of the cost of a search.
    """

    method: str
    stage: str
    flops: float
    seconds: float
    peak_bytes: float
    in_search: bool

    @property
    def time(self) -> str:
        """Its time in words, or whose time it is part of."""
        if self.seconds or not self.flops:
            return duration(self.seconds or None)
        return "in training" if self.stage == "optimiser" else "shared"


@dataclass(frozen=True, kw_only=True)
class RatioView:
    """One ratio in words."""

    setting: str
    ratio: str
    baseline: str
    method: str


def draw_board(run: Run) -> Board:
    """The order of the run's own method and what the other methods say about the same pairs."""
    table = run.leaderboard
    table = table[table["method"] != CEILING]  # a sentence of the answer says it
    kind = table["method"] + " · " + table["sides"]
    table = table.assign(kind=kind.where(table["sides"] != "", table["method"]))
    wanted = run.result.get("method") or (table["method"].iloc[0] if len(table) else "")
    own = table[table["method"] == wanted]
    if len(own):
        first = own.sort_values("position", kind="stable").iloc[0]
        own = own[(own["kind"] == first["kind"]) & (own["seed"] == first["seed"])]
    others = tuple(name for name in dict.fromkeys(table["kind"]) if name not in own["kind"].unique())
    beside = table[table["kind"].isin(others)].groupby(["image_encoder", "text_encoder", "kind"])["score"].mean()
    keys = zip(*(beside.index.get_level_values(level) for level in range(3)), strict=True)
    scores: dict[tuple[str, ...], float] = dict(zip(keys, beside.tolist(), strict=True))
    own = own.sort_values("position")
    rows = [_row(record, others, scores) for record in own.to_dict("records")]
    zero_shot = run.result["configuration"].get("task") == "zero-shot"
    return Board(
        method=clean(own["kind"].iloc[0]) if len(own) else clean(wanted),
        chosen="validation" + _among_polished(own, table[table["method"] == "polished"]),
        measure="zero-shot top-1, %" if zero_shot else "mean recall@1, %",
        others=tuple(clean(name) for name in others),
        rows=tuple(rows),
        used=_first_as_used(run, own),
        seed=int(own["seed"].iloc[0]) if len(own) else 0,
    )


def _first_as_used(run: Run, own: pd.DataFrame) -> Row | None:
    """The first pair as it is exported, where not by its own method."""
    for record in own.head(1).to_dict("records"):
        first = {str(name): value for name, value in record.items()}
        with undamaged(run.path):
            used = best_row(run, first, read_notes(run))
        return None if used is first else _row(used, (), {})
    return None


def _among_polished(own: pd.DataFrame, polished: pd.DataFrame) -> str:
    """How pairs that were polished stand among each other; of an adopted run they need not be the first."""
    pair = ["image_encoder", "text_encoder"]
    places = pd.MultiIndex.from_frame(own[pair]).isin(pd.MultiIndex.from_frame(polished[pair])).nonzero()[0].tolist()
    if len(places) < 2:
        return ""
    first = places == list(range(len(places)))
    which = f"the first {len(places)} pairs" if first else f"the {len(places)} polished pairs among each other"
    return f", {which} by the better of their connectors"


def costs(run: Run) -> list[Cost]:
    """The ledger by method and stage, in the order of first booking."""
    found: list[Cost] = []
    for (method, stage), lines in run.ledger.groupby(["method", "stage"], sort=False):
        found.append(
            Cost(
                method=clean(method),
                stage=clean(stage),
                flops=float(lines["flops"].sum()),
                seconds=float(lines["seconds"].sum()),
                peak_bytes=float(lines["peak_bytes"].max()),
                in_search=stage in SEARCH_STAGES,
            )
        )
    return found


def totals(run: Run) -> str:
    """What the search by the method that answers cost, and what everything that ran did; what is shared counts once."""
    board, booked = draw_board(run), costs(run)
    seed = f" · seed {board.seed}" if board.seed else ""
    own = [line for line in booked if line.in_search and line.method == f"{board.method}{seed}"]
    words = [
        f"{flops(sum(line.flops for line in some))}, {duration(sum(line.seconds for line in some))}"
        for some in (own, [line for line in booked if line.seconds or line.stage == "optimiser"])
    ]
    return f"the search by {board.method}: {words[0]}; everything in this run: {words[1]}"


def ratios(run: Run) -> list[RatioView]:
    """Every ratio with both of its sides."""
    return [
        RatioView(
            setting=clean(item["setting"]),
            ratio=times(item["baseline_flops"] / item["method_flops"] if item["method_flops"] else None),
            baseline=f"{clean(item['baseline'])}: {flops(item['baseline_flops'])}",
            method=f"{clean(item['method'])}: {flops(item['method_flops'])}",
        )
        for item in distinct_ratios(run.result.get("ratios", []))
    ]


def agreements(run: Run) -> list[AgreementRecord]:
    """The orders held against each other; what was not measured is NaN."""
    blank: AgreementRecord = {"order": "", "reference": "", "n_pairs": 0, "reason": ""}
    numbers = ("spearman", "kendall", "ndcg_at_5", "regret_at_1", "regret_low", "regret_high")
    found: list[AgreementRecord] = []
    for item in run.result.get("agreement", []):
        measured = {name: math.nan if item.get(name) is None else item[name] for name in numbers}  # type: ignore[literal-required]
        found.append({**blank, **item, **measured})  # type: ignore[typeddict-item]
    return found


def _row(record: dict[Any, Any], others: tuple[str, ...], scores: Mapping[tuple[str, ...], float]) -> Row:
    pair, tested = (record["image_encoder"], record["text_encoder"]), not math.isnan(record["score"])
    return Row(
        position=int(record["position"]),
        rank=int(record["rank"]) if tested else None,
        image=clean(pair[0]),
        text=clean(pair[1]),
        score=float(record["score"]),
        low=float(record["score_low"]),
        high=float(record["score_high"]),
        p_best=float(record["p_best"]),
        others=tuple(scores.get((*pair, name), math.nan) for name in others),
        facts={str(name): value for name, value in record.items()} | ({} if tested else {"rank": math.nan}),
    )
