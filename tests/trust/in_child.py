"""A plan or a search in a process of its own, which says what importing has taken; its parent watches its memory."""

import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_IMPORTED = ("hyperalign.pipeline", "hyperalign.plan", "hyperalign.embed.encoders", "hyperalign.show.page", "faiss")
_EVERY = 0.004  # seconds between two looks at a child's memory


class Watched(NamedTuple):
    """What a child has taken, private memory alone.

    Attributes:
        imported: Bytes when all was imported and nothing done.
        peak: Most bytes seen after that.
        said: What it printed last.
        seconds: From its start.
    """

    imported: int
    peak: int
    said: Any
    seconds: float


def watch(what: str, configuration: Mapping[str, Any], cache_dir: Path, out: Path) -> Watched:
    """Run `plan` or `search` in a child and look at its memory meanwhile."""
    words = [sys.executable, __file__, what, json.dumps(configuration), str(cache_dir), str(out)]
    begin, peak = time.monotonic(), 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        imported = json.loads(child.stdout.readline())
        while child.poll() is None:
            peak = max(peak, private(child.pid))
            time.sleep(_EVERY)
        said = json.loads(child.stdout.read())
    return Watched(imported, peak, said, time.monotonic() - begin)


def private(pid: int | str) -> int:
    """Private memory of a process in bytes; 0 where it is gone."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), flags=re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _main(what: str, configuration: str, cache_dir: str, out: str) -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    from hyperalign.pipeline import search
    from hyperalign.plan import plan
    from hyperalign.request import from_record
    from hyperalign.run import load_run
    from hyperalign.show.page import write_page

    print(private("self"), flush=True)  # noqa: T201 - to the parent
    config, cache = from_record(json.loads(configuration)), Path(cache_dir)
    said: dict[str, int | str]
    if what == "plan":
        made = plan(config, cache_dir=cache, progress=_quiet)
        said = {"memory_bytes": made.memory_bytes, "disk_bytes": made.disk_bytes}
    else:
        run = search(config, cache_dir=cache, out=Path(out), progress=_quiet, say=_quiet)
        write_page(load_run(run))
        said = {"run": str(run)}
    print(json.dumps(said), flush=True)  # noqa: T201 - to the parent


def _quiet(*_: object) -> None:
    """Tell nobody."""


if __name__ == "__main__":
    _main(*sys.argv[1:])
