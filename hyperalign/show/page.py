"""A run as one HTML page: one file, no network, light and dark. The same run gives the same bytes.

The page says everything that matters without any script: the answer, the first pairs, the costs. Its own code, in
`web/`, makes it answer questions; figures are drawn by BokehJS, which comes with the Python package of that name and is
embedded. A study that was begun for the run has a section of its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hyperalign.relimit import open_run
from hyperalign.run import Run, write_whole
from hyperalign.show import words
from hyperalign.show.chances import Chances, pack_chances
from hyperalign.show.payload import describe
from hyperalign.show.shell import as_json, fill
from hyperalign.show.trials import view_study
from hyperalign.show.view import ABOUT_RATIOS, agreements, costs, draw_board, ratios, totals

__all__ = ["render_page", "write_page"]

N_ROWS = 50  # pairs that stand in the page's table before any script runs
_MANY = 500  # pairs; comparing more than these takes seconds
_OWN = (  # the page's own code, in the order in which it is read
    *(
        "words",
        "run",
        "order",
        "limits",
        "state",
        "answer",
        "table",
        "figures",
        "pointing",
        "points",
        "heatmap",
        "curves",
    ),
    *("ledger", "versus", "drawer", "trials", "main"),
)

Progress = Callable[[str, int, int], None]


def write_page(run: Run, others: Sequence[Run] = (), *, progress: Progress | None = None) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Args:
        run: A finished run.
        others: Runs that it is held against; the page is then `report-against-NAME.html` beside its own.
        progress: Told `(stage, done, total)` where the run is so large that its page takes seconds.
    """
    against = "".join(f"-{_slug(other.path.resolve().name)}" for other in others)
    path = run.path / (f"report-against{against}.html" if others else "report.html")
    tell = progress if progress is not None and len(run.leaderboard) > _MANY else lambda *_: None
    tell("drawing the page", 0, 1)
    write_whole(path, render_page(run, others).encode())
    tell("drawing the page", 1, 1)
    return path


def render_page(run: Run, others: Sequence[Run] = ()) -> str:
    """Draw a run, held against others where some are given; nothing but their files goes in."""
    result, board, chances, study = run.result, draw_board(run), _chances(run), view_study(run.path)
    configuration = json.dumps(result["configuration"], indent=2, ensure_ascii=False, sort_keys=True)
    return fill(
        "report.html.j2",
        _OWN,
        result=result,
        others=[words.clean(other.result["name"]) for other in others],
        about_ratios=ABOUT_RATIOS,
        agreements=agreements(run),
        board=board,
        configuration="\n".join(words.clean(line) for line in configuration.splitlines()),
        costs=costs(run),
        data=as_json({**describe(run, chances, others), "study": None if study is None else study.data}),
        draws=Markup("" if chances is None else chances.draws),
        facts=_facts(result),
        n_rows=N_ROWS,
        ratios=ratios(run),
        study=study,
        totals=totals(run),
    )


def _slug(name: str) -> str:
    """A folder's name as part of a file's."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:60]


def _chances(run: Run) -> Chances | None:
    """Comparisons and draws; None for a run that has not kept its hits."""
    if not (run.path / "hits.safetensors").is_file() or "encoders" not in run.result:
        return None
    return pack_chances(open_run(run))


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
