"""Score against FLOPs as one SVG, for the measurements that have such rows.

The same record gives the same bytes, so that a figure in the repository changes only with its numbers.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DRAWN", "draw"]

DRAWN = {"curve": "test_score", "poster": "ape_score"}  # the score of each measurement that is drawn
_STYLES = {"hypernet": "o-", "closed-form": "D", "ape": "s--", "hypernet-sliced": "v:"}


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw the first sheet of a measurement of `DRAWN`: a line for each method, the mean over its seeds.

    Args:
        record: As `bench.measures.take` gives it.
        path: Of the SVG; its folder must be there.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    score, rows = DRAWN[record["measure"]], record["sheets"][0]["rows"]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for words, points in sorted(_lines(rows, score).items()):
        flops, scores = zip(*sorted(points), strict=True)
        axes.plot(flops, scores, _STYLES.get(words.split(" · ")[0], "x-"), label=words, markersize=5, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("FLOP of the search: set-up, training and validation of all pairs")
    axes.set_ylabel("best pair's score by ape, %" if score == "ape_score" else "mean test score over all pairs, %")
    axes.set_title(str(record["sheets"][0]["title"]), fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    with mpl.rc_context({"svg.hashsalt": "hyperalign", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _lines(rows: list[dict[str, Any]], score: str) -> dict[str, list[tuple[float, float]]]:
    """(FLOP, score) of each method's settings, means over seeds."""
    by_setting: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        words = row["method"] if "sides" not in row else f"{row['method']} · {row['sides']}"
        by_setting[words, row.get("setting", row.get("part", ""))].append((row["search_flops"], row[score]))
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (words, _), points in by_setting.items():
        flops, scores = zip(*points, strict=True)
        lines[words].append((sum(flops) / len(flops), sum(scores) / len(scores)))
    return lines
