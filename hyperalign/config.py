"""Words into configurations: options and TOML files on one side, frozen dataclasses on the other.

A value that was not given is left out of the call, so the one home of a default is its dataclass. What is unknown or
of the wrong type is refused in one sentence that names the key and offers near matches.
"""

import difflib
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from hyperalign.embed.zoo import Range, parse_dim, parse_range

__all__ = ["build", "convert", "place_words", "read_words"]

_C = TypeVar("_C")


class _Place(NamedTuple):
    """Where a word of the command line belongs in `SearchConfig`, and how it is read."""

    path: tuple[str, ...]
    read: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _listed(value: Any) -> tuple[str, ...]:
    """`a,b` or [`a`, `b`] as a tuple of words."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError(f"a list of words is wanted, such as a,b, got {value!r}")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _worded(value: Any) -> str:
    """A limit as it would be typed; a number is as good."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"a limit is a number or words such as 30M:120M, got {value!r}")


def _range(value: Any) -> Range:
    return parse_range(_worded(value))


def _dim(value: Any) -> Range:
    return parse_dim(_worded(value))


_PLACES = {
    "budget": _Place(("limits", "image_params"), _range),
    "text_budget": _Place(("limits", "text_params"), _range),
    "pair_budget": _Place(("limits", "pair_params"), _range),
    "max_gflops": _Place(("limits", "gflops"), _range),
    "max_latency": _Place(("limits", "latency_ms"), _range),
    "dim": _Place(("limits", "dim"), _dim),
    "license": _Place(("limits", "licenses"), _listed),
    "method": _Place(("methods",), _listed),
    "steps": _Place(("train", "n_steps"), _same),
    "epochs": _Place(("train", "n_epochs"), _same),
    "batch_size": _Place(("train", "batch_size"), _same),
    "pairs_per_step": _Place(("train", "pairs_per_step"), _same),
    "learning_rate": _Place(("train", "learning_rate"), _same),
    "baseline_epochs": _Place(("baseline", "n_epochs"), _same),
    "baseline_batch_size": _Place(("baseline", "batch_size"), _same),
    "baseline_learning_rate": _Place(("baseline", "learning_rate"), _same),
}
_EITHER = {"n_steps": "n_epochs", "n_epochs": "n_steps"}


def place_words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Turn words, such as `{"budget": "30M", "steps": 75}`, into a nested record of `SearchConfig`'s fields.

    A word without a place of its own is a field's name already. Training for so many steps takes the place of training
    for so many epochs, and the other way round.
    """
    if "steps" in words and "epochs" in words:
        raise ValueError(f"give --steps or --epochs, not both; got {words['steps']} and {words['epochs']}")
    record: dict[str, Any] = {word: dict(value) for word, value in words.items() if isinstance(value, Mapping)}
    for table in record.values():
        _settle(table, *(name for name in _EITHER if name in table))
    for word, value in words.items():
        if isinstance(value, Mapping):
            continue
        place = _PLACES.get(word, _Place((word,), _same))
        table = record.setdefault(place.path[0], {}) if len(place.path) > 1 else record
        if not isinstance(table, dict):
            raise ValueError(f"{place.path[0]} must be a table, got {table!r}")
        table[place.path[-1]] = place.read(value)
        _settle(table, place.path[-1])
    return record


def read_words(path: Path, known: Iterable[str], *, tables: Sequence[str] = ()) -> dict[str, Any]:
    """Read a configuration file: the options of one command, dashes or underscores, and the tables it knows.

    Args:
        path: A TOML file.
        known: Names of the command's options, with underscores.
        tables: Names that may hold a table; these may be nested further.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML or holds a key that the command does not know.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no configuration file {path}") from None
    except RecursionError:
        raise ValueError(f"{path}: not a TOML file: it is nested too deep") from None
    except ValueError as error:  # of TOML, of UTF-8, or of a number beyond any machine
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    words = {key.replace("-", "_"): value for key, value in content.items()}
    options = set(known)
    for key, value in words.items():
        if key not in options and key not in tables:
            raise ValueError(f"{path}: unknown key {key!r}{_near(key, {*options, *tables})}")
        if isinstance(value, dict) != (key in tables):
            raise ValueError(f"{path}: {key!r} must be {'a table' if key in tables else 'a single value'}")
    return words


def build(cls: type[_C], record: Mapping[str, Any], *, base: _C | None = None, where: str = "") -> _C:
    """Make a frozen dataclass from a nested record, as from TOML or a run's `configuration`.

    Args:
        cls: The dataclass.
        record: Values by field name; nested dataclasses are nested records, of which again any part may be left out.
        base: What is left out comes from here, else from the defaults of `cls`.
        where: Path of the record, for messages.

    Raises:
        ValueError: For an unknown key or a value of another type than the field's.
    """
    values = convert(cls, record, base=base, where=where)
    return cls(**values) if base is None else cast(_C, replace(cast(Any, base), **values))


def convert(cls: type[_C], record: Mapping[str, Any], *, base: _C | None = None, where: str = "") -> dict[str, Any]:
    """The values of a record as the fields of `cls` want them, and nothing for what is left out; as for `build`."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'a configuration'} must be a table, got {record!r}")
    known = {field.name: field for field in fields(cast(Any, cls))}
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in record.items():
        if key not in known:
            raise ValueError(f"unknown setting {where + key!r}{_near(key, known)}")
        present = _default(known[key]) if base is None else getattr(base, key)
        values[key] = _convert(hints[key], value, present, where + key)
    return values


def _convert(hint: Any, value: Any, present: Any, where: str) -> Any:
    """`value` as a field of type `hint` wants it."""
    if get_origin(hint) in (Union, types.UnionType):
        return _convert_union(hint, value, present, where)
    if get_origin(hint) is tuple:
        return _convert_tuple(hint, value, where)
    if not isinstance(hint, type) or get_origin(hint) is not None:
        return value  # Any, a Literal or a mapping: the dataclass checks it
    if is_dataclass(hint):
        return _convert_table(hint, value, present, where)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} must be {_KINDS.get(hint, hint.__name__)}, got {value!r}")


def _convert_table(hint: type[Any], value: Any, present: Any, where: str) -> Any:
    if isinstance(value, hint):
        return value
    if isinstance(value, str) and hint is Range:
        return parse_range(value)
    if isinstance(value, Mapping):
        return build(hint, value, base=present if isinstance(present, hint) else None, where=f"{where}.")
    raise ValueError(f"{where} must be a table, got {value!r}")


def _convert_union(hint: Any, value: Any, present: Any, where: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    real = [option for option in options if option is not type(None)]
    for option in real[:-1]:
        try:
            return _convert(option, value, present, where)
        except ValueError:
            continue
    return _convert(real[-1], value, present, where)


def _convert_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = _listed(value)
    if not isinstance(value, Sequence):
        raise ValueError(f"{where} must be a list, got {value!r}")
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} must be a list of {len(kinds)} values, got {value!r}")
    return tuple(_convert(kind, item, None, where) for kind, item in zip(kinds, value, strict=True))


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _settle(table: dict[str, Any], *given: str) -> None:
    """One of two fields that exclude each other was given: the other one is unset."""
    if len(given) == 1 and given[0] in _EITHER:
        table[_EITHER[given[0]]] = None


def _near(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(names)}"
