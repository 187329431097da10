"""The tally of the trust tests: what harm was done and what came of it, kept as a table in reports/.

Every test here does a harm for real and says in numbers what it did: `tally.add("kill -9 during embed", done=100,
survived=100)`. `pytest -m trust` runs them all and writes reports/trust.json and reports/trust.md; a part of them
(`pytest -m trust -k kill`) replaces its own rows and leaves the others. Most tests have a small sibling: of hostile
input and of several processes in the daily suite, of kills and broken disks behind `slow`, for they take a minute.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperalign.machine import find_commits

KINDS = ("faults", "inputs", "processes", "memory", "dependencies", "house")
ROWS = pytest.StashKey[list[dict[str, Any]]]()


class Tally:
    """Figures of one test."""

    def __init__(self, test: str, put: Callable[[dict[str, Any]], None]) -> None:
        """A tally without figures; `put` keeps them."""
        self.test, self._put = test, put

    def add(self, kind: str, what: str, *, done: int, survived: int, **figures: float | str) -> None:
        """Say what was done.

        Args:
            kind: One of `KINDS`, the part of the table.
            what: The harm, in a few words; a row of the same words is replaced.
            done: How often it was done: kills, inputs, processes.
            survived: After how many of them everything was as it should be.
            figures: What else was measured, with its unit in the name, such as `seconds` or `peak_bytes`.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        row = {"kind": kind, "what": what, "done": done, "survived": survived, "lost": done - survived}
        self._put(row | {"figures": figures, "test": self.test, "commit": find_commits()["hyperalign"]})


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Where a trust test says what it did; only rows of tests that carry the marker reach the table."""
    rows = request.config.stash.setdefault(ROWS, [])
    kept = rows.append if request.node.get_closest_marker("trust") else (lambda row: None)
    return Tally(f"{request.path.name}::{request.node.name}", kept)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, where there is anything to say."""
    rows = session.config.stash.get(ROWS, [])
    if rows:
        write_table(session.config.rootpath / "reports", rows)


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into trust.json and trust.md of `folder`, in the place of those of the same words."""
    file = folder / "trust.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    merged = {(row["kind"], row["what"]): row for row in [*old, *rows]}
    ordered = sorted(merged.values(), key=lambda row: (KINDS.index(row["kind"]), row["what"]))
    file.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "trust.md").write_text(_as_markdown(ordered), encoding="utf-8")


def _as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["# Harm done, and what came of it", "", "`pytest -m trust` makes this table again.", ""]
    lines += ["| kind | what | done | survived | lost | figures | commit |", "|---|---|--:|--:|--:|---|---|"]
    for row in rows:
        figures = ", ".join(f"{name.replace('_', ' ')} {_told(value)}" for name, value in row["figures"].items())
        counts = " | ".join(f"{row[name]:,}" for name in ("done", "survived", "lost"))
        commit = (row["commit"] or "unknown")[:7]
        lines.append(f"| {row['kind']} | {row['what']} | {counts} | {figures} | {commit} |")
    return "\n".join(lines) + "\n"


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"
