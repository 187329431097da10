"""Pictures, decoded when asked for.

Bytes come from strangers: only picture formats are tried, a picture of absurd size is refused before
it is unpacked, and a file that ends too early is no picture. What was wrong stands in the error.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "Blocks",
    "Chosen",
    "ChosenInMemory",
    "Pictures",
    "StoredPictures",
    "choose",
    "decode",
    "upright",
    "whole_files",
]

PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS: Final = 89_478_485  # Pillow's own line: more would take over 256 MB as RGB

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class Pictures(Protocol):
    """A sequence of pictures that can be sent to another process."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def __getitem__(self, index: int) -> Image.Image:
        """Decode one picture as RGB; OSError or ValueError with the reason if it cannot be."""


@runtime_checkable
class Blocks(Protocol):
    """Pictures that are in memory, or rendered there."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def __getitem__(self, index: int) -> Image.Image:
        """Give one picture as RGB."""

    def block(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give pictures `start` to `stop` as (stop - start, H, W, 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPictures:
    """Pictures that lie in files, alone or one behind the other.

    A file is opened for each picture and closed again: nothing is shared between processes.

    Attributes:
        files: The files.
        home: (n,) which of `files` each picture lies in.
        offset: (n,) its first byte.
        n_bytes: (n,) its length; -1 for the rest of the file.
    """

    files: Sequence[str]
    home: NDArray[np.int64]
    offset: NDArray[np.int64]
    n_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.home)

    def __getitem__(self, index: int) -> Image.Image:
        """Read and decode one picture."""
        return decode(self.read(index))

    def read(self, index: int) -> bytes:
        """Read one picture's bytes."""
        with Path(self.files[int(self.home[index])]).open("rb") as file:
            file.seek(int(self.offset[index]))
            return file.read(int(self.n_bytes[index]))


def whole_files(files: Sequence[str]) -> StoredPictures:
    """Point at pictures that have a file each."""
    return StoredPictures(
        files=files,
        home=np.arange(len(files), dtype=np.int64),
        offset=np.zeros(len(files), dtype=np.int64),
        n_bytes=np.full(len(files), -1, dtype=np.int64),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Some of the pictures of another sequence, in an order of their own.

    Attributes:
        pictures: The other sequence.
        index: (n,) which of them.
    """

    pictures: Pictures
    index: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.index)

    def __getitem__(self, index: int) -> Image.Image:
        """Decode one picture."""
        return self.pictures[int(self.index[index])]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenInMemory:
    """`Chosen`, of pictures that can be had as arrays.

    Attributes:
        pictures: The other sequence, with `block(start, stop)` giving (n, H, W, 3).
        index: (n,) which of them.
    """

    pictures: Blocks
    index: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.index)

    def __getitem__(self, index: int) -> Image.Image:
        """Give one picture."""
        return self.pictures[int(self.index[index])]

    def block(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give pictures `start` to `stop` as (stop - start, H, W, 3)."""
        return np.concatenate([self.pictures.block(index, index + 1) for index in self.index[start:stop].tolist()])


def choose(pictures: Pictures, index: NDArray[np.int64]) -> Pictures:
    """Take some pictures of a sequence, as quick to reach as they were."""
    if isinstance(pictures, Blocks):
        return ChosenInMemory(pictures=pictures, index=index)
    return Chosen(pictures=pictures, index=index)


def decode(data: bytes) -> Image.Image:
    """Decode a picture file as RGB, upright.

    Raises:
        ValueError: With the reason, if the bytes are not one whole picture of sane size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # remarks on odd metadata: the pixels decide
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"it has {width} × {height} pixels, more than {MAX_PIXELS:,}")
                picture.load()
                return upright(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ValueError(f"its {len(data):,} bytes are not a picture ({', '.join(_FORMATS)})") from None
    except MemoryError:  # the machine's fault, not the picture's
        raise
    except Exception as error:  # decoders fail on damaged bytes in any way they like
        said = str(error)
        if not any(letter.isalpha() for letter in said):  # a number of the decoder's
            said = f"its bytes cannot be decoded ({type(error).__name__}{said and f': {said}'})"
        raise ValueError(said) from None


def upright(picture: Image.Image) -> Image.Image:
    """A picture that is open already as RGB, turned as its camera says."""
    return _rgb(ImageOps.exif_transpose(picture))


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB; 16 bits are scaled, where Pillow would clip them."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
