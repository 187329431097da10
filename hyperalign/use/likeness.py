"""Whether two models are the same to whoever searches: the same rows for the same picture and captions.

A pair is packed in more than one way (a run, an exported folder, with and without weights), and none of that matters
here; what it gives does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from hyperalign.use.dual import DualEncoder

__all__ = ["is_like", "likeness"]

_SIDE = 96
_CAPTIONS = ("a dog in the snow", "two people on a red bicycle", "the city at night, seen from above")
_MOST_APART = 0.05  # distance of unit rows, cosine 0.99875: bfloat16 and other processors differ by less


def likeness(model: DualEncoder) -> dict[str, Any]:
    """What a model is known by: its name, its width and its rows of one drawn picture and three captions."""
    rows = torch.cat([model.encode_image(_picture()), model.encode_text(_CAPTIONS)])
    return {"name": model.name, "dim": model.embed_dim, "rows": [[round(x, 6) for x in row] for row in rows.tolist()]}


def is_like(known: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two likenesses are of one model, whatever each is called."""
    mine, theirs = (np.array(one["rows"], dtype=np.float64) for one in (known, other))
    return mine.shape == theirs.shape and bool(np.linalg.norm(mine - theirs, axis=1).max() <= _MOST_APART)


def _picture() -> Image.Image:
    """Discs of three colours on a gradient: edges, corners, hues and a slope for any network to see."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE].astype(np.float64)
    pixels = np.stack([255 * x / _SIDE, 255 * y / _SIDE, 255 * (1 - x / _SIDE)], axis=2)
    for number, (left, top, radius) in enumerate(((24, 30, 16), (64, 26, 20), (48, 70, 22))):
        inside = (x - left) ** 2 + (y - top) ** 2 < radius**2
        pixels[inside] = [230 * (number == channel) for channel in range(3)]
    return Image.fromarray(pixels.round().astype(np.uint8))
