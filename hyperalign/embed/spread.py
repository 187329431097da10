"""Rows of pictures from all cores of a CPU: each process decodes and embeds shares of its own, on one thread.

Threads of one network wait for one another at every layer, the more so beside processes that decode; processes that do
both wait for nobody (measured in reports/LOG.md). They are forked, so that all have the network and nobody copies it:
where a system starts processes anew, `feed` decodes beside one network instead.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_all_start_methods, get_context, get_start_method
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyperalign.embed.feed import Batches, Transform, as_it_is, n_cores
from hyperalign.embed.networks import PictureInput
from hyperalign.embed.pictures import Blocks, Pictures, decode
from hyperalign.embed.tar_streams import in_order

__all__ = ["SHARE", "RowBatch", "can_spread", "embed_spread", "worthwhile_processes"]

SHARE: Final = 16  # pictures embedded at a time by a process; what a network makes of these stays near its core

_RUNTIMES: Final = "ctranslate2 jax mxnet onnxruntime openvino paddle tensorflow tflite_runtime tvm".split()
_KILLED: Final = (
    "a process that embedded pictures was killed, most likely for want of memory; close what else is running, or "
    "let it use fewer cores (taskset --cpu-list 0 hyperalign …)"
)

Compute = Callable[[Tensor, int], tuple[NDArray[np.float32], int]]


class RowBatch(NamedTuple):
    """Rows of consecutive pictures.

    Attributes:
        start: Index of the first.
        rows: (B, D); that of a picture that could not be decoded is of a black one.
        bad: Index and reason of each of these.
        size: Pictures computed at a time, as many as memory held.
    """

    start: int
    rows: NDArray[np.float32]
    bad: list[tuple[int, str]]
    size: int


def can_spread(pictures: Pictures, *, device: str, own_code: bool) -> bool:
    """Whether processes can embed pictures.

    Args:
        pictures: Not those that lie in memory, which are faster to compute where they are.
        device: A CPU, of a system that forks.
        own_code: Whether somebody's own function makes the network. It may compute by another library than torch, whose
            threads a fork leaves behind: the network would wait for them without end.
    """
    start = get_start_method(allow_none=True) or get_all_start_methods()[0]
    foreign = own_code and any(name in sys.modules for name in _RUNTIMES)
    return device == "cpu" and start == "fork" and not isinstance(pictures, Blocks) and not foreign


def worthwhile_processes(n_workers: int, n_threads: int) -> int:
    """As many as would be busy otherwise, threads that compute beside workers that decode; at most one a core."""
    return min(n_workers + n_threads, n_cores()) if n_workers else 0


def embed_spread(  # noqa: PLR0913 - which pictures, what becomes of them, and by how many
    pictures: Pictures,
    bounds: range,
    transform: Transform,
    picture: PictureInput,
    compute: Compute,
    *,
    batch_size: int,
    n_processes: int,
) -> Iterator[RowBatch]:
    """Embed the pictures in `bounds`, in their order.

    Args:
        pictures: Of a disk or of a stream, which is read here alone.
        bounds: Consecutive indices.
        transform: Of one picture, to (3, H, W) uint8.
        picture: What `transform` does, in numbers.
        compute: Rows of (B, 3, H, W), so many at a time or fewer, and how many it were; on one thread.
        batch_size: Pictures of a share, best at most `SHARE`.
        n_processes: How many, at least 1.

    Raises:
        MemoryError: If a process needs more than there is, or was killed.
    """
    own = _Own(transform, picture, compute, batch_size)
    if (stream := in_order(pictures, bounds)) is not None:
        return _raising(_from_stream(own, stream, bounds, batch_size, n_processes))
    loader = DataLoader(
        _Shares(own, pictures, bounds, batch_size),
        batch_size=None,  # an item is a share already
        num_workers=n_processes,
        collate_fn=as_it_is,
    )
    return _raising(iter(loader))


class _Own:
    """What one process does with its shares, and what it has learned of its memory."""

    def __init__(self, transform: Transform, picture: PictureInput, compute: Compute, size: int) -> None:
        self.transform, self.picture, self.compute, self.size = transform, picture, compute, size

    def embed(self, pictures: "Pictures | _Held", indices: range) -> "RowBatch | str":
        """Rows of some pictures; in words where memory does not hold one."""
        try:
            batch = Batches(pictures, indices, self.transform, self.picture.size, len(indices))[0]
            rows, self.size = self.compute(batch.pictures, self.size)
        except MemoryError as error:  # as an error of a process it would come with a traceback in its words
            return str(error) or "a picture needs more memory than there is"
        return RowBatch(batch.start, rows, batch.bad, self.size)


class _Shares(Dataset["RowBatch | str"]):
    """Shares by number, embedded wherever they are asked for."""

    def __init__(self, own: _Own, pictures: Pictures, bounds: range, share: int) -> None:
        self.own, self.pictures, self.bounds, self.share = own, pictures, bounds, share

    def __len__(self) -> int:
        return math.ceil(len(self.bounds) / self.share)

    def __getitem__(self, number: int) -> "RowBatch | str":
        return self.own.embed(self.pictures, self.bounds[number * self.share : (number + 1) * self.share])


class _Held(NamedTuple):
    """Bytes of consecutive pictures of a stream, decoded when asked for."""

    start: int
    data: list[bytes]

    def __getitem__(self, index: Any) -> Any:
        return decode(self.data[index - self.start])


def _from_stream(
    own: _Own, stream: Iterator[bytes], bounds: range, share: int, n_processes: int
) -> Iterator[RowBatch | str]:
    """Shares of a stream, which is read here, two shares a process ahead."""
    shares = [bounds[at : at + share] for at in range(0, len(bounds), share)]
    with ProcessPoolExecutor(n_processes, get_context("fork"), initializer=_begin, initargs=(own,)) as pool:
        running = deque[Future[RowBatch | str]]()
        for indices in shares:
            running.append(pool.submit(_embed, _Held(indices.start, [*islice(stream, len(indices))]), indices))
            if len(running) > 2 * n_processes:
                yield running.popleft().result()
        yield from (future.result() for future in running)


_begun: list[_Own] = []  # in a process of a pool, which has it from the fork


def _begin(own: _Own) -> None:
    torch.set_num_threads(1)
    _begun.append(own)


def _embed(held: _Held, indices: range) -> RowBatch | str:
    return _begun[0].embed(held, indices)


def _raising(found: Iterator[RowBatch | str]) -> Iterator[RowBatch]:
    """The same; what was said in words, and what a process died of, is raised."""
    try:
        for one in found:
            if isinstance(one, str):
                raise MemoryError(one)
            yield one
    except (BrokenProcessPool, RuntimeError) as error:
        if isinstance(error, BrokenProcessPool) or "DataLoader worker (pid" in str(error):
            raise MemoryError(_KILLED) from None
        raise
