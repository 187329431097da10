"""Plain lists in the terminal: facts, encoders, cache entries. As wide as they need, names as they are."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from hyperalign.show.words import NONE, clean, count, size

if TYPE_CHECKING:  # a list of names needs no torch
    from hyperalign.embed.cache import Found
    from hyperalign.embed.check import CheckResult
    from hyperalign.embed.zoo import EncoderSpec

__all__ = ["checks_table", "encoders_table", "entries_table", "facts_table", "plain_table"]


def encoders_table(specs: Iterable["EncoderSpec"]) -> Table:
    """What the zoo declares of each encoder."""
    rows = [
        (
            spec.name,
            spec.modality,
            spec.loader,
            spec.license or NONE,
            NONE if spec.embed_dim is None else str(spec.embed_dim),
            count(spec.n_params),
            NONE if spec.gflops is None else f"{spec.gflops:.3g}",
        )
        for spec in specs
    ]
    return plain_table(("name", "side", "loader", "licence", "width", "params", "GFLOP"), rows, words=4)


def checks_table(results: Iterable["CheckResult"]) -> Table:
    """What building each encoder showed."""
    rows = [
        (
            result.name,
            "; ".join(result.problems) or "as declared",
            NONE if result.embed_dim is None else str(result.embed_dim),
            count(result.n_params),
            NONE if result.gflops is None else f"{result.gflops:.3g}",
        )
        for result in results
    ]
    return plain_table(("name", "finding", "width", "params", "GFLOP"), rows, words=2)


def entries_table(entries: Iterable["Found"]) -> Table:
    """What the cache holds."""
    rows = [
        (
            entry.folder.name,
            clean(entry.split) or NONE,
            f"{datetime.fromtimestamp(entry.used).astimezone():%Y-%m-%d %H:%M}",
            "unfinished" if entry.shape is None else f"{entry.shape[0]:,} × {entry.shape[1]}",
            size(entry.n_bytes),
        )
        for entry in entries
    ]
    return plain_table(("entry", "split", "last used", "rows", "size"), rows, words=3)


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in facts:
        table.add_row(Text(clean(name), style="dim"), Text(clean(value), overflow="fold"))
    return table


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> Table:
    """A table whose first `words` columns are words and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table
