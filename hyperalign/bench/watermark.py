"""How much memory something takes: the high-water mark of this process, set back before it begins.

`getrusage` knows one peak for the whole life of a process, and a child begins with its parent's; what stands here is
VmHWM of /proc, which Linux sets back when asked and begins anew with a program.
"""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperalign.machine import give_back

__all__ = ["Growth", "set_back", "watched"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Growth:
    """What a block of code took; `n_bytes` is known when it is left, None where the system does not tell."""

    n_bytes: int | None = None


@contextmanager
def watched() -> Iterator[Growth]:
    """Watch how far resident memory rises above where it stands now, memory-mapped files included."""
    growth, start = Growth(), set_back()
    yield growth
    high = _read("VmHWM")
    if start is not None and high is not None:
        growth.n_bytes = max(0, high - start)


def set_back() -> int | None:
    """Give back what is free, set the high-water mark to what is left and say how much that is."""
    gc.collect()
    give_back()  # else a block that was freed before hides one that is taken now
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    return _read("VmHWM")


def _read(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
