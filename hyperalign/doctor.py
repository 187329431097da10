"""What is installed, how fast this machine is, and what is wrong with it, each fault with what to do.

The common fault on Linux is a torchvision that was built for another torch: importing it fails late and darkly, so it
is looked for here by its own requirement. What is looked at comes in by arguments, so that every fault can be shown to
be found on a machine that does not have it.
"""

import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from hyperalign.embed.zoo import load_zoo
from hyperalign.machine import available_bytes, find_hardware, find_versions, measure_matmul

__all__ = [
    "Diagnosis",
    "encoding_fault",
    "examine",
    "file_system",
    "network_fault",
    "openmp_fault",
    "shared_memory_fault",
    "torchvision_fault",
]

_NEEDED = {  # what is imported, and what is installed for it
    "torch": "torch",
    "torchvision": "torch torchvision",
    "numpy": "numpy",
    "timm": "timm",
    "sentence_transformers": "sentence-transformers",
    "safetensors": "safetensors",
    "faiss": "faiss-cpu",
    "pandas": "pandas",
    "accelerate": "accelerate",
    "PIL": "pillow",
}
_EXTRAS = {  # what is imported, and the extra of this package that brings it
    "datasets": "datasets",
    "fsspec": "streams",
    "psycopg": "postgresql",
    "onnxruntime": "onnx",
    "py3langid": "filter",
    "open_clip": "open-clip",
    "clip_benchmark": "clip-benchmark",
    "optuna_dashboard": "dashboard",
}
_FREE_BYTES = 2_000_000_000
_SHARED_BYTES = 256 * 2**20  # batches of pictures on their way from the processes that decode them
_NETWORKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs"}


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        facts: Names and values, in the order to show.
        problems: Sentences, each with what to do; empty if nothing is wrong.
    """

    facts: list[tuple[str, str]]
    problems: list[str]


def examine(*, cache_dir: Path, say: Callable[[str], None]) -> Diagnosis:
    """Look at this installation and this machine; takes some seconds, for it imports what it judges."""
    problems = [fault for fault in (torchvision_fault(),) if fault]
    problems += _import_faults(say)
    facts = list(find_versions().items())
    facts += [(name, str(value)) for name, value in find_hardware().items()]
    facts.append(("memory free", _in_gigabytes(available_bytes())))
    facts.append(("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "not set")))
    facts += _torch_facts(say) if not any(fault.startswith("torch ") for fault in problems) else []
    kind = file_system(cache_dir)
    facts.append(("cache", f"{cache_dir}, {_free_bytes(cache_dir) / 1e9:.0f} GB free" + (f", {kind}" if kind else "")))
    lacking = [extra for module, extra in _EXTRAS.items() if find_spec(module) is None]
    facts.append(("extras not installed", ", ".join(lacking) or "none"))
    problems += [*_zoo_faults(), *_folder_faults(cache_dir)]
    named = locale.getpreferredencoding(False), sys.getfilesystemencoding()
    more = network_fault(cache_dir, kind), encoding_fault(named), shared_memory_fault(Path("/dev/shm")), openmp_fault()
    return Diagnosis(facts, [*problems, *(fault for fault in more if fault)])


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of the file system that a folder is on, or will be; empty where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    there, found = _nearest(folder).resolve(), (0, "")
    for line in lines:
        _, place, kind, *_ = [*line.split(), "", "", ""]
        point = Path(place.replace("\\040", " "))
        if point in (there, *there.parents):
            found = max(found, (len(point.parts), kind))
    return found[1]


def network_fault(folder: Path, kind: str) -> str | None:
    """Whether a cache lies where locks between machines cannot be relied on."""
    if kind not in _NETWORKS:
        return None
    return (
        f"the cache {folder} is on a network file system ({kind}), where two machines may both believe that they own "
        "an entry: nothing is spoiled, but rows may be computed twice; choose a local folder with --cache-dir, or fill "
        "the cache from one machine first with `hyperalign embed`"
    )


def encoding_fault(encodings: Sequence[str]) -> str | None:
    """Whether text or file names are in something else than UTF-8."""
    other = [name for name in encodings if name.lower().replace("-", "").replace("_", "") != "utf8"]
    if not other:
        return None
    return (
        f"this system writes text as {other[0]}, not as UTF-8, so names and captions may come out wrong; set "
        "PYTHONUTF8=1, or LANG to a UTF-8 locale such as C.UTF-8"
    )


def shared_memory_fault(folder: Path, total: Callable[[Path], int] = lambda path: shutil.disk_usage(path).total) -> str:
    """Whether processes that decode pictures have too little room to hand them over, as in containers."""
    if not folder.is_dir() or total(folder) >= _SHARED_BYTES:
        return ""
    return (
        f"{folder} holds {total(folder) / 2**20:.0f} MB, too little for processes that decode pictures; give the "
        f"container more, as with `docker run --shm-size=1g`"
    )


def openmp_fault(
    system: str = platform.system(),
    files: Callable[[str], list[metadata.PackagePath] | None] = metadata.files,
) -> str | None:
    """Whether torch and faiss each bring an OpenMP of their own, which macOS does not forgive."""
    if system != "Darwin":
        return None
    bring = []
    for name in ("torch", "faiss-cpu"):
        try:
            there = files(name) or []
        except metadata.PackageNotFoundError:
            continue
        bring += [name] if any("libomp" in Path(str(file)).name for file in there) else []
    if len(bring) < 2:
        return None
    return (
        f"{' and '.join(bring)} each bring an OpenMP library, and macOS may stop a program that loads both (OMP: Error "
        "#15) or make it hang; set OMP_NUM_THREADS=1, or install both from conda-forge, where they share one"
    )


def _in_gigabytes(n_bytes: int | None) -> str:
    return "not told by this system" if n_bytes is None else f"{n_bytes / 1e9:.1f} GB"


def _import_faults(say: Callable[[str], None]) -> Iterator[str]:
    for name, remedy in _NEEDED.items():
        say(f"importing {name}")
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if name != "torchvision":  # everything can be done without it
                yield f"{error.name} is not installed; `pip install .` installs all that is needed"
        except Exception as error:  # a binary that does not fit raises anything
            words = " ".join(str(error).split())
            yield f"{name} cannot be imported ({words}); run `pip install --upgrade {remedy}`"


def torchvision_fault(
    version: Callable[[str], str] = metadata.version,
    requires: Callable[[str], list[str] | None] = metadata.requires,
) -> str | None:
    """Whether torchvision was built for another torch than the one that is installed, by what it says it requires."""
    try:
        torch, torchvision = version("torch"), version("torchvision")
        needed = [line.replace(" ", "") for line in requires("torchvision") or []]
    except metadata.PackageNotFoundError:
        return None
    pins = [line.strip("()").replace("(", "") for line in needed if line.replace("(", "").startswith("torch==")]
    wanted = pins[0].removeprefix("torch==") if pins else ""
    (release, _, build), (_, _, other_build) = torch.partition("+"), torchvision.partition("+")
    if wanted and release != wanted.partition("+")[0]:
        return (
            f"torchvision {torchvision} was built for torch {wanted}, but torch {torch} is installed; "
            f"run `pip install --upgrade torch torchvision`, which chooses two that fit"
        )
    if build and other_build and build != other_build:
        return (
            f"torch {torch} and torchvision {torchvision} are builds for different devices; install both from one "
            f"index, such as `pip install torch torchvision --index-url https://download.pytorch.org/whl/{build}`"
        )
    return None


def _torch_facts(say: Callable[[str], None]) -> list[tuple[str, str]]:
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say("multiplying matrices")
    speed = measure_matmul()
    return [
        ("threads", str(torch.get_num_threads())),
        ("CUDA devices", ", ".join(devices) or "none"),
        ("MPS (Apple)", "yes" if torch.backends.mps.is_available() else "no"),
        ("matrix product", f"{speed / 1e9:.0f} GFLOP/s, float32, {torch.get_num_threads()} threads"),
    ]


def _zoo_faults() -> Iterator[str]:
    """The weights of the embedded zoo are part of the installation."""
    try:
        specs = load_zoo("embedded")
    except (ValueError, FileNotFoundError) as error:
        yield f"the embedded zoo cannot be read ({error}); install hyperalign again"
        return
    missing = [spec.name for spec in specs if spec.checkpoint and not (spec.folder / spec.checkpoint).exists()]
    if missing:
        yield f"weights of the embedded zoo are missing: {', '.join(missing)}; install hyperalign again"


def _folder_faults(folder: Path) -> Iterator[str]:
    there = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield f"{there} cannot be written to ({error.strerror}); choose another folder with --cache-dir"
    if _free_bytes(folder) < _FREE_BYTES:
        yield f"{there} has less than {_FREE_BYTES / 1e9:.0f} GB free; choose another folder with --cache-dir"


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_nearest(folder)).free


def _nearest(folder: Path) -> Path:
    """`folder`, or the first folder above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
