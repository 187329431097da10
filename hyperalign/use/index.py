"""Cached rows as a Faiss index: exact, by cosine, readable by any program that reads Faiss."""

from pathlib import Path

import numpy as np

from hyperalign.embed.shards import Rows

__all__ = ["export_index"]

_BLOCK = 8192


def export_index(rows: Rows, path: Path) -> int:
    """Write rows as a flat inner-product index of unit vectors; row k of the table is id k.

    Unusable rows (NaN, Inf, zeros) become zero vectors, so that ids stay those of the table; their cosine is 0.

    Args:
        rows: (n, D), read block by block.
        path: File to write, whole or not at all.

    Returns:
        How many rows were unusable.
    """
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    n_bad = 0
    for _, block in rows.blocks(_BLOCK):
        values = block.astype(np.float32)
        length = np.linalg.norm(np.where(np.isfinite(values), values, np.inf), axis=1, keepdims=True)
        good = np.isfinite(length) & (length > 0)
        unit = np.where(good, values, 0.0) / np.where(good, length, 1.0)
        index.add(unit.astype(np.float32))
        n_bad += int((~good).sum())
    draft = path.with_name(f".{path.name}.tmp")
    try:
        faiss.write_index(index, str(draft))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return n_bad
