"""Mutants hunted: each lives in a process of its own, forked warm, and the tests that run its line try to kill it.

`python -m trust.hunt FILE` reads, a line each, mutants with the tests that may kill them, and prints what became of
each. What is imported before the fork is all but hyperalign: the fault must be there when the package is imported.
The last line says what became of the package as it is under all tests that stood where a mutant was killed: only if
these pass does their failure say anything.
"""

import ast
import gc
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from trust.mutants import Mutant, mutate

_ROOT = Path(__file__).parents[2]
_WARM = (
    *("torch", "torchvision", "timm", "transformers", "sentence_transformers", "faiss", "pandas", "pyarrow.parquet"),
    *("scipy.stats", "optuna", "accelerate", "typer", "jinja2", "matplotlib.figure", "PIL.Image", "safetensors.torch"),
    *("pytest", "hypothesis", "torch.utils.flop_counter", "torchmetrics", "sqlalchemy", "bokeh.resources"),
)
_BYTES = 12 * 2**30  # that a mutant may take
_PATIENCE = 10  # seconds of the clock for each of the processor: a mutant may wait for ever without computing
_QUIET = ("-x", "-q", "--disable-plugin-autoload", "-p", "pytest_timeout", "-p", "no:cacheprovider")


class _Faulty(SourceFileLoader):
    """Loads a module with a fault."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str) -> CodeType:
        """The faulty code, never from a cache."""
        code: CodeType = compile(self.tree, self.path, "exec")
        return code


class _First(MetaPathFinder):
    """Finds that module before anyone else does."""

    def __init__(self, loader: _Faulty) -> None:
        self.loader = loader

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Its place, if it is asked for."""
        if fullname != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.loader.path, loader=self.loader)


def hunt(mutant: Mutant | None, tests: Sequence[str], seconds: int, root: Path = _ROOT) -> str:
    """Try to kill a mutant with some tests.

    Args:
        mutant: The fault; None for the package as it is.
        tests: By their names in pytest.
        seconds: Of the processor, that they may take.
        root: Folder of the repository.

    Returns:
        "killed", "timed out" or "survived".
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            _be_tested(mutant, tests, root, Path(folder))
        status = _await(child, _PATIENCE * seconds)
    late = status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
    return "timed out" if late else "survived" if status == 0 else "killed"


def _be_tested(mutant: Mutant | None, tests: Sequence[str], root: Path, folder: Path) -> None:
    """In the child: import the fault, run the tests, and leave without a word."""
    status = 70
    gc.freeze()  # pytest collects garbage five times at its end, and all that is warm would be looked through
    try:
        os.setpgid(0, 0)
        with (folder / "said").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
        os.chdir(root)
        if mutant is not None:
            path = root / "hyperalign" / Path(*mutant.module.split(".")).with_suffix(".py")
            tree = mutate(path.read_text(encoding="utf-8"), mutant)
            sys.meta_path.insert(0, _First(_Faulty(f"hyperalign.{mutant.module}", str(path), tree)))
        import pytest

        status = int(pytest.main([*tests, *_QUIET, f"--basetemp={folder / 'tmp'}"]))
    finally:
        os._exit(status)


def _await(child: int, seconds: int) -> int | None:
    """The child's exit status; None where its time was up. Whatever it has started ends with it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _end(child)
            return status
        time.sleep(0.02)
    _end(child)
    os.waitpid(child, 0)
    return None


def _end(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _main(file: str) -> None:
    for name in _WARM:
        with suppress(ImportError):
            importlib.import_module(name)
    killers: dict[str, None] = {}
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        mutant = Mutant(**{**task["mutant"], "lines": tuple(task["mutant"]["lines"])})
        begin, became = time.monotonic(), "survived"
        for tests, seconds in task["rounds"]:
            became = hunt(mutant, tests, seconds)
            if became != "survived":
                killers |= dict.fromkeys(tests)
                break
        _say(name=mutant.name, became=became, seconds=round(time.monotonic() - begin, 2))
    _say(name="", became=hunt(None, [*killers], 3600), tests=len(killers))


def _say(**words: str | float) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
