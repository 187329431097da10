"""One writer per entry of the cache.

The lock is the operating system's: it goes when its process ends, however it ends. It lies beside
the entries, since an entry may be removed while others wait for it, and is never deleted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

__all__ = ["make_folder", "owned", "owned_now"]


def make_folder(folder: Path) -> None:
    """Make a folder of the cache and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"could not make {folder}: {error.strerror}; choose a folder that can be written to with --cache-dir"
        ) from None


@contextmanager
def owned(root: Path, folder: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Own one entry; while another process does, call `waiting` every second."""
    lock = _lock(root, folder)
    while not _acquire(lock, seconds=1):
        waiting()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def owned_now(root: Path, folder: str) -> Iterator[bool]:
    """Own one entry if nobody else does; gives whether it is ours."""
    lock = _lock(root, folder)
    ours = _acquire(lock, seconds=0)
    try:
        yield ours
    finally:
        if ours:
            lock.release()


def _lock(root: Path, folder: str) -> filelock.BaseFileLock:
    make_folder(root / ".locks")
    return filelock.FileLock(root / ".locks" / f"{folder}.lock")


def _acquire(lock: filelock.BaseFileLock, *, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise OSError(f"could not lock {lock.lock_file}: {error.strerror}; choose another --cache-dir") from None
    return True
