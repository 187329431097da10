"""What the user of this program has said himself, and what may therefore be run and fetched.

Words that he wrote here (on the command line, in a configuration file that he named, in his own program) are marked as
`Written`. The same words read back from a record are plain text, for anyone may have made the record, and a mark is
never stored. So code that a plain word names is not run, and an address that it names is not fetched, unless

    he says so for this command        `--trust-code`, `trusting`
    he has used just the same before   its digest lies in his own folder of state; of code the place of its file, the
                                       bytes of that file, the function and its arguments, so that any change is new

A command that prints data (`pipe:`) is run where it is `Written` and never else, see `embed.streams`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Final

__all__ = ["UntrustedError", "Written", "allowed", "is_own", "trusting"]

_TRUSTING: ContextVar[bool] = ContextVar("trusting", default=False)
_SEEN: Final[set[str]] = set()  # by this process: where no folder of state can be written, that is all there is


class Written(str):
    """Words that the user of this program wrote himself; it is a `str` that may name code, an address or a command."""

    __slots__ = ()


class UntrustedError(ValueError):
    """Something that a record names and that the user has neither written here nor used before."""


@contextmanager
def trusting(wanted: bool = True) -> Iterator[None]:
    """Let what records name be run and fetched within this context, commands aside."""
    before = _TRUSTING.set(wanted or _TRUSTING.get())
    try:
        yield
    finally:
        _TRUSTING.reset(before)


def is_own(word: str) -> bool:
    """Whether a word is the user's, or counts as his within this context."""
    return isinstance(word, Written) or _TRUSTING.get()


def allowed(word: str, *what: object) -> bool:
    """Whether something may be used that a word names; what may is known from then on.

    Args:
        word: Of the user or of a record.
        what: All that it is, as plain values; something else must differ in them.
    """
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    known = digest in _SEEN or (_folder() / digest).is_file()
    if not (known or is_own(word)):
        return False
    _SEEN.add(digest)
    if not known:
        with suppress(OSError):  # no home, or none that can be written: he will be asked again
            _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            (_folder() / digest).touch()
    return True


def _folder() -> Path:
    """Where is kept what was used before; one empty file for each, deleted to forget it."""
    given = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    home = Path(given) if given else Path("~/.local/state").expanduser()
    return home / "hyperalign" / "used"
