"""Figures of measurements: the same bytes for the same numbers, and every method named."""

from pathlib import Path
from typing import Any

from hyperalign.show.drawn import draw

RECORD: dict[str, Any] = {
    "measure": "curve",
    "sheets": [
        {
            "title": "score against FLOPs",
            "rows": [
                {"method": m, "sides": "both", "setting": s, "seed": k, "search_flops": f, "test_score": 5.0 + k}
                for m, s, f in (
                    ("hypernet", "72 steps", 1e11),
                    ("hypernet", "144 steps", 2e11),
                    ("ape", "5 epochs", 1e13),
                )
                for k in (0, 1)
            ],
        }
    ],
}


def test_a_figure_names_its_methods_and_is_its_numbers(tmp_path: Path) -> None:
    first, second, other = (tmp_path / f"{name}.svg" for name in ("first", "second", "other"))
    draw(RECORD, first)
    draw(RECORD, second)
    changed = [{**row, "test_score": 9.0 * row["test_score"]} for row in RECORD["sheets"][0]["rows"]]
    draw(
        {
            **RECORD,
            "sheets": [{"title": "score against FLOPs", "rows": [*changed[:2], *RECORD["sheets"][0]["rows"][2:]]}],
        },
        other,
    )

    text = first.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert "hypernet · both" in text
    assert "ape · both" in text
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
