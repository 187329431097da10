"""Embeddings from clip-retrieval: mapped where they lie, in the order of their numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_cache import KEY

from hyperalign.embed.cache import open_entry
from hyperalign.embed.clip_retrieval import adopt, import_clip_retrieval


def folder_of(root: Path, *, n_shards: int = 11, metadata: bool = True) -> Path:
    """Shard i holds two rows; row r is filled with r. Eleven shards: `10` must come after `9`."""
    for name in ("img_emb", "text_emb", "metadata"):
        (root / name).mkdir(parents=True)
    for shard in range(n_shards):
        rows = np.repeat(np.arange(2 * shard, 2 * shard + 2, dtype=np.float16)[:, None], 3, axis=1)
        np.save(root / "img_emb" / f"img_emb_{shard}.npy", rows)
        np.save(root / "text_emb" / f"text_emb_{shard}.npy", -rows)
        if metadata:
            table: dict[str, list[Any]] = {
                "image_path": [f"{2 * shard}.jpg", f"{2 * shard + 1}.jpg"],
                "caption": [f"c{2 * shard}", None],
            }
            parquet.write_table(pyarrow.table(table), root / "metadata" / f"metadata_{shard}.parquet")
    return root


def test_rows_paths_and_captions_stay_together(tmp_path: Path) -> None:
    found = import_clip_retrieval(folder_of(tmp_path))

    assert found.images is not None
    assert found.texts is not None
    assert found.images.shape == (22, 3)
    assert found.images[:][:, 0].tolist() == list(range(22))
    assert found.texts[[20]][0, 0] == -20
    assert found.image_paths[20] == "20.jpg"
    assert found.captions[20:] == ("c20", "")


def test_rows_computed_elsewhere_become_an_entry(tmp_path: Path) -> None:
    found = import_clip_retrieval(folder_of(tmp_path / "old", metadata=False))
    assert found.images is not None

    adopt(tmp_path / "cache", KEY, found.images)

    assert np.array_equal(open_entry(tmp_path / "cache", KEY).rows[:], found.images[:])
    assert found.captions == ()


def test_one_side_alone_is_enough(tmp_path: Path) -> None:
    folder_of(tmp_path)
    for path in (tmp_path / "text_emb").iterdir():
        path.unlink()

    assert import_clip_retrieval(tmp_path).texts is None


def test_what_does_not_fit_together_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no img_emb/\*\.npy"):
        import_clip_retrieval(tmp_path)
    folder_of(tmp_path)
    (tmp_path / "text_emb" / "text_emb_10.npy").unlink()
    with pytest.raises(ValueError, match="the same items, got img_emb 22, text_emb 20, image paths 22"):
        import_clip_retrieval(tmp_path)
    np.save(tmp_path / "text_emb" / "text_emb_10.npy", np.zeros((2, 4), np.float16))
    with pytest.raises(ValueError, match=r"text_emb_10\.npy must hold float rows of width 3, got float16 \(2, 4\)"):
        import_clip_retrieval(tmp_path)
    (tmp_path / "text_emb" / "text_emb_10.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"text_emb_10\.npy is no whole \.npy of numbers"):
        import_clip_retrieval(tmp_path)
