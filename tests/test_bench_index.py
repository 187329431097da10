"""The measurement of indexes: its rows are like real ones, and its sheet says what was claimed."""

from pathlib import Path

import numpy as np
import pytest

from hyperalign.bench import index
from hyperalign.bench.sheet import Asked
from hyperalign.request import SearchConfig


def cosines(rows: np.ndarray, others: np.ndarray) -> list[float]:
    """Mean cosine of the nearest, 10th and 100th of `others`, an equal row aside."""
    values = -np.sort(-(rows @ others.T), axis=1)
    values = np.where(values[:, :1] > 0.999, values[:, 1:], values[:, :-1])
    return [float(values[:, k].mean()) for k in (0, 9, 99)]


def test_the_drawn_rows_have_the_neighbours_that_are_written_down() -> None:
    pictures, captions = index.write_pictures(5500, 384, seed=0)
    rows = pictures.astype(np.float32)

    found = [*cosines(rows[:300], rows), *cosines(captions, rows)]

    assert found == pytest.approx([0.36, 0.28, 0.14, 0.34, 0.23, 0.13], abs=0.03)


def test_every_kind_is_measured_and_the_claim_is_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(index, "DIM", 16)
    monkeypatch.setattr(index, "SIZES", (400, 5000))
    asked = Asked(
        config=SearchConfig(limit=900),
        cache_dir=tmp_path,
        out=tmp_path,
        progress=lambda stage, done, total: None,
        say=lambda message: None,
    )

    sheet = index.measure(asked)[0]

    assert [(row["index"], row["rows"]) for row in sheet.rows] == [
        (kind, n) for n in (400, 900) for kind in ("flat", "hnsw", "ivf-pq")
    ]
    assert [row["index"] for row in sheet.rows if row["chosen"]] == ["flat", "flat"]
    assert all(row["recall_share"] >= 0.95 and row["index_bytes"] > 0 for row in sheet.rows)
    assert "at 900 rows a query under 20 ms at a recall of 0.95 or more: holds" in sheet.notes[1]
