"""Plain data from files that anyone may have written: read as JSON, and held against the types that it should have.

A reader that has asked `misfit` can use what it has read without a second thought: keys are there, numbers are numbers
that a machine can hold, texts are texts. NaN and infinities are no JSON here; our own writers put null in their place.
"""

import json
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["first_line", "misfit", "parse_json"]

_LARGEST: Final = 10**30  # FLOPs of anything; what a float holds without fuss
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}
_SHOWN = 40


def parse_json(text: str | bytes) -> Any:
    """Read JSON; whatever is wrong with it is a ValueError.

    Raises:
        ValueError: If it is no JSON, no UTF-8, nested beyond what can be read, or holds NaN or an infinity.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(str(error)) from None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def misfit(value: Any, kind: Any, where: str = "it") -> str | None:
    """Say where plain data has not the type that it should have.

    A float may be null, for that is how NaN is written. Keys that a TypedDict does not name are passed over.

    Args:
        value: As JSON gives it.
        kind: A type, a TypedDict, `list[...]`, `tuple[...]`, `dict[str, ...]`, a Literal or a union of these; `Any` is
            anything.
        where: What `value` is called.

    Returns:
        The first fault in words, such as `encoders[2].name must be text, got 5`; None where there is none.
    """
    origin = get_origin(kind)
    if kind is Any:
        return None
    if origin in (Required, NotRequired):
        return misfit(value, get_args(kind)[0], where)
    if origin in (Union, types.UnionType):
        faults = [misfit(value, one, where) for one in get_args(kind)]
        return None if None in faults else faults[0]
    if origin is Literal:
        return None if value in get_args(kind) else _said(where, " or ".join(map(repr, get_args(kind))), value)
    if is_typeddict(kind):
        return _misfit_of_keys(value, kind, where)
    if origin in (list, Sequence, tuple):
        return _misfit_of_items(value, kind, where)
    if origin in (dict, Mapping):
        return _misfit_of_values(value, get_args(kind)[1], where)
    return None if _fits(value, kind) else _said(where, _WORDS.get(kind, kind.__name__), value)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def _fits(value: Any, kind: type) -> bool:
    """Whether a value that holds no others is of a type."""
    if kind is float and (value is None or isinstance(value, int | float)) and not isinstance(value, bool):
        return value is None or (abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return isinstance(value, kind)


def _misfit_of_keys(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return _said(where, "an object", value)
    hints = _hints(kind)
    missing = [key for key in hints if key in kind.__required_keys__ and key not in value]
    if missing:
        return f"{where} lacks {', '.join(missing)}"
    faults = (misfit(item, hints[key], _below(where, key)) for key, item in value.items() if key in hints)
    return next((fault for fault in faults if fault), None)


def _misfit_of_items(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, list | tuple):
        return _said(where, "a list", value)
    kinds = get_args(kind)
    if get_origin(kind) is not tuple or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return _said(where, f"a list of {len(kinds)}", value)
    faults = (misfit(item, one, f"{where}[{k}]") for k, (item, one) in enumerate(zip(value, kinds, strict=True)))
    return next((fault for fault in faults if fault), None)


def _misfit_of_values(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return _said(where, "an object", value)
    faults = (misfit(item, kind, _below(where, key)) for key, item in value.items())
    return next((fault for fault in faults if fault), None)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _below(where: str, key: str) -> str:
    return key[:_SHOWN] if where == "it" else f"{where}.{key[:_SHOWN]}"


def _said(where: str, rule: str, value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGEST else "a larger one"
    return f"{where} must be {rule}, got {text[:_SHOWN]}{'…' * (len(text) > _SHOWN)}"
