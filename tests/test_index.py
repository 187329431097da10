"""Cached rows as a Faiss index."""

from pathlib import Path

import faiss
import numpy as np

from hyperalign.embed.cache import CacheKey, fill
from hyperalign.use.index import export_index

KEY = CacheKey(
    encoder="e", weights="w", revision="", preprocess="", pooling="", prompt="", dataset="d", content="c", split="test"
)


def test_an_exported_index_finds_every_row_by_itself_and_keeps_ids_behind_unusable_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    rows[3], rows[7] = np.nan, 0.0
    entry = fill(tmp_path, KEY, n_rows=50, shard_rows=16, embed=lambda start, stop: (rows[start:stop], []))

    n_bad = export_index(entry.rows, tmp_path / "rows.faiss")

    index = faiss.read_index(str(tmp_path / "rows.faiss"))
    usable = np.delete(np.arange(50), [3, 7])
    queries = rows[usable] / np.linalg.norm(rows[usable], axis=1, keepdims=True)
    similarity, found = index.search(queries, 1)
    assert n_bad == 2
    assert found[:, 0].tolist() == usable.tolist()
    np.testing.assert_allclose(similarity[:, 0], 1.0, atol=1e-3)  # stored as float16
