"""A run as one HTML page: no network, no scripts, light and dark. The same run gives the same bytes.

Every name and sentence is escaped by the template, and the page forbids by its own policy whatever would be loaded or
run, so that a name that slipped through could do nothing.
"""

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hyperalign.run import Run, write_whole
from hyperalign.show import words
from hyperalign.show.view import ABOUT_RATIOS, Board, agreements, costs, draw_board, ratios, totals

__all__ = ["render_page", "write_page"]


def write_page(run: Run) -> Path:
    """Write `report.html` into the run's folder and return its path."""
    path = run.path / "report.html"
    write_whole(path, render_page(run).encode())
    return path


def render_page(run: Run) -> str:
    """Draw a run; nothing but its files goes in."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        {name: getattr(words, name) for name in ("clean", "count", "duration", "flops", "points", "size")}
    )
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    result = run.result
    board = draw_board(run)
    configuration = json.dumps(result["configuration"], indent=2, ensure_ascii=False, sort_keys=True)
    return template.render(
        result=result,
        about_ratios=ABOUT_RATIOS,
        agreements=agreements(run),
        board=board,
        configuration="\n".join(words.clean(line) for line in configuration.splitlines()),
        costs=costs(run),
        facts=_facts(result),
        marks=_marks(board),
        dash=words.NONE,
        ratios=ratios(run),
        totals=totals(run),
    )


def _marks(board: Board) -> list[dict[str, float] | None]:
    """Where each row's interval lies on an axis from 0 to 100 that all rows share; None where it has none."""
    ends = [end for row in board.rows for end in (row.low, row.high) if math.isfinite(end)]
    if not ends:
        return [None for _ in board.rows]
    low, high = min(ends), max(ends)
    scale = 100 / (high - low) if high > low else 0.0

    def place(value: float) -> float:
        return round((value - low) * scale, 2)

    return [
        {"low": place(row.low), "score": place(row.score), "high": place(row.high)}
        if all(math.isfinite(value) for value in (row.low, row.score, row.high))
        else None
        for row in board.rows
    ]


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and when the run was made, as names and values."""
    facts = [("started", str(result.get("started", words.NONE)))]
    if "wall_seconds" in result:
        facts.append(("took", words.duration(result["wall_seconds"])))
    facts.append(("seeds", ", ".join(str(seed) for seed in result.get("seeds", [])) or words.NONE))
    hardware = dict(result.get("hardware", {}))
    memory = hardware.pop("memory_bytes", None)
    facts += [(str(key).replace("_", " "), words.clean(value)) for key, value in hardware.items()]
    facts.append(("memory", words.size(memory)))
    for name, commit in result.get("commit", {}).items():
        facts.append((f"commit of {name.replace('_', ' ')}", words.clean(commit or "unknown")))
    facts += [(words.clean(name), words.clean(version)) for name, version in result.get("versions", {}).items()]
    return facts
