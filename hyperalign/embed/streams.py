"""Files that are read from begin to end and never kept: what a command prints, and objects of a store.

    pipe:curl -s https://host/{000..099}.tar        each command's output is one file
    s3://bucket/{000..099}.tar                      whatever fsspec opens: s3, gs, http, hf, memory, file

A command runs only where its user wrote it himself: on the command line, in his configuration file or in his program.
Such words are marked as `Written` (see `embed.consent`); the same words read back from the record of a run are not, and
are refused. An address that a record names is fetched where its user has fetched it before, or says that it may be.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Final, Self

from hyperalign.embed.consent import UntrustedError, Written, allowed
from hyperalign.embed.samples import expand

__all__ = ["Reading", "is_command", "is_stream", "label", "stamp_of", "streams_of"]

TRIES: Final = 4  # of one file, all its faults together
_PAUSE: Final = 1.0  # seconds before the second try; twice as long before each further one
_CHUNK: Final = 1 << 20
_COMMAND: Final = "pipe:"


def is_stream(source: str) -> bool:
    """Whether a source is a command or an address."""
    return is_command(source) or "://" in source


def is_command(source: str) -> bool:
    """Whether a source is what a command prints."""
    return source.startswith(_COMMAND)


def streams_of(source: str) -> list[str]:
    """The commands or addresses that a source with braces stands for.

    Raises:
        ValueError: If it is a command that its user did not write here, or an address that he does not know.
    """
    if is_command(source) and not isinstance(source, Written):
        raise ValueError(
            f"a command is run only where you write it yourself, as --data of search, embed or study, or as --on of "
            f"evaluate; {source[:80]!r} comes from a record or another place, and is not run"
        )
    names = list(dict.fromkeys(expand(source)))
    if not is_command(source) and not all(map(_is_here, names)) and not allowed(source, "fetch", source):
        raise UntrustedError(
            f"the data would be fetched from {source.partition('?')[0][:200]!r}, which a record names and you did not; "
            "if you know that address, give --trust-code"
        )
    return names


def _is_here(name: str) -> bool:
    """Whether an address is of this machine, so that nothing is fetched."""
    return name.startswith(("file://", "memory://")) and "::" not in name


def label(name: str) -> str:
    """What to call a command or an address: the last name in it that ends with .tar, without what may be secret."""
    found = re.findall(r"(?:[\w.-]+/)*[\w.-]+\.tar", name.partition("://")[2] or name)
    return found[-1] if found else name.partition("?")[0][:60]


def stamp_of(name: str) -> str:
    """What tells one state of an object from another; of a command's output nothing does."""
    if is_command(name):
        return "command"
    files, path = _file_system(name)
    facts = _of_store(name, lambda: files.info(path))
    known = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "generation", "version_id")
    return repr([(key, str(facts[key])) for key in known if key in facts])


class Reading:
    """One stream, read from begin to end; a fault of the network or of a command is met by trying again.

    After a fault the stream is opened anew and what was read already is passed over.
    """

    def __init__(self, name: str, *, wait: Callable[[float], None] = time.sleep) -> None:
        """Nothing is opened yet; `wait` is called with seconds between two tries."""
        self.name, self.position = name, 0
        self._wait, self._faults = wait, 0
        self._file: _Pipe | IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Read in a context, so that no command is left running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        self._close()

    def read(self, n_bytes: int) -> bytes:
        """Read up to so many bytes; fewer at the end alone.

        Raises:
            OSError: If the stream has failed too often.
            FileNotFoundError: If there is no such object.
        """
        parts, missing = list[bytes](), n_bytes
        while missing and (data := self._some(missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Pass over bytes; nothing of them is kept."""
        assert position >= self.position, "a stream is read forwards"
        while self.position < position and self._some(min(_CHUNK, position - self.position)):
            pass

    def _some(self, most: int) -> bytes:
        """A few bytes from where the stream stands; none at its end."""
        while True:
            try:
                if self._file is None:
                    self._file = _open(self.name)
                    _pass_over(self._file, self.position)
                data = self._file.read(most)
                if not data and isinstance(self._file, _Pipe):
                    self._file.check()
            except FileNotFoundError:
                raise FileNotFoundError(f"there is no {label(self.name)}; look at the address") from None
            except (ImportError, MemoryError, ValueError):
                raise
            except Exception as error:  # every store has its own
                self._fail(error)
            else:
                self.position += len(data)
                return bytes(data)

    def _fail(self, error: Exception) -> None:
        self._close()
        self._faults += 1
        if self._faults >= TRIES:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise OSError(f"{label(self.name)} could not be read in {TRIES} tries: {why}") from None
        self._wait(_PAUSE * 2 ** (self._faults - 1))

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                file.close()


class _Pipe:
    """What a command prints; the shell is the user's, since the words are."""

    def __init__(self, command: str) -> None:
        self._said = tempfile.TemporaryFile()
        posix = os.name == "posix"
        bash = shutil.which("bash") if posix else None  # where Windows has one, its shell is still another
        self._process = subprocess.Popen(
            f"set -o pipefail; {command}" if bash else command,  # a pipe's first fault counts too
            shell=True,
            executable=bash,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=posix,
        )

    def read(self, most: int) -> bytes:
        assert self._process.stdout is not None, "it was asked for"
        return self._process.stdout.read(most)

    def check(self) -> None:
        """At the end: an output that ends because its command has failed is not whole."""
        if status := self._process.wait():
            self._said.seek(0)
            words = self._said.read()[-2000:].decode(errors="replace").strip().splitlines()
            raise OSError(f"its command ended with status {status}" + (f" ({words[-1]})" if words else ""))

    def close(self) -> None:
        """End the command and those that it has started."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                if os.name == "posix":
                    os.killpg(self._process.pid, signal.SIGTERM)
                else:
                    self._process.terminate()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()
        self._said.close()


def _open(name: str) -> "_Pipe | IO[bytes]":
    if is_command(name):
        return _Pipe(name.removeprefix(_COMMAND))
    files, path = _file_system(name)
    opened: IO[bytes] = files.open(path, "rb")
    return opened


def _pass_over(file: "_Pipe | IO[bytes]", n_bytes: int) -> None:
    """Come to where a stream was left."""
    if n_bytes and not isinstance(file, _Pipe) and file.seekable():
        file.seek(n_bytes)
        return
    while n_bytes:
        data = file.read(min(_CHUNK, n_bytes))
        if not data:
            raise OSError("it is shorter than before")
        n_bytes -= len(data)


def _file_system(name: str) -> tuple[Any, str]:
    """The store that an address belongs to, and the object's name there."""
    try:
        import fsspec
    except ImportError:
        raise ImportError(
            f"{label(name)} is an address, which needs fsspec; install it with `pip install 'hyperalign[streams]'`"
        ) from None
    try:
        files, path = fsspec.core.url_to_fs(name)
    except ImportError as error:
        raise ImportError(f"{label(name)} needs another library: {error}") from None
    return files, str(path)


def _of_store(name: str, ask: Callable[[], Any]) -> Any:
    """What a store answers, asked again where it does not."""
    for faults in range(1, TRIES + 1):
        try:
            return ask()
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {label(name)}; look at the address") from None
        except Exception as error:  # every store has its own
            if faults == TRIES:
                why = " ".join(str(error).split())[:200] or type(error).__name__
                raise OSError(f"{label(name)} could not be reached in {TRIES} tries: {why}") from None
            time.sleep(_PAUSE * 2 ** (faults - 1))
    raise AssertionError("the last fault has raised")
