"""Pictures that are nearly the same on both sides of a split: a test picture that was trained on.

Each picture becomes 256 bits that say where brightness rises from left to right in a 17 × 16 thumbnail
(a difference hash). Scaling and recompression change few of them; another picture changes about half, unless
both are plain, so two pictures must also agree in an 8 × 8 thumbnail. A copy in other colours is not found.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperalign.embed.splits import Split

__all__ = ["Twin", "near_duplicates", "picture_bits"]

Progress = Callable[[str, int, int], None]

N_BITS: Final = 256
_SIDE: Final = 16
_SMALL: Final = 8
_MAX_SHADE: Final = 40  # of 255; copies at JPEG quality 30 differ by 11, cut by 3 of 224 pixels by 31
_BLOCK: Final = 4096


class _Look(NamedTuple):
    """What is kept of a split's pictures.

    Attributes:
        signs: (n, 256) bits as ±1, so that a dot product counts equal ones; 0 where nothing was decoded.
        shades: (n, 8, 8, 3) thumbnails.
    """

    signs: NDArray[np.float32]
    shades: NDArray[np.uint8]


class Twin(NamedTuple):
    """Two pictures of different splits that look the same.

    Attributes:
        split: Split of the later picture, "val" or "test".
        image_id: Its name.
        other_split: Split of the earlier picture.
        other_id: Its name.
        n_bits: How many of 256 bits differ.
    """

    split: str
    image_id: str
    other_split: str
    other_id: str
    n_bits: int


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def near_duplicates(splits: Mapping[str, Split], *, max_bits: int = 48, progress: Progress = _silent) -> list[Twin]:
    """Find pictures of val and test that look like one of an earlier split.

    Every picture is decoded once, so this takes about as long as the preprocessing of one encoder's pass.
    Pictures that cannot be decoded are passed over. Meant for photographs.

    Args:
        splits: The splits, in the order in which they may be learned from.
        max_bits: How many of 256 bits may differ.
        progress: Told how many pictures were looked at.

    Returns:
        For each such picture the nearest one of each earlier split, by split and place.
    """
    total = sum(len(split.image_ids) for split in splits.values())
    done = 0
    looks: dict[str, _Look] = {}
    for name, split in splits.items():
        n_images = len(split.image_ids)
        look = _Look(np.zeros((n_images, N_BITS), np.float32), np.zeros((n_images, _SMALL, _SMALL, 3), np.uint8))
        for index in range(n_images):
            with suppress(OSError, ValueError):
                picture = split.pictures[index]
                look.signs[index] = picture_bits(picture) * np.float32(2) - 1
                look.shades[index] = np.asarray(picture.resize((_SMALL, _SMALL), Image.Resampling.BOX))
            done += 1
            if done % 200 == 0 or done == total:
                progress("looking for near-duplicates", done, total)
        looks[name] = look
    names = list(splits)
    return [
        twin
        for place, late in enumerate(names)
        for early in names[:place]
        for twin in _twins((splits[late], looks[late]), (splits[early], looks[early]), max_bits)
    ]


def picture_bits(picture: Image.Image) -> NDArray[np.bool_]:
    """Say for each of 16 × 16 places of a picture whether it is brighter to the right, (256,)."""
    small = np.asarray(picture.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    return (small[:, 1:] > small[:, :-1]).reshape(N_BITS)


def _twins(late: tuple[Split, _Look], early: tuple[Split, _Look], max_bits: int) -> list[Twin]:
    """Find the nearest earlier picture of each later one, among those that look the same."""
    (split, look), (other, other_look) = late, early
    nearest: dict[int, tuple[int, int]] = {}  # later picture -> bits that differ, earlier picture
    for start in range(0, len(look.signs), _BLOCK):
        for begin in range(0, len(other_look.signs), _BLOCK):
            equal = look.signs[start : start + _BLOCK] @ other_look.signs[begin : begin + _BLOCK].T
            for row in np.flatnonzero((equal >= N_BITS - 2 * max_bits).any(1)).tolist():
                mine = start + row
                theirs = begin + np.flatnonzero(equal[row] >= N_BITS - 2 * max_bits)  # all, where pictures are blank
                apart = np.abs(look.shades[mine].astype(np.int16) - other_look.shades[theirs]).max((1, 2, 3))
                if len(theirs := theirs[apart <= _MAX_SHADE]):
                    bits = (N_BITS - equal[row, theirs - begin]).astype(np.int64) // 2
                    found = int(bits.min()), int(theirs[bits.argmin()])
                    nearest[mine] = min(nearest.get(mine, found), found)
    return [
        Twin(split.name, split.image_ids[mine], other.name, other.image_ids[theirs], n_bits)
        for mine, (n_bits, theirs) in sorted(nearest.items())
    ]
