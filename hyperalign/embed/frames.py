"""A data frame of pictures and captions, written as a table that every command reads.

A run names its data by a path, so what came as a frame is kept under one that its content decides: the same frame is
the same file.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from hyperalign.embed.tables import find_columns

__all__ = ["Frame", "write_frame"]


class Frame(Protocol):
    """A data frame, of pandas or one like it."""

    @property
    def columns(self) -> Any:
        """Names of its columns."""

    def __getitem__(self, name: Any) -> Any:
        """The values of a column."""


def write_frame(frame: Frame, folder: Path) -> Path:
    """Write a frame below a folder, once.

    Args:
        frame: With a column of pictures (paths, PIL pictures, bytes of files) and one of captions (texts or lists of
            them), called as in a table; a column `split` is kept.
        folder: Where frames are kept.

    Returns:
        A .jsonl file in a folder of its own.

    Raises:
        ValueError: If a column is missing or a value is of another kind.
    """
    names = find_columns([str(name) for name in frame.columns], "the data frame")
    columns = [None if name is None else list(frame[name]) for name in names]
    pictures, captions = columns[0] or [], columns[1] or []
    splits = columns[2] or [None] * len(pictures)
    if not pictures:
        raise ValueError("the data frame has no rows; give one picture and its captions a row")
    lines, files = [], dict[str, bytes]()
    for number, (picture, caption, split) in enumerate(zip(pictures, captions, splits, strict=True)):
        row = {"image": _placed(picture, number, files), "captions": _texts(caption, number)}
        lines.append(json.dumps(row if split is None else {**row, "split": str(split)}, ensure_ascii=False))
    table = ("\n".join(lines) + "\n").encode()
    home = folder / hashlib.sha256(table).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write_once(home / name, content)
    _write_once(home / "pairs.jsonl", table)
    return home / "pairs.jsonl"


def _placed(picture: Any, number: int, files: dict[str, bytes]) -> str:
    """Where a picture lies; one in memory becomes a file beside the table."""
    if isinstance(picture, dict):  # as data sets of the Hugging Face hub have it
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str | Path):
        return str(Path(picture).resolve())
    if isinstance(picture, Image.Image):
        with io.BytesIO() as content:
            picture.save(content, format="PNG")
            picture = content.getvalue()
    if not isinstance(picture, bytes):
        raise ValueError(
            f"a picture is a path, a PIL picture or the bytes of a file; row {number} of the data frame has "
            f"{type(picture).__name__}"
        )
    name = f"{hashlib.sha256(picture).hexdigest()[:24]}.img"
    files[name] = picture
    return name


def _texts(captions: Any, number: int) -> list[str]:
    """One caption or several."""
    if isinstance(captions, str):
        return [captions]
    if not isinstance(captions, Sequence) and not hasattr(captions, "tolist"):
        raise ValueError(
            f"a caption is text or a list of texts; row {number} of the data frame has {type(captions).__name__}"
        )
    texts = list(captions)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a caption is text; row {number} of the data frame has a list with something else in it")
    return texts


def _write_once(path: Path, content: bytes) -> None:
    """Write a file whole, unless it is there."""
    if path.is_file() and path.stat().st_size == len(content):
        return
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(content)
    draft.replace(path)
