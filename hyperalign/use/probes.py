"""Pictures and captions by which a pair that was written for another program is held against itself."""

from dataclasses import replace

import numpy as np
from PIL import Image
from torch import Tensor

from hyperalign.use.dual import DualEncoder

__all__ = ["TOLERANCE", "hold_against", "in_float32", "probe_captions", "probe_pictures"]

TOLERANCE = 1e-4  # by which a coordinate of a unit row may differ


def probe_pictures() -> list[Image.Image]:
    """Pictures of several sizes and shapes, smooth and noisy; the same at every call."""
    rng = np.random.default_rng(0)
    sizes = ((64, 64), (90, 70), (224, 224), (300, 200), (181, 257), (500, 375))
    noisy = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes[:3]]
    smooth = [
        Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
        for size in sizes[3:]
    ]
    return noisy + smooth


def probe_captions() -> list[str]:
    """Captions of several lengths, one longer than most encoders read."""
    long = " ".join(["a man and a woman walk a black dog along the beach"] * 60)
    return [
        "a dog runs through the snow",
        "a red circle to the left of a blue square",
        "Two people sit on a bench, looking at the sea.",
        "a large green star above a small yellow triangle on a white background",
        "cat",
        long,
    ]


def in_float32(model: DualEncoder) -> DualEncoder:
    """The same pair, computed in float32 whatever its run did."""
    return replace(model, image=replace(model.image, autocast=False), text=replace(model.text, autocast=False))


def hold_against(program: str, what: str, found: Tensor, own: Tensor) -> float:
    """The largest difference between another program's rows and our own, captions of unknown words left out.

    Args:
        program: Whose rows they are, for the message.
        what: "pictures" or "captions".
        found: (n, D)
        own: (n, D)

    Raises:
        ValueError: If they differ by more than `TOLERANCE`.
    """
    known = own.ne(0).any(1)
    worst = float((found.cpu().float() - own)[known].abs().max()) if known.any() else 0.0
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{program} gives other rows of {what} than hyperalign, by {worst:.2g} where {TOLERANCE:g} is allowed, so "
            "nothing was written; export without --format"
        )
    return worst
