"""Cases of hostile input in a process of their own, watched: what they raise, how long they take, what they touch.

    cd tests; python -m trust.hostile zoo 12345      the one case of that seed, with its traceback
    cd tests; python -m trust.hostile zoo 0:1000     a thousand of them

A case is a function of a seeded generator: it makes an input and hands it to the program as a command would. It is
survived where it ends in a result or in the one sentence that a user is told (`hyperalign.cli.manners`), raised by the
program itself. Lost are: any other exception, more than ten seconds, a write outside the case's folder, code run from
data, a process started, a connection opened, a death of the process.
"""

import dis
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import hyperalign
from hyperalign.cli.manners import _sentence

__all__ = ["MAX_SECONDS", "Case", "Finding", "Harm", "Open", "fuzz", "room_in_memory"]

Case = Callable[[random.Random], None]
Open = Callable[[Path], Case]

MAX_SECONDS = 10
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it
_WARM = 60  # cases before code is watched: what they import stays imported
_MOST_MEMORY = 4 << 30  # bytes beyond what the process has; asking for more is an error
_PACKAGE = str(Path(str(hyperalign.__file__)).parent) + os.sep
_INSTALLED = tuple({_PACKAGE, *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib"))})
_RAISE = dis.opmap["RAISE_VARARGS"]
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"}
_RUNS = _STARTS | {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open"}
_WRITES = {  # by event, which of its arguments are paths
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime", "os.chown"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    **{"os.symlink": (1,), "sqlite3.connect": (0,), "shutil.rmtree": (0,)},
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A case that was not survived.

    Attributes:
        seed: Of the case.
        what: What happened, in a line; alike for cases of the same cause.
        count: Cases of the same cause.
    """

    seed: int
    what: str
    count: int = 1


@dataclass
class Harm:
    """What many cases came to.

    Attributes:
        n_cases: Cases that were tried.
        n_refused: Those that ended in a sentence.
        n_lost: Those that were not survived.
        slowest: Seconds of the slowest case.
        seconds: Of all of them, on the clock.
        cpu_seconds: Of all of them, of a processor.
        findings: One for each cause.
    """

    n_cases: int = 0
    n_refused: int = 0
    n_lost: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


_deadline = [0.0]  # of the case at hand


class _Hang(BaseException):
    """A case took too long."""


def fuzz(opens: Open, name: str, seeds: range) -> Harm:
    """Try the cases of some seeds, in a child; one that kills it is a finding, and another child goes on behind it."""
    total, start, begun = Harm(), seeds.start, time.monotonic()
    causes: dict[str, Finding] = {}
    shared = mmap.mmap(-1, 8)
    with room_in_memory() as room:
        while start < seeds.stop:
            out = room / "harm.json"
            out.unlink(missing_ok=True)
            died = _in_child(opens, name, range(start, seeds.stop), room, shared)
            (reached,) = struct.unpack("q", shared[:8])
            if out.is_file() and died is None:
                part = json.loads(out.read_text())
                start = seeds.stop
            else:
                found = {"seed": reached, "what": f"the process died: {died}", "count": 1}
                part = {"n_cases": reached - start + 1, "n_lost": 1, "findings": [found]}
                start = reached + 1
            for key in ("n_cases", "n_refused", "n_lost"):
                setattr(total, key, getattr(total, key) + part.get(key, 0))
            total.slowest = max(total.slowest, part.get("slowest", 0.0))
            total.cpu_seconds += part.get("cpu_seconds", 0.0)
            for found in part["findings"]:
                known = causes.get(found["what"])
                causes[found["what"]] = Finding(**{**found, "count": found["count"] + (known.count if known else 0)})
    total.seconds, total.findings = time.monotonic() - begun, list(causes.values())
    return total


@contextmanager
def room_in_memory() -> Iterator[Path]:
    """A folder in memory where there is one, removed in the end."""
    home = Path("/dev/shm")
    room = Path(tempfile.mkdtemp(prefix="hostile-", dir=home if os.access(home, os.W_OK) else None))
    try:
        yield room.resolve()
    finally:
        shutil.rmtree(room, ignore_errors=True)


def judged(error: BaseException) -> str | None:
    """The kind and place of an exception that is no sentence of the program's own; None for one that is."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ClickException" in kinds or "Exit" in kinds:
        return None
    said = isinstance(error, (ValueError, KeyError, OSError, ImportError)) and _sentence(error) is not None
    if said and (_own(error.__traceback__) or (isinstance(error, OSError) and error.strerror)):
        return None
    return f"{type(error).__name__} at {_place(error.__traceback__)}"


def _own(trace: TracebackType | None) -> bool:
    """Whether an exception comes from a `raise` of the package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE


def _place(trace: TracebackType | None) -> str:
    """The last line of the package that an exception has passed."""
    place = "?"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            place = f"{file.removeprefix(_PACKAGE)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class _Watch:
    """What a case touches, told by the interpreter's own audit events."""

    def __init__(self, room: Path) -> None:
        self.roots = (str(room) + os.sep, "/dev/null", "/dev/shm/sem.", f"{tempfile.gettempdir()}/torchinductor_")
        self.armed, self.code, self.seen = False, False, list[str]()

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in ("open", *_WRITES):
            paths = [given[0]] if event == "open" and _is_write(given) else []
            paths = paths if event == "open" else [given[which] for which in _WRITES[event]]
            self.seen += [f"{event} of {path!r}" for path in paths if self._is_outside(path)]
        elif event in _RUNS:
            self.seen.append(f"{event} {str(given)[:80]}")
        elif self.code and event == "exec":
            file = getattr(given[0], "co_filename", "?")
            if not file.startswith((*_INSTALLED, "<frozen ")) and not _by_a_library():
                self.seen.append(f"exec of {file}")

    def _is_outside(self, path: Any) -> bool:
        if isinstance(path, int) or path in ("", ":memory:"):
            return False
        whole = os.path.realpath(os.fsdecode(path).removeprefix("file:"))
        return not (whole + os.sep).startswith(self.roots)


def _by_a_library() -> bool:
    """Whether generated code is a library's own: a named tuple, a data class, a template, or part of an import."""
    frame = sys._getframe(2)
    makers = ("/collections/__init__.py", "/dataclasses.py", "/jinja2/", "<frozen importlib", "/_collections_abc.py")
    while frame is not None:
        if any(maker in frame.f_code.co_filename for maker in makers):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _is_write(given: tuple[Any, ...]) -> bool:
    return bool(given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


def _in_child(opens: Open, name: str, seeds: range, room: Path, shared: mmap.mmap) -> str | None:
    """Run cases in a child and wait for it; how it died, where it did."""
    shared[:8] = struct.pack("q", seeds.start)
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            harm = _run(opens, name, seeds, room, shared)
            (room / "harm.json").write_text(json.dumps(asdict(harm)))
            status = 0
        except BaseException:  # of the tests themselves
            (room / "error.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    last, since = -1, time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        (reached,) = struct.unpack("q", shared[:8])
        if reached != last:
            last, since = reached, time.monotonic()
        elif time.monotonic() - since > 60 * MAX_SECONDS:  # deep in a library, where no signal is heard
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    if (room / "error.txt").is_file():
        raise RuntimeError((room / "error.txt").read_text())
    return None if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


def _run(opens: Open, name: str, seeds: range, room: Path, shared: mmap.mmap) -> Harm:
    """The child: cases one after the other."""
    _quieten()
    inside = room / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    os.chdir(inside)
    case, watch, harm = opens(inside), _Watch(inside), Harm()
    causes: dict[str, Finding] = {}
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, _stop)
    for seed in range(-_WARM, 0):
        _one(case, name, seed, watch)
    _limit_memory()
    watch.code = True
    before = time.process_time()
    around = {path.name for path in room.iterdir()}
    for seed in seeds:
        shared[:8] = struct.pack("q", seed)
        begun = _lived()
        refused, faults = _one(case, name, seed, watch)
        took = _lived() - begun
        faults += [f"it took {took:.0f} s"] if took > MAX_SECONDS else []
        harm.n_cases, harm.slowest = harm.n_cases + 1, max(harm.slowest, took)
        harm.n_refused, harm.n_lost = harm.n_refused + refused, harm.n_lost + bool(faults)
        for what in faults:
            known = causes.get(what)
            causes[what] = Finding(seed=known.seed if known else seed, what=what, count=known.count + 1 if known else 1)
    beyond = {path.name for path in room.iterdir()} - around
    if beyond:
        causes["beside"] = Finding(seed=seeds.start, what=f"files beside the case's folder: {sorted(beyond)}")
        harm.n_lost += 1
    harm.findings, harm.cpu_seconds = list(causes.values()), time.process_time() - before
    return harm


def _one(case: Case, name: str, seed: int, watch: _Watch) -> tuple[bool, list[str]]:
    """One case: whether it was refused, and what was wrong with it."""
    faults: list[str] = []
    refused = False
    _deadline[0] = _lived() + MAX_SECONDS
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS + 1)
    watch.armed = True
    try:
        case(random.Random(f"{name} {seed}"))
    except _Hang:
        faults.append("it hung")
    except Exception as error:
        why = judged(error)
        refused = why is None
        faults += [] if why is None else [why]
    finally:
        watch.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    faults += watch.seen
    watch.seen = []
    return refused, faults


def _stop(signum: int, frame: object) -> None:
    left = _deadline[0] - _lived()
    if left <= 0:
        raise _Hang
    signal.setitimer(signal.ITIMER_REAL, left + 1)


def _lived() -> float:
    """Seconds on the clock less those in which this process was ready and others had the processors."""
    try:
        waited = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        waited = 0.0
    return time.monotonic() - waited


def _quieten() -> None:
    """Nothing on the terminal from libraries."""
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _limit_memory() -> None:
    """An absurd size in a header is an error, and not the end of the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[5]) if Path("/proc/self/statm").exists() else 0
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + _MOST_MEMORY, hard))


def main() -> None:
    """Try one case, or a range of them."""
    from trust.surfaces import SURFACES

    name, words = sys.argv[1:3]
    low, _, high = words.partition(":")
    if high:
        harm = fuzz(SURFACES[name].opens, name, range(int(low), int(high)))
        print(json.dumps(asdict(harm), indent=1))  # noqa: T201
        return
    with room_in_memory() as room:
        os.chdir(room)
        SURFACES[name].opens(room)(random.Random(f"{name} {int(low)}"))


if __name__ == "__main__":
    main()
