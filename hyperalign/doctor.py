"""What is installed, how fast this machine is, and what is wrong with it, each fault with what to do.

The common fault on Linux is a torchvision that was built for another torch: importing it fails late and darkly, so it
is looked for here by its own requirement.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from hyperalign.embed.zoo import load_zoo
from hyperalign.machine import find_hardware, find_versions, measure_matmul

__all__ = ["Diagnosis", "examine", "torchvision_fault"]

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
_FREE_BYTES = 2_000_000_000


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
    facts.append(("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "not set")))
    facts += _torch_facts(say) if not any(fault.startswith("torch ") for fault in problems) else []
    facts.append(("cache", f"{cache_dir}, {_free_bytes(cache_dir) / 1e9:.0f} GB free"))
    problems += [*_zoo_faults(), *_folder_faults(cache_dir)]
    return Diagnosis(facts, problems)


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
