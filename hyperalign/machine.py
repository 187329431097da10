"""Where a result was made: versions, hardware, commits, and the best matrix product this machine shows.

Nothing here names the person or the computer: no user, no host name, no path.
"""

import ctypes
import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import hyperalign

_LIBRARIES = (
    *("torch", "torchvision", "numpy", "timm", "sentence-transformers", "transformers", "safetensors", "faiss-cpu"),
    *("optuna", "pandas", "accelerate", "pyarrow", "pillow", "typer", "rich", "jinja2", "matplotlib"),
)


def find_versions() -> dict[str, str]:
    """Versions of Python, hyperalign and its libraries, read from their metadata; none of them is imported."""
    found = {"python": platform.python_version(), "hyperalign": hyperalign.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def find_hardware() -> dict[str, Any]:
    """Processor, usable cores and memory; devices only where something else has loaded torch's drivers already."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "n_cores": n_cores(),
        "memory_bytes": _memory_bytes(),
    }


def _memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def n_cores() -> int:
    """Cores that the system and a container's quota leave to this process; `LOKY_MAX_CPU_COUNT` leaves it fewer."""
    from loky import cpu_count  # only when asked: it takes longer than the rest of a command's start

    n_left: int = cpu_count()
    return n_left


def find_commits() -> dict[str, str | None]:
    """Commit of the checkout that hyperalign runs from, and of the working folder; None where there is none."""
    source = Path(hyperalign.__file__).resolve().parents[1]
    own = _commit(source) if (source / ".git").exists() else None
    return {"hyperalign": own, "working_folder": _commit(Path.cwd())}


def measure_matmul(*, size: int = 2048, n_repeats: int = 5, device: str = "cpu") -> float:
    """Best FLOP/s of a float32 (size, size) product over `n_repeats` tries, with torch's present thread setting."""
    import torch

    left, right = torch.rand(2, size, size, device=device).unbind()
    best = 0.0
    for _ in range(n_repeats + 1):  # the first one warms up, and may win too
        start = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for an accelerator
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def give_back() -> None:
    """Return freed memory to the system, where the C library can: what one part of a search held is the next one's."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def private_bytes() -> int:
    """Memory that is this process's alone and that no file stands behind, now; 0 where the system does not tell.

    Rows that are read by memory map are not in it: the system takes their pages back when it needs them.
    """
    found = re.search(r"^RssAnon:\s+(\d+) kB$", _text(Path("/proc/self/status")), flags=re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process can still take: what the system has, or what a container's limit leaves of it.

    Args:
        proc: The system's account of itself.
        cgroups: The limits of containers, of version 2 or 1.

    Returns:
        None where the system does not tell.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(proc / "meminfo"), flags=re.MULTILINE)
    left = [1024 * int(found[1])] if found else []
    own = _text(proc / "self" / "cgroup")
    left += _left_in_group(cgroups, _group(own, ""), "memory.max", "memory.current", "inactive_file")
    old = _group(own, "memory")
    left += _left_in_group(
        cgroups / "memory", old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )
    return min(left, default=None)


def _group(own: str, controller: str) -> str:
    """This process's group of version 2 (no controller's name), or of version 1."""
    for line in own.splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if controller in names.split(","):
            return path.strip("/")
    return ""


def _left_in_group(root: Path, group: str, limit: str, used: str, spare: str) -> list[int]:
    """What each limit around a group leaves; pages of files that nobody needs count as free."""
    left = []
    folder = root / group
    for here in (folder, *folder.parents):
        most, now = _text(here / limit).strip(), _text(here / used).strip()
        if most.isdigit() and now.isdigit():
            idle = re.search(rf"^{spare} (\d+)$", _text(here / "memory.stat"), flags=re.MULTILINE)
            left.append(max(0, int(most) - int(now) + (int(idle[1]) if idle else 0)))
        if here == root:
            break
    return left


def _text(path: Path) -> str:
    """A file of the system's; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _processor() -> str:
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit(folder: Path) -> str | None:
    """HEAD of the repository around `folder`, marked where files differ from it; None outside of one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head} with changes" if changed else head


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()


def peak_bytes(*, with_children: bool = False) -> int:
    """Largest resident memory of this process so far; 0 where the system does not tell.

    Args:
        with_children: Or of one that it started, where that was larger and has ended.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 0
    whose = [resource.RUSAGE_SELF, *([resource.RUSAGE_CHILDREN] if with_children else [])]
    peak = max(resource.getrusage(one).ru_maxrss for one in whose)
    return peak if platform.system() == "Darwin" else peak * 1024
