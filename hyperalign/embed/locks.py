"""One writer per entry of the cache, and readers who are left in peace.

The lock is the operating system's: it goes when its process ends, however it ends. It lies beside
the entries, since an entry may be removed while others wait for it, and is never deleted.

Who reads entries, or is about to, says which in a file of its own beside a lock that it holds; no such entry is
removed (see `upkeep`). The file of a process that has gone counts for nothing.
"""

import os
import secrets
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import filelock

__all__ = [
    "CACHE",
    "Claim",
    "is_claimed",
    "make_folder",
    "make_room",
    "no_new_claims",
    "owned",
    "owned_file",
    "owned_now",
]

CACHE: Final = "--cache-dir"  # the option that names another cache
_END = "."  # behind the last name
_CLAIMS = "claims"  # lock of whoever makes a claim, or removes what nobody has claimed


class Claim:
    """Entries that this process reads: none of them is removed while this lives."""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        """Claim entries of a cache, there or not; a cache that cannot be written to has nobody who removes any."""
        lines = [*folders, _END]
        held, pid = ExitStack(), os.getpid()
        self.release = weakref.finalize(self, lambda: held.close() if os.getpid() == pid else None)
        if len(lines) == 1:
            return
        with suppress(OSError), no_new_claims(root):
            name = f"claim-{pid}-{secrets.token_hex(4)}"
            held.callback((root / ".locks" / f"{name}.lock").unlink, missing_ok=True)
            held.enter_context(owned_now(root, name))
            path = root / ".locks" / f"{name}.txt"
            held.callback(path.unlink, missing_ok=True)
            path.write_text("\n".join(lines), encoding="utf-8")

    def __enter__(self) -> "Claim":
        """For a while."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let others remove them."""
        self.release()


def is_claimed(root: Path, folder: str) -> bool:
    """Whether some living process reads an entry; call it with `no_new_claims`."""
    return any(folder in names or names[-1] != _END for names in _living_claims(root))


def _living_claims(root: Path) -> Iterator[list[str]]:
    """What each living process reads; of one that could not write all of it, as on a full disk, the end is missing."""
    for lock in (root / ".locks").glob("claim-*.lock"):
        names = lock.with_suffix(".txt")
        with owned_now(root, lock.stem) as ours:
            if not ours:
                yield names.read_text(encoding="utf-8").split("\n") if names.is_file() else [""]
        if ours:  # of a process that has gone
            names.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


@contextmanager
def no_new_claims(root: Path) -> Iterator[None]:
    """Let nobody claim an entry meanwhile."""
    with owned(root, _CLAIMS, lambda: None):
        yield


def make_folder(folder: Path, option: str = CACHE) -> None:
    """Make a folder and those above it; where that fails, say which option of the command names another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(f"make {folder}", error, option) from None


def make_room(folder: Path, option: str) -> None:
    """The same, and see that files can be written there, before hours are spent on what is to go into it."""
    make_folder(folder, option)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refused(f"write into {_shown(folder)}", error, option) from None


@contextmanager
def owned(root: Path, folder: str, waiting: Callable[[], None], option: str = CACHE) -> Iterator[None]:
    """Own one entry; while another process does, call `waiting` every second."""
    lock = filelock.FileLock(_lock_of(root, folder, option))
    while not _acquire(lock, root, option, seconds=1):
        waiting()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def owned_now(root: Path, folder: str, option: str = CACHE) -> Iterator[bool]:
    """Own one entry if nobody else does; gives whether it is ours."""
    with _owned_file(_lock_of(root, folder, option), root, option) as ours:
        yield ours


@contextmanager
def owned_file(path: Path, option: str) -> Iterator[bool]:
    """The same of a lock that lies anywhere; whoever has locked it removes its file."""
    with _owned_file(path, path.parent, option) as ours:
        yield ours


@contextmanager
def _owned_file(path: Path, root: Path, option: str) -> Iterator[bool]:
    lock = filelock.FileLock(path)
    ours = _acquire(lock, root, option, seconds=0)
    try:
        yield ours
    finally:
        if ours:
            lock.release()


def _lock_of(root: Path, folder: str, option: str) -> Path:
    """Where the lock of an entry lies."""
    try:
        (root / ".locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(f"write into {_shown(root)}", error, option) from None
    return root / ".locks" / f"{folder}.lock"


def _acquire(lock: filelock.BaseFileLock, root: Path, option: str, *, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise _refused(f"write into {_shown(root)}", error, option) from None
    return True


def _shown(folder: Path) -> Path:
    """A folder by its name, the working folder too."""
    return folder if folder.name else folder.resolve()


def _refused(what: str, error: OSError, option: str) -> OSError:
    """What a user is told of a folder that cannot be written to; the names of locks mean nothing to him."""
    return OSError(f"could not {what}: {error.strerror}; choose another folder with {option}")
