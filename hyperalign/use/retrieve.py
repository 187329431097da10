"""Pictures of an index by words or by a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hyperalign.use.dual import DualEncoder
from hyperalign.use.gallery import Gallery, Match, hold_against, search_gallery
from hyperalign.use.likeness import likeness

__all__ = ["retrieve"]


def retrieve(
    gallery: Gallery, model: DualEncoder, *, captions: Sequence[str] = (), pictures: Sequence[Path] = (), k: int = 10
) -> Iterator[dict[str, Any]]:
    """Answer queries, one plain record for each picture found.

    Args:
        gallery: Where to look.
        model: The one that the index was made with.
        captions: Words to look for.
        pictures: Pictures whose likes are looked for.
        k: How many pictures to find for each.

    Yields:
        `query`, `position` (from 1), `similarity` (a cosine), `path`, and `member` where the file is a tar; query by
        query, most similar first. A caption of which the model knows no word finds nothing.

    Raises:
        ValueError: If the model is another one, a caption is empty, or a picture cannot be decoded.
    """
    if not captions and not pictures:
        raise ValueError("nothing is asked for; give words, or a picture with --picture")
    for caption in captions:
        if not caption.strip():
            raise ValueError("an empty caption looks for nothing; give words")
    hold_against(gallery.about, likeness(model), gallery.folder)
    rows = [model.encode_text(captions)] if captions else []
    rows += [model.encode_image(pictures)] if pictures else []
    queries = torch.cat(rows)
    matches = search_gallery(gallery, queries.numpy(), k)
    for query, row, found in zip([*captions, *map(str, pictures)], queries, matches, strict=True):
        yield from _records(query, found if row.any() else [])


def _records(query: str, found: Sequence[Match]) -> Iterator[dict[str, Any]]:
    for position, match in enumerate(found, start=1):
        record: dict[str, Any] = {"query": query, "position": position, "similarity": round(match.similarity, 6)}
        yield record | {"path": str(match.path)} | ({"member": match.member} if match.member else {})
