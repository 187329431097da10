"""Functions of a user's own files that build encoders: the one place where code runs that nobody has installed.

A file runs where its user has named the zoo that names it, where he trusts who did, or where he has run the same file,
unchanged, for the same function and arguments before; see `embed.consent`.
"""

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hyperalign.embed.consent import UntrustedError, allowed
from hyperalign.embed.plain import first_line
from hyperalign.embed.zoo import EncoderSpec

__all__ = ["hold_factory", "run_factory"]


def run_factory(spec: EncoderSpec) -> Any:
    """What the function of a factory returns.

    Raises:
        FileNotFoundError: If its file is not there.
        UntrustedError: If its user has not named it and does not know it.
        ValueError: If the file or the function fails.
    """
    file = hold_factory(spec)
    name = str(spec.factory).rpartition(":")[2]
    try:
        functions = _run_file(file)
    except Exception as error:  # a user's file may raise anything
        raise ValueError(f"encoder {spec.name!r}: {file} cannot be run: {_named(error)}") from None
    function: Callable[..., Any] | None = getattr(functions, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, dir(functions), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"encoder {spec.name!r}: {file} has no function {name!r}{hint}")
    try:
        return function(**spec.kwargs)
    except Exception as error:  # so may a user's function
        raise ValueError(f"encoder {spec.name!r}: {spec.factory} failed: {_named(error)}") from None


def hold_factory(spec: EncoderSpec) -> Path:
    """The file of a factory that may be run; nothing is.

    Raises:
        FileNotFoundError: If it is not there.
        UntrustedError: If its user has not named it and does not know it.
    """
    path, _, name = str(spec.factory).rpartition(":")
    file = spec.folder / path
    if not file.is_file():
        raise FileNotFoundError(f"encoder {spec.name!r}: no factory file {file}")
    of_it = str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest(), name, dict(spec.kwargs)
    if not allowed(spec.factory or "", "run", *of_it):
        raise UntrustedError(
            f"encoder {spec.name!r} is built by running {file}, which a record names and you did not; read that file, "
            "then give --trust-code (trust_code=True in Python), or its zoo as --zoo where there is that option"
        )
    return file


def _run_file(file: Path) -> ModuleType:
    """The module of a Python file, run once for each content and under a name that no import has."""
    digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:16]
    name = f"_hyperalign_factory_{digest}"
    if name not in sys.modules:
        location = importlib.util.spec_from_file_location(name, file)
        if location is None or location.loader is None:
            raise ValueError("not a Python file")
        module = importlib.util.module_from_spec(location)
        sys.modules[name] = module  # dataclasses look themselves up while their file runs
        try:
            location.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _named(error: Exception) -> str:
    """Kind and first line of somebody else's error."""
    return f"{type(error).__name__}: {first_line(error)}"
