"""Embeddings that clip-retrieval wrote: `img_emb/*.npy`, `text_emb/*.npy`, `metadata/*.parquet`.

They are mapped where they lie; `adopt` makes an entry of the cache of them.
"""

import re
from pathlib import Path
from typing import NamedTuple

from hyperalign.embed.cache import CacheKey, Entry, fill
from hyperalign.embed.shards import Part, Rows, read_array
from hyperalign.embed.tables import parquet_rows

__all__ = ["Imported", "adopt", "import_clip_retrieval"]


class Imported(NamedTuple):
    """What a clip-retrieval folder holds; row i of each part describes item i.

    Attributes:
        images: (n, D) picture embeddings, or None.
        texts: (n, D) caption embeddings, or None.
        image_paths: n paths, or empty if the metadata has none.
        captions: n captions, or empty if the metadata has none.
    """

    images: Rows | None
    texts: Rows | None
    image_paths: tuple[str, ...]
    captions: tuple[str, ...]


def import_clip_retrieval(folder: Path) -> Imported:
    """Map the embeddings of a clip-retrieval folder and read its metadata."""
    images, texts = _rows(folder / "img_emb"), _rows(folder / "text_emb")
    if images is None and texts is None:
        raise FileNotFoundError(f"{folder} holds no img_emb/*.npy and no text_emb/*.npy; give clip-retrieval's output")
    paths, captions = _metadata(folder / "metadata")
    found = {"img_emb": images, "text_emb": texts, "image paths": paths, "captions": captions}
    counts = {name: len(part) for name, part in found.items() if part is not None and len(part)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise ValueError(f"the parts of {folder} must describe the same items, got {listed}; import a whole folder")
    return Imported(images, texts, paths, captions)


def adopt(root: Path, key: CacheKey, rows: Rows) -> Entry:
    """Copy rows that were computed elsewhere into the cache, under a key that says where they come from."""
    return fill(root, key, n_rows=len(rows), embed=lambda start, stop: (rows[start:stop], []))


def _rows(folder: Path) -> Rows | None:
    parts: list[Part] = []
    for path in _numbered(folder, ".npy"):
        rows = read_array(path)
        shape, dtype = rows.shape, rows.dtype
        if len(shape) != 2 or dtype.kind != "f" or (parts and shape[1] != parts[0].dim):
            width = f"of width {parts[0].dim}" if parts else "of any width"
            raise ValueError(f"{path} must hold float rows {width}, got {dtype.name} {shape}")
        start = parts[-1].stop if parts else 0
        parts.append(
            Part(
                file=path.name,
                start=start,
                stop=start + shape[0],
                dim=shape[1],
                dtype=dtype.name,
                n_bytes=path.stat().st_size,
                crc32=None,
            )
        )
    return Rows(folder, parts) if parts else None


def _metadata(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read paths and captions of all items."""
    found: dict[str, list[str]] = {"image_path": [], "caption": []}
    for path in _numbered(folder, ".parquet"):
        for _, row in parquet_rows(path, lambda names: [name for name in found if name in names]):
            for name, value in row.items():
                found[name].append("" if value is None else str(value))
    return tuple(found["image_path"]), tuple(found["caption"])


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """List files in the order of the numbers in their names: 2 before 10."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix == suffix]
    return sorted(files, key=lambda path: [int(number) for number in re.findall(r"\d+", path.stem)] or [0])
