"""A model that sees colours alone, for tests of what is made of a model: no network, rows known by hand.

A picture's row is its mean colour, seen from grey; a caption's is that of the colours it names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from hyperalign.embed.pictures import Pictures, decode
from hyperalign.use.dual import DualEncoder, Encoded
from hyperalign.use.joint import Joint

WORDS = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "white": (1, 1, 1),
    "black": (-1, -1, -1),
    "snow": (0.9, 0.9, 1.0),
}


class ColourModel:
    """What `DualEncoder` offers, of three dimensions; `seen` counts the pictures that were embedded."""

    text_name = "words"
    embed_dim = 3

    def __init__(self, *, name: str = "eye+words", sign: float = 1.0, stop_after: int | None = None) -> None:
        """Be called `name`; `sign` makes another model, `stop_after` stops it after so many pictures."""
        self.name, self.sign, self.stop_after = name, sign, stop_after
        self.logit_scale: float | None = 10.0
        self.joint = Joint(torch.eye(3), torch.zeros(3), None, None)
        self.image = SimpleNamespace(preprocess=_pixels, encode=_mean_colours, device=torch.device("cpu"))
        self.seen = 0

    def encode_image(self, pictures: Any) -> Tensor:
        """Rows of pictures."""
        many = [pictures] if isinstance(pictures, Image.Image) else pictures
        return torch.stack([self._row(p if isinstance(p, Image.Image) else decode(Path(p).read_bytes())) for p in many])

    def encode_pictures(
        self,
        pictures: Pictures,
        start: int = 0,
        stop: int | None = None,
        *,
        tell: Callable[[int], None] | None = None,
    ) -> Encoded:
        """Rows of pictures that may be broken."""
        rows, bad = [], []
        for index in range(start, len(pictures) if stop is None else stop):
            try:
                rows.append(self._row(pictures[index]))
            except ValueError as error:
                rows.append(torch.full((3,), torch.nan))
                bad.append((index, str(error)))
        self.seen += len(rows)
        if self.stop_after is not None and self.seen > self.stop_after:
            raise KeyboardInterrupt
        if tell is not None:
            tell(len(rows))
        return Encoded(torch.stack(rows), bad)

    def encode_text(self, captions: str | Sequence[str], *, tell: Callable[[int], None] | None = None) -> Tensor:
        """Rows of captions, zeros for one without a colour."""
        every = [captions] if isinstance(captions, str) else captions
        known = [[WORDS[word] for word in text.strip(".").lower().split() if word in WORDS] for text in every]
        rows = [torch.tensor(found).float().sum(0) if found else torch.zeros(3) for found in known]
        return F.normalize(torch.stack(rows), dim=1)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines."""
        return image @ text.T

    def _row(self, picture: Image.Image) -> Tensor:
        colour = torch.from_numpy(np.asarray(picture.convert("RGB")).reshape(-1, 3).mean(0)).float()
        return F.normalize(self.sign * (colour - 127.5), dim=0)


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.resize((4, 4)))).permute(2, 0, 1)


def _mean_colours(pictures: Tensor) -> Tensor:
    return pictures.float().mean((2, 3)) - 127.5


def colour_model(**changes: Any) -> tuple[DualEncoder, ColourModel]:
    """The model, and the same to look at."""
    fake = ColourModel(**changes)
    return cast(DualEncoder, fake), fake


def write_colour(path: Path, colour: tuple[int, int, int]) -> Path:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path


def write_colours(folder: Path, n: int, *, seed: int = 0) -> list[Path]:
    """Write n pictures of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (n, 3)).tolist()
    return [write_colour(folder / f"{k % 3}" / f"{k:03}.png", (r, g, b)) for k, (r, g, b) in enumerate(colours)]
