"""Where a result was made: versions, hardware, commits, and the best matrix product this machine shows.

Nothing here names the person or the computer: no user, no host name, no path.
"""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import hyperalign

_LIBRARIES = (
    *("torch", "torchvision", "numpy", "timm", "sentence-transformers", "transformers", "safetensors", "faiss-cpu"),
    *("optuna", "pandas", "accelerate", "pyarrow", "pillow", "typer", "rich", "jinja2"),
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
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def n_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
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


def peak_bytes() -> int:
    """Largest resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
