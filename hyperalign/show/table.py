"""A run in the terminal: what passed the limits, the order, the answer, the agreement and the cost.

Tables are as wide as the terminal allows: where it is narrow, columns go in a fixed order of importance and the last
line says which. Names are printed as they are, never as markup.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hyperalign.run import Run
from hyperalign.show.view import ABOUT_RATIOS, Board, Cost, Row, agreements, costs, draw_board, ratios, totals
from hyperalign.show.words import NONE, clean, count, flops, points, size

__all__ = ["Column", "agreement_table", "fit", "leaderboard_table", "ledger_table", "render_order", "render_run"]

N_ROWS = 15


class Column(NamedTuple):
    """One column of a table: its head, its cells, and how early it goes when space is short (0: never)."""

    head: str
    cells: Sequence[str]
    goes: int = 0
    left: bool = False


def render_run(run: Run, *, width: int) -> Group:
    """Everything a person wants to see when a search ends.

    Args:
        run: A finished run.
        width: Columns of the terminal.
    """
    result = run.result
    parts: list[RenderableType] = [render_order(run, width=width)]
    if result.get("agreement"):
        parts += ["", agreement_table(run, width=width)]
    parts += ["", ledger_table(run, width=width)]
    if notes := result.get("notes", []):
        parts += ["", *(Text(f"note: {clean(note)}") for note in notes)]
    return Group(*parts)


def render_order(run: Run, *, width: int) -> Group:
    """What passed the limits, the first pairs, and which to take.

    Args:
        run: A finished run.
        width: Columns of the terminal.
    """
    board = draw_board(run)
    parts: list[RenderableType] = [Text(clean(line)) for line in run.result.get("counts", [])]
    parts += ["", leaderboard_table(board, width=width)]
    answer = [*_taken(board), *run.result.get("answer", [])]
    parts += [Text(clean(line), style="bold") for line in answer]
    return Group(*parts)


def _taken(board: Board) -> list[str]:
    """Which connector of the first pair an export takes, where that is not the one that pairs are compared by."""
    if board.used is None:
        return []
    row, method = board.used, board.used.facts["method"]
    whose = "its polished connector" if method == "polished" else f"the connector of {method}"
    interval = "" if row.low != row.low else f" (95 % interval {row.low:.1f} to {row.high:.1f})"
    return [
        f"Take {row.image}+{row.text} with {whose}: {row.score:.1f}{interval}, which is what an export of it takes. "
        f"By the connectors of {board.method}:"
    ]


def leaderboard_table(board: Board, *, width: int, n_rows: int = N_ROWS) -> Group:
    """The first pairs of the order, with as many columns as fit."""
    rows = board.rows[:n_rows]

    def fact(name: str, word: Callable[[float], str]) -> list[str]:
        return [word(float(row.facts[name])) for row in rows]

    columns = [
        Column("#", [str(row.position) for row in rows]),
        Column("rank", [NONE if row.rank is None else str(row.rank) for row in rows], goes=2),
        Column("pair", [f"{row.image} + {row.text}" for row in rows], left=True),
        Column("score", [points(row.score) for row in rows]),
        Column("95 %", [_interval(row) for row in rows], goes=1),
        Column("P(best)", [_share(row.p_best) for row in rows], goes=7),
        *(Column(name, [points(row.others[index]) for row in rows], goes=4) for index, name in enumerate(board.others)),
        Column("params", fact("n_params_image", count), goes=3),
        Column("GFLOP", fact("gflops_image", lambda value: NONE if value != value else f"{value:.3g}"), goes=6),
        Column("latency", fact("latency_ms", lambda value: NONE if value != value else f"{value:.3g} ms"), goes=8),
        Column("training", fact("train_flops", flops), goes=5),
    ]
    title = f"{board.method}: {board.measure} on the test images; the order was chosen on {board.chosen}"
    hidden = len(board.rows) - len(rows)
    more = [f"{hidden} more pairs in leaderboard.csv"] if hidden else []
    return fit(title, columns, width=width, more=more)


def agreement_table(run: Run, *, width: int) -> Group:
    """How far orders agree, the noise ceiling among them."""
    items = agreements(run)
    columns = [
        Column("order", [clean(item["order"]) for item in items], left=True),
        Column("held against", [clean(item["reference"]) for item in items], left=True),
        Column("pairs", [str(item["n_pairs"]) for item in items], goes=4),
        Column("Spearman", [_decimals(item["spearman"]) for item in items]),
        Column("Kendall", [_decimals(item["kendall"]) for item in items], goes=1),
        Column("NDCG@5", [_decimals(item["ndcg_at_5"]) for item in items], goes=2),
        Column("regret@1", [points(item["regret_at_1"]) for item in items]),
        Column("95 %", [_between(item["regret_low"], item["regret_high"]) for item in items], goes=3),
    ]
    reasons = [f"{clean(item['order'])}: {clean(item['reason'])}" for item in items if item["reason"]]
    return fit("Agreement of orders", columns, width=width, more=reasons)


def ledger_table(run: Run, *, width: int) -> Group:
    """Costs by method and stage, the two ratios, and what a ratio means."""
    lines = costs(run)
    columns = [
        Column("method", [line.method for line in lines], left=True),
        Column("stage", [line.stage + (" *" if line.in_search else "") for line in lines], left=True),
        Column("cost", [flops(line.flops) for line in lines]),
        Column("time", [line.time for line in lines], goes=1),
        Column("peak memory", [size(line.peak_bytes) for line in lines], goes=3),
        Column("achieved", [_speed(line) for line in lines], goes=2),
    ]
    more = ["* counts as the cost of a search: set-up + training + validation", totals(run)]
    peak = run.result.get("roofline", {}).get("flops_per_second")
    if peak:
        more.append(f"the best matrix product this machine showed in this run: {flops(peak)}/s")
    parts: list[RenderableType] = [fit("Ledger", columns, width=width, more=more)]
    for item in ratios(run):
        head = Text.assemble((f"{item.setting}: ", "bold"), (item.ratio, "bold"))
        sides = Text(f"{item.baseline}\n{item.method}")
        parts += ["", head, Padding(sides, (0, 0, 0, 2), expand=False)]
    if run.result.get("ratios"):
        parts += ["", Text(ABOUT_RATIOS, style="dim")]
    return Group(*parts)


def fit(title: str, columns: Sequence[Column], *, width: int, more: Sequence[str]) -> Group:
    """A table of the columns that fit into `width`, the first of which say most."""
    kept = list(columns)
    while _width(kept) > width and any(column.goes for column in kept):
        kept.remove(max((column for column in kept if column.goes), key=lambda column: column.goes))
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in kept:
        table.add_column(Text(column.head), justify="left" if column.left else "right", overflow="fold")
    for cells in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    gone = [column.head for column in columns if column not in kept]
    notes = [*more, *([f"not shown for want of space: {', '.join(gone)}"] if gone else [])]
    return Group(table, *(Text(note, style="dim") for note in notes))


def _width(columns: Sequence[Column]) -> int:
    widest = [max(Text(text).cell_len for text in (column.head, *column.cells)) for column in columns]
    return sum(widest) + 2 * len(columns)


def _interval(row: Row) -> str:
    return NONE if row.low != row.low or row.high != row.high else f"{row.low:.1f}–{row.high:.1f}"


def _between(low: float, high: float) -> str:
    return NONE if low != low or high != high else f"{points(low)} to {points(high)}"


def _share(p: float) -> str:
    return NONE if p != p else f"{p:.0%}"


def _decimals(value: float) -> str:
    return NONE if value != value else f"{value:.3f}"


def _speed(line: Cost) -> str:
    return f"{flops(line.flops / line.seconds)}/s" if line.seconds and line.flops else NONE
