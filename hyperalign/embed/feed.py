"""Pictures on their way to an encoder: decoded, resized and batched as bytes, by workers where that pays.

A picture that cannot be decoded becomes a black one with a reason, so that rows keep their places; who
embeds the batch turns its row into NaN.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from multiprocessing import current_process
from typing import Any, NamedTuple

import numpy as np
import torch
from loky import cpu_count
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyperalign.embed.networks import PictureInput
from hyperalign.embed.pictures import Blocks, Pictures, decode
from hyperalign.embed.tar_streams import in_order

Transform = Callable[[Image.Image], Tensor]

_WORTH_WORKERS = 256  # fewer pictures are done before workers have started


class Batch(NamedTuple):
    """Consecutive pictures as bytes.

    Attributes:
        start: Index of the first.
        pictures: (B, 3, H, W) uint8.
        bad: Index and reason of each that could not be decoded.
    """

    start: int
    pictures: Tensor
    bad: list[tuple[int, str]]


def feed(
    pictures: Pictures,
    bounds: range,
    transform: Transform,
    picture: PictureInput,
    *,
    batch_size: int,
    n_workers: int,
) -> Iterator[Batch]:
    """Batches of the pictures in `bounds`, in their order.

    Args:
        pictures: With a method `block(start, stop)` that gives (n, H, W, 3) uint8 they count as held in memory:
            no workers, and where they have the wanted size already no detour over single pictures either.
        bounds: Consecutive indices.
        transform: Of one picture, to (3, H, W) uint8.
        picture: What `transform` does, in numbers.
        batch_size: Pictures in a batch.
        n_workers: Processes that decode.
    """
    if isinstance(pictures, Blocks):
        if len(bounds) and _fits(pictures.block(bounds.start, bounds.start + 1), picture):
            return _blocks(pictures, bounds, batch_size)
        n_workers = 0
    if (stream := in_order(pictures, bounds)) is not None:
        return _streamed(stream, bounds, partial(_made, transform), picture, batch_size, n_workers)
    loader = DataLoader(
        Batches(pictures, bounds, transform, picture.size, batch_size),
        batch_size=None,  # an item is a batch already
        num_workers=n_workers,
        collate_fn=as_it_is,  # so that torch does not take the batch for a nest of tensors
    )
    return iter(loader)


class Batches(Dataset[Batch]):
    """Batches by number, made wherever they are asked for."""

    def __init__(
        self, pictures: Pictures, bounds: range, transform: Transform, size: tuple[int, int], batch_size: int
    ) -> None:
        """Of the pictures in `bounds`, transformed to (3, *size) bytes, so many in a batch."""
        self.pictures, self.bounds, self.transform = pictures, bounds, transform
        self.size, self.batch_size = size, batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.bounds) / self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Make one batch."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        indices = self.bounds[number * self.batch_size : (number + 1) * self.batch_size]
        rows, bad = torch.zeros(len(indices), 3, *self.size, dtype=torch.uint8), []
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for row, index in zip(rows, indices, strict=True):
                try:
                    row.copy_(self.transform(self.pictures[index]))
                except MemoryError:  # no fault of the picture's, which must not be remembered as unreadable
                    raise
                except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
                    bad.append((index, _reason(error)))
        return Batch(indices.start, rows, bad)


def _streamed(
    stream: Iterator[bytes],
    bounds: range,
    make: Callable[[bytes], "NDArray[np.uint8] | str"],
    picture: PictureInput,
    batch_size: int,
    n_workers: int,
) -> Iterator[Batch]:
    """Batches of a stream, which is read here alone, one batch ahead; workers decode."""
    with ExitStack() as held:
        start_all: Callable[[list[bytes]], Iterable[NDArray[np.uint8] | str]] = partial(map, make)
        if n_workers:
            pool = held.enter_context(ProcessPoolExecutor(n_workers))
            start_all = partial(pool.map, make, chunksize=max(1, batch_size // (4 * n_workers)))
        begun = [start_all(list(islice(stream, batch_size)))]
        for start in range(bounds.start, bounds.stop, batch_size):
            begun.append(start_all(list(islice(stream, batch_size))))
            rows, bad = torch.zeros(min(batch_size, bounds.stop - start), 3, *picture.size, dtype=torch.uint8), []
            for place, found in enumerate(begun.pop(0)):
                if isinstance(found, str):
                    bad.append((start + place, found))
                else:
                    rows[place] = torch.from_numpy(found)
            yield Batch(start, rows, bad)


def _made(transform: Transform, data: bytes) -> "NDArray[np.uint8] | str":
    """A picture as an encoder wants it, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            made: NDArray[np.uint8] = transform(decode(data)).numpy()
        except MemoryError:  # as above
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
            return _reason(error)
    return made


def _blocks(pictures: Blocks, bounds: range, batch_size: int) -> Iterator[Batch]:
    """Batches cut straight from memory."""
    for start in range(bounds.start, bounds.stop, batch_size):
        block = np.array(pictures.block(start, min(start + batch_size, bounds.stop)))  # a copy: views may be read-only
        yield Batch(start, torch.from_numpy(block).permute(0, 3, 1, 2), [])


def _fits(block: Any, picture: PictureInput) -> bool:
    """Whether resize and crop would give back what they got."""
    unscaled = all(math.floor(side / picture.crop_pct) == side for side in picture.size)
    return unscaled and block.dtype == np.uint8 and block.shape[1:] == (*picture.size, 3)


def worthwhile_workers(n_pictures: int, *, device: str) -> int:
    """Decoding processes that pay.

    None for few pictures, or in a process that may start no others. Beside an encoder on the CPU half of the cores,
    which it needs itself; else one for each core, up to eight.
    """
    if n_pictures < _WORTH_WORKERS or current_process().daemon:
        return 0
    return min(n_own_cores() // 2 if device == "cpu" else n_own_cores(), 8)


def n_own_cores() -> int:
    """Cores for this process: what the system and its container allow, shared by all that were launched beside it."""
    beside = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun and accelerate set it
    n_all: int = cpu_count()
    return max(1, n_all // max(1, int(beside) if beside.isdecimal() else 1))


def as_it_is(batch: Any) -> Any:
    """No collating; a named function, since a worker must be able to find it."""
    return batch


def _reason(error: Exception) -> str:
    """Why a picture could not be decoded, on one line."""
    said = re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")  # addresses differ between runs
    return " ".join(said.split())[:300]
