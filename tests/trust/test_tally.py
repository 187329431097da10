"""The table of harm done keeps what other runs have put there."""

import json
from pathlib import Path
from typing import Any

import pytest

from trust.conftest import Tally, write_table


def row(what: str, done: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    Tally("test_x.py::test_y", rows.append).add("faults", what, done=done, survived=done - 1, seconds=1.5)
    return rows[0]


def test_a_row_takes_the_place_of_the_one_of_the_same_words_and_leaves_the_others(tmp_path: Path) -> None:
    write_table(tmp_path, [row("a kill", 10), row("a flipped byte", 5)])
    write_table(tmp_path, [row("a kill", 100)])
    kept = json.loads((tmp_path / "trust.json").read_text(encoding="utf-8"))
    assert [(r["what"], r["done"], r["lost"]) for r in kept] == [("a flipped byte", 5, 1), ("a kill", 100, 1)]
    assert "| faults | a kill | 100 | 99 | 1 | seconds 1.5 |" in (tmp_path / "trust.md").read_text(encoding="utf-8")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        Tally("t", print).add("weather", "rain", done=1, survived=1)
