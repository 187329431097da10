"""Rows of pictures from all cores of a CPU: each process decodes and embeds shares of its own, on one thread.

Threads of one network wait for one another at every layer, the more so beside processes that decode; processes that do
both wait for nobody (measured in reports/LOG.md). They are forked, so that all have the network and nobody copies it:
where a system starts processes anew, `feed` decodes beside one network instead.

A fork takes no threads along, and leaves locked what another thread held: a network may wait there without end. So
processes are given up where the next share takes much too long or meets an error, and who asked for them goes on alone.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from multiprocessing import get_all_start_methods, get_context, get_start_method, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.embed.feed import Batches, Transform, n_own_cores
from hyperalign.embed.networks import PictureInput
from hyperalign.embed.pictures import Blocks, Pictures, decode
from hyperalign.embed.tar_streams import in_order

__all__ = ["SHARE", "RowBatch", "can_spread", "embed_spread", "worthwhile_processes"]

SHARE: Final = 16  # pictures embedded at a time by a process; what a network makes of these stays near its core

_PATIENCE: Final = 60.0  # seconds, and as many times longer than a share takes here, until processes are given up
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


def can_spread(pictures: Pictures, *, device: str) -> bool:
    """Whether processes can embed pictures.

    The main thread alone forks them: what another thread computes at that moment may stay locked in them, and programs
    that embed in several threads do so in others than the main one.

    Args:
        pictures: Not those that lie in memory, which are faster to compute where they are.
        device: A CPU, of a system that forks.
    """
    start = get_start_method(allow_none=True) or get_all_start_methods()[0]
    main = threading.current_thread() is threading.main_thread()
    return device == "cpu" and start == "fork" and main and not isinstance(pictures, Blocks)


def worthwhile_processes(n_workers: int, n_threads: int) -> int:
    """As many as would be busy otherwise, threads that compute beside workers that decode; at most one a core."""
    return min(n_workers + n_threads, n_own_cores()) if n_workers else 0


def embed_spread(  # noqa: PLR0913 - which pictures, what becomes of them, and by how many
    pictures: Pictures,
    bounds: range,
    transform: Transform,
    picture: PictureInput,
    compute: Compute,
    *,
    batch_size: int,
    n_processes: int,
) -> Generator[RowBatch, None, None]:
    """Embed the pictures in `bounds`, in their order.

    Args:
        pictures: Of a disk or of a stream, which is read here alone.
        bounds: Consecutive indices.
        transform: Of one picture, to (3, H, W) uint8.
        picture: What `transform` does, in numbers.
        compute: Rows of (B, 3, H, W), so many at a time or fewer, and how many it were; on one thread.
        batch_size: Pictures of a share, best at most `SHARE`.
        n_processes: How many, at least 1; fewer where there are fewer shares.

    Yields:
        Rows of one share after the other, the first of them computed by this process, to see how long one takes. The
        generator ends early where the next share does not come in time, meets an error, or no processes can be
        started: what is left is for the caller to compute, and to see fail where it must. Closing it ends the
        processes.

    Raises:
        MemoryError: If a process was killed.
        RuntimeError: If a process ended by itself.
        Exception: What a stream raises, and what goes wrong in the first share.
    """
    own = _Own(pictures, transform, picture, compute, batch_size)
    shares = [bounds[at : at + batch_size] for at in range(0, len(bounds), batch_size)]
    work: Iterator[tuple[range, _Held | None]] = ((share, None) for share in shares)
    if (stream := in_order(pictures, bounds)) is not None:
        work = ((share, _Held(share.start, [*islice(stream, len(share))])) for share in shares)
    begin, first = time.perf_counter(), [own.embed(*one) for one in islice(work, 1)]
    crowd = max(1.0, n_processes / n_own_cores())
    seconds = _PATIENCE * (1 + crowd * (time.perf_counter() - begin))
    yield from first
    if len(shares) > 1:
        yield from _by_processes(own, work, min(n_processes, len(shares) - 1), seconds)


class _Held(NamedTuple):
    """Bytes of consecutive pictures of a stream, decoded when asked for."""

    start: int
    data: list[bytes]

    def __getitem__(self, index: Any) -> Any:
        return decode(self.data[index - self.start])


class _Own:
    """What one process does with its shares, and what it has learned of its memory."""

    def __init__(
        self, pictures: Pictures, transform: Transform, picture: PictureInput, compute: Compute, size: int
    ) -> None:
        self.pictures, self.transform, self.picture = pictures, transform, picture
        self.compute, self.size = compute, size

    def embed(self, share: range, held: _Held | None) -> RowBatch:
        """Rows of the pictures of one share, which a stream has handed over or a disk holds."""
        pictures = self.pictures if held is None else held
        batch = Batches(pictures, share, self.transform, self.picture.size, len(share))[0]
        rows, self.size = self.compute(batch.pictures, self.size)
        return RowBatch(batch.start, rows, batch.bad, self.size)


def _by_processes(
    own: _Own, work: Iterator[tuple[range, _Held | None]], n_processes: int, seconds: float
) -> Generator[RowBatch, None, None]:
    """Rows in the order of the shares, until all are done, or one fails or takes longer than `seconds`."""
    pool = ProcessPoolExecutor(n_processes, get_context("fork"), initializer=_begin, initargs=(own,))
    running, processes = deque[Future[RowBatch | None]](), list[BaseProcess]()
    try:
        while True:
            for share, held in islice(work, 2 * n_processes + 1 - len(running)):
                running.append(pool.submit(_embed, share, held))
            processes = processes or [*pool._processes.values()]  # for what `kill_workers` does from Python 3.14 on
            if not running:
                pool.shutdown()
                return
            if (found := _result(running.popleft(), seconds)) is None:
                return
            yield found
    except BrokenProcessPool:
        raise _reason(processes) from None
    except OSError:
        if processes:
            raise  # of a stream
        return  # they could not all be started
    finally:  # nobody waits for what is begun
        processes = processes or [*(pool._processes or {}).values()]  # where starting them was interrupted
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()


def _result(future: "Future[RowBatch | None]", seconds: float) -> RowBatch | None:
    for _ in range(10):  # in parts, so that the time in which the program is stopped is one of them
        with suppress(TimeoutError):
            return future.result(seconds / 10)
    return None


def _reason(processes: list[BaseProcess]) -> Exception:
    """Why the first of them ended; the others were told to."""
    end = time.perf_counter() + _PATIENCE
    while any(process.exitcode is None for process in processes) and time.perf_counter() < end:
        time.sleep(0.01)  # not joined: the pool waits for them too, and one of two that wait learns nothing
    codes = [code for code in (process.exitcode for process in processes) if code not in (None, 0, -signal.SIGTERM)]
    if not codes or -signal.SIGKILL in codes:
        return MemoryError(_KILLED)
    how = signal.strsignal(-codes[0]) if codes[0] < 0 else f"status {codes[0]}"
    return RuntimeError(f"a process that embedded pictures ended by itself: {how}")


_begun: list[_Own] = []  # in a process of a pool, which has it from the fork


def _begin(own: _Own) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_follow, daemon=True).start()
    _begun.append(own)


def _follow() -> None:
    """End with the process that this one works for."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _embed(share: range, held: _Held | None) -> RowBatch | None:
    """Rows of a share; None where anything goes wrong, which is for the process that asked to meet by itself."""
    try:
        return _begun[0].embed(share, held)
    except (Exception, SystemExit):
        return None
